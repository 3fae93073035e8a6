"""Which device and which precision a run uses."""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal

import psutil
import torch

from embedtune.errors import ModelError

logger = logging.getLogger(__name__)

DeviceName = Literal["auto", "cpu", "cuda"]
PrecisionName = Literal["auto", "fp32", "bf16", "fp16"]

MIN_BF16_SPEEDUP = 1.2
"""bf16 must be that much faster than fp32 before `auto` gives up fp32's accuracy for it."""

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: DeviceName) -> torch.device:
    """The device of that name; `auto` takes CUDA where there is any.

    Raises:
        ModelError: CUDA was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError(
            f"--device cuda was asked for, but torch {torch.__version__} sees no CUDA device.\n"
            "Type:  --device cpu, or install a CUDA build of torch."
        )
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def choose_precision(name: PrecisionName, device: torch.device) -> tuple[PrecisionName, str]:
    """The precision to compute in and the reason; `auto` takes bf16 where the hardware multiplies it faster.

    Raises:
        ModelError: fp16 was asked for on a CPU, which has no arithmetic for it.
    """
    if name == "fp16" and device.type == "cpu":
        raise ModelError(
            "--precision fp16 was asked for on a CPU, where it is no faster than fp32 and overflows sooner.\n"
            "Type:  --precision bf16 or --precision fp32."
        )
    if name != "auto":
        return name, "as asked"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "the GPU multiplies bf16"
        return "fp16", "the GPU has no bf16"
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "the CPU has AMX-bf16"
    if torch.cpu._is_avx512_bf16_supported():
        # Full rate on AMD's cores, half that of fp32 on Intel's: only a measurement tells.
        speedup = bf16_speedup()
        choice: PrecisionName = "bf16" if speedup >= MIN_BF16_SPEEDUP else "fp32"
        return (
            choice,
            f"the CPU has AVX512-bf16 without AMX, and multiplies bf16 {speedup:.2g}x as fast as fp32",
        )
    return "fp32", "the CPU has no bf16 instructions"


def bf16_speedup(rounds: int = 5) -> float:
    """How much faster this CPU multiplies bf16 matrices than fp32 ones, of a small encoder's shapes (10 ms)."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(1024, 384, dtype=dtype), torch.ones(384, 384, dtype=dtype)
        seconds = []
        for _ in range(rounds):
            start = time.perf_counter()
            torch.nn.functional.linear(x, weight)
            seconds.append(time.perf_counter() - start)
        best[dtype] = min(seconds)
    return best[torch.float32] / best[torch.bfloat16]


def torch_dtype(precision: PrecisionName) -> torch.dtype:
    """torch's dtype for a precision that `choose_precision` returned."""
    return _DTYPES[precision]


def peak_memory_bytes(device: torch.device) -> int:
    """Most memory held so far: allocated on a CUDA device, resident in this process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
