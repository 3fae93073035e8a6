"""Clocks and memory of the process they are called in."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.records import GemmRates

GEMM_SECONDS = 0.4
"""How long one matrix product is repeated."""
SQUARES = {"cpu": (1024, 2048), "cuda": (4096, 8192, 16384)}
"""Sizes of square products that may fill a device of that type."""

_CLEAR_REFS, _FORGET_PEAK = Path("/proc/self/clear_refs"), "5"
"""Writing 5 there sets VmHWM to VmRSS: man 5 proc."""


Mark = float | torch.cuda.Event
"""A moment: the host's clock, or where a GPU has got to."""


@dataclass
class StepClock:
    """Times training steps from `begin` to `end`, and what lies between an end and the next begin.

    On a GPU it is the GPU's own time, and nothing waits for it: the host may work ahead as it does outside a benchmark.
    """

    device: torch.device
    warmup: int = 0
    """First steps that don't count."""
    _begins: list[Mark] = field(default_factory=list)
    _ends: list[Mark] = field(default_factory=list)

    def begin(self) -> None:
        """A step begins; one that has not ended ends."""
        self.end()
        self._begins.append(self._mark())

    def end(self) -> None:
        """The step ends, if one has begun."""
        if self.steps < len(self._begins):
            self._ends.append(self._mark())

    @property
    def steps(self) -> int:
        """That have ended."""
        return len(self._ends)

    def step_seconds(self) -> list[float]:
        """Of each step after the warm-up."""
        timed = list(zip(self._begins, self._ends, strict=True))[self.warmup :]
        return [self._between(begin, end) for begin, end in timed]

    def gap_seconds(self) -> float:
        """Mean time before a step after the warm-up."""
        gaps = [self._between(end, begin) for end, begin in zip(self._ends, self._begins[1:], strict=False)]
        counted = gaps[max(0, self.warmup - 1) :]
        return sum(counted) / max(1, len(counted))

    def _mark(self) -> Mark:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _between(self, start: Mark, end: Mark) -> float:
        if isinstance(start, float) or isinstance(end, float):
            return float(end) - float(start)  # type: ignore[arg-type]
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000


def now(device: torch.device) -> float:
    """Seconds, after all work given to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def held_bytes(device: torch.device) -> int:
    """Memory held now: allocated on a CUDA device, resident in this process on the CPU (Linux; else 0)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return _status_bytes("VmRSS")


def peak_bytes(device: torch.device) -> int:
    """Most memory held so far, in the terms of `held_bytes`.

    The kernel's count of this program alone: `ru_maxrss` begins with what the parent process held when it started us.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _status_bytes("VmHWM")


def reset_peak(device: torch.device) -> None:
    """Let the peak start from what is held now; on a CPU only where Linux lets us."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            _CLEAR_REFS.write_text(_FORGET_PEAK, encoding="utf-8")


def held_weights(model: nn.Module) -> str:
    """Formats of the weights that a model holds, most of them first, such as "nf4 and bf16, trained ones in fp32"."""
    frozen, trained, copies = Counter[str](), Counter[str](), set[str]()
    for parameter in model.parameters():
        if hasattr(parameter, "quant_state"):  # bitsandbytes' packs two values in a byte
            frozen["nf4"] += 2 * parameter.numel()
        else:
            (trained if parameter.requires_grad else frozen)[_short(parameter.dtype)] += parameter.numel()
    for module in model.modules():
        copy = vars(module).get("dense_copy")  # embedtune's, of 4-bit weights
        if isinstance(copy, Tensor):
            copies.add(f" with a {_short(copy.dtype)} copy")
    if not frozen:
        return " and ".join(name for name, _ in trained.most_common())
    held = " and ".join(name for name, _ in frozen.most_common()) + "".join(sorted(copies))
    return ", ".join(filter(None, (held, f"trained ones in {' and '.join(trained)}" if trained else "")))


def _short(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(name, name)


def measure_gemm(device: torch.device, shape: tuple[int, int, int]) -> GemmRates:
    """The rates of a layer of that shape, and the best of some square ones, in fp32 and in bf16."""
    own = {dtype: gemm_rate(dtype, device, shape) for dtype in (torch.float32, torch.bfloat16)}
    squares = {
        dtype: {size: gemm_rate(dtype, device, (size, size, size)) for size in SQUARES[device.type]} for dtype in own
    }
    best = {dtype: max(rates, key=lambda size: rates[size]) for dtype, rates in squares.items()}
    return GemmRates(
        shape=shape,
        fp32=own[torch.float32],
        bf16=own[torch.bfloat16],
        square_fp32=squares[torch.float32][best[torch.float32]],
        square_bf16=squares[torch.bfloat16][best[torch.bfloat16]],
        best_squares=(best[torch.float32], best[torch.bfloat16]),
    )


def gemm_rate(dtype: torch.dtype, device: torch.device, shape: tuple[int, int, int]) -> float:
    """Floating-point operations a second of a linear layer, the fastest of as many repetitions as fit in the time.

    Args:
        dtype: of the input and the weight.
        device: where it runs.
        shape: rows, input features, output features.
    """
    rows, inputs, outputs = shape
    x = torch.randn(rows, inputs, device=device).to(dtype)
    weight = torch.randn(outputs, inputs, device=device).to(dtype)
    _seconds(x, weight, device, calls=2)
    calls = max(1, round(0.01 / _seconds(x, weight, device, calls=1)))
    times: list[float] = []
    while sum(times) < GEMM_SECONDS:
        times.append(_seconds(x, weight, device, calls=calls))
    return calls * 2.0 * rows * inputs * outputs / min(times)


@torch.inference_mode()
def _seconds(x: Tensor, weight: Tensor, device: torch.device, *, calls: int) -> float:
    """A clock read and a synchronisation cost microseconds; `calls` products in a row make them negligible."""
    started = now(device)
    for _ in range(calls):
        functional.linear(x, weight)
    return now(device) - started


def _status_bytes(key: str) -> int:
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0
    lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines() if ":" in line)
    return int(lines[key].split()[0]) * 1024
