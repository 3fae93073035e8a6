"""GELU and its backward in one pass over memory, compiled for this CPU (`kernels/native/gelu.cpp`)."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from embedtune.kernels.native.build import DTYPES, load


def refused(dtype: torch.dtype) -> str | None:
    """Why it does not take that dtype; None if it does."""
    return None if dtype in DTYPES else f"compiled GELU takes fp32, bf16 and fp16, not {dtype}"


def gelu_and_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Same signature and result as `reference.gelu_and_backward`; fp32, bf16 and fp16 on the CPU only."""
    x, grad = x.contiguous(), grad.contiguous()
    if (grad.shape, grad.dtype) != (x.shape, x.dtype):
        raise ValueError(f"expected a gradient of {tuple(x.shape)}, {x.dtype}, got {tuple(grad.shape)}, {grad.dtype}")
    out, library = torch.empty_like(x), load()
    addresses = {"x": x.data_ptr(), "out": out.data_ptr(), "grad": grad.data_ptr(), "grad_x": grad.data_ptr()}
    arguments = _Arguments(**addresses, count=x.numel())
    threads = torch.get_num_threads()
    library.gelu_and_backward(ctypes.byref(arguments), DTYPES.index(x.dtype), threads, library.parallel)
    return out, grad


class _Arguments(ctypes.Structure):
    """`Gelu` in gelu.cpp."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "grad", "out", "grad_x")),
        *((name, ctypes.c_int64) for name in ("count", "next_chunk")),
    )
