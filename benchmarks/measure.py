"""Clocks and memory of the process they are called in."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.jobs import WARMUP_STEPS

GEMM_SECONDS = 0.4
"""How long one matrix product is repeated."""

_CLEAR_REFS, _FORGET_PEAK = Path("/proc/self/clear_refs"), "5"
"""Writing 5 there sets VmHWM to VmRSS: man 5 proc."""


@dataclass
class StepClock:
    """Times training steps from `begin` to `end`, and what lies between an end and the next begin."""

    device: torch.device
    warmup: int = WARMUP_STEPS
    """Steps that don't count."""
    _begins: list[float] = field(default_factory=list)
    _ends: list[float] = field(default_factory=list)

    def begin(self) -> None:
        self._begins.append(now(self.device))

    def end(self) -> None:
        self._ends.append(now(self.device))

    def step_seconds(self) -> list[float]:
        """Of each step after the warm-up."""
        timed = list(zip(self._begins, self._ends, strict=True))[self.warmup :]
        return [end - begin for begin, end in timed]

    def gap_seconds(self) -> float:
        """Mean time before a step after the warm-up."""
        gaps = [begin - end for end, begin in zip(self._ends, self._begins[1:], strict=False)]
        counted = gaps[max(0, self.warmup - 1) :]
        return sum(counted) / max(1, len(counted))


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
