"""Packed attention in C++, compiled for this CPU when it is first needed (`kernels/native/attention.cpp`).

One task a sequence and key head, all in fp32 in the processor's caches; of the probabilities nothing is kept but the
logarithm of each row's sum. The same bits whatever the number of threads.

Shapes: `T` packed tokens, `H` query heads, `K` key/value heads, `D` head size, `B` sequences.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from embedtune.kernels.attention.layout import PackedLayout, Visibility
from embedtune.kernels.native.build import DTYPES, load

MAX_HEAD_SIZE = 256


def packed_attention(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    layout: PackedLayout,
    *,
    scale: float,
    causal: bool = False,
    window: int | None = None,
    bias_HLL: Tensor | None = None,
) -> Tensor:
    """Same signature and result as `reference.packed_attention`; fp32, bf16 and fp16 on the CPU only, and no bias.

    Raises:
        ValueError: a bias is given, a dtype or head size that it does not take, or shapes that don't belong together.
        NotAvailableError: the library could not be built; `dispatch` asks before it chooses this version.
    """
    if bias_HLL is not None:
        raise ValueError(
            f"compiled attention takes no bias, got one of shape {tuple(bias_HLL.shape)}; "
            "expected None: choose_attention(..., biased=True) picks a version that takes it"
        )
    if refusal := refused(query_THD.dtype, query_THD.shape[2]):
        raise ValueError(refusal)
    _check(query_THD, key_TKD, value_TKD, layout)
    out: Tensor = _Attention.apply(query_THD, key_TKD, value_TKD, layout, scale, Visibility(causal, window))
    return out


def refused(dtype: torch.dtype, head_size: int) -> str | None:
    """Why it does not take these; None if it does."""
    if dtype not in DTYPES:
        return f"compiled attention takes fp32, bf16 and fp16, not {dtype}"
    if head_size > MAX_HEAD_SIZE:
        return f"compiled attention takes head sizes up to {MAX_HEAD_SIZE}, not {head_size}"
    return None


def _check(query_THD: Tensor, key_TKD: Tensor, value_TKD: Tensor, layout: PackedLayout) -> None:
    """What is called gets addresses only: it would read and write past the end."""
    tokens, heads, size = query_THD.shape
    key_heads = key_TKD.shape[1]
    expected = (sum(layout.lengths), key_heads, size)
    if not (key_TKD.shape == value_TKD.shape == expected and tokens == expected[0] and heads % key_heads == 0):
        raise ValueError(
            f"query, key and value of shapes {tuple(query_THD.shape)}, {tuple(key_TKD.shape)} and "
            f"{tuple(value_TKD.shape)} do not fit each other and a layout of {expected[0]} tokens"
        )
    if not {key_TKD.dtype, value_TKD.dtype} == {query_THD.dtype}:
        raise ValueError(f"expected one dtype, got {query_THD.dtype}, {key_TKD.dtype} and {value_TKD.dtype}")
    if {x.device.type for x in (query_THD, key_TKD, value_TKD)} != {"cpu"}:
        raise ValueError(f"expected tensors on the CPU, got one on {query_THD.device}")


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        layout: PackedLayout,
        scale: float,
        visibility: Visibility,
    ) -> Tensor:
        query_THD, key_TKD, value_TKD = (_readable(x) for x in (query_THD, key_TKD, value_TKD))
        out_THD = torch.empty_like(query_THD, memory_format=torch.contiguous_format)
        lse_TH = query_THD.new_empty(query_THD.shape[:2], dtype=torch.float32)
        tensors = {"query": query_THD, "key": key_TKD, "value": value_TKD, "out": out_THD}
        _run(tensors, lse_TH, layout, scale, visibility, backward=False)
        ctx.layout, ctx.scale, ctx.visibility = layout, scale, visibility
        ctx.save_for_backward(query_THD, key_TKD, value_TKD, out_THD, lse_TH)
        return out_THD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THD: Tensor) -> tuple[Tensor | None, ...]:
        query_THD, key_TKD, value_TKD, out_THD, lse_TH = ctx.saved_tensors
        inputs = {"query": query_THD, "key": key_TKD, "value": value_TKD}
        grads = {
            f"grad_{name}": torch.empty_like(x, memory_format=torch.contiguous_format) for name, x in inputs.items()
        }
        tensors = {**inputs, "out": out_THD, "grad": _readable(grad_THD), **grads}
        _run(tensors, lse_TH, ctx.layout, ctx.scale, ctx.visibility, backward=True)
        return *grads.values(), None, None, None


def _readable(x_THD: Tensor) -> Tensor:
    """With the values of a head side by side; tokens and heads may lie at any distance."""
    return x_THD if x_THD.stride(2) == 1 or x_THD.shape[2] == 1 else x_THD.contiguous()


class _View(ctypes.Structure):
    _fields_ = (("at", ctypes.c_void_p), ("token", ctypes.c_int64), ("head", ctypes.c_int64))


_VIEWS = ("query", "key", "value", "out", "grad", "grad_query", "grad_key", "grad_value")


class _Arguments(ctypes.Structure):
    """`Attention` in attention.cpp."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("sequences", "heads", "key_heads", "size", "longest")),
        *((name, ctypes.c_int64) for name in ("causal", "window", "scratch_step", "threads")),
        ("scale", ctypes.c_double),
        ("starts", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        *((name, _View) for name in _VIEWS),
        ("lse", ctypes.c_void_p),
        ("scratch", ctypes.c_void_p),
        ("next_task", ctypes.c_int64),
        ("next_worker", ctypes.c_int64),
    )


def _run(
    tensors: dict[str, Tensor],
    lse_TH: Tensor,
    layout: PackedLayout,
    scale: float,
    visibility: Visibility,
    *,
    backward: bool,
) -> None:
    library = load()
    query_THD, key_TKD = tensors["query"], tensors["key"]
    heads, size = query_THD.shape[1:]
    tasks = len(layout.lengths) * key_TKD.shape[1]
    threads = min(torch.get_num_threads(), tasks)
    scratch_step = library.attention_scratch(layout.max_length, size, backward)
    scratch = torch.empty(threads * scratch_step, dtype=torch.float32)
    starts, order = _sequences(layout)
    arguments = _Arguments(
        sequences=len(layout.lengths),
        heads=heads,
        key_heads=key_TKD.shape[1],
        size=size,
        longest=layout.max_length,
        causal=visibility.causal,
        window=visibility.window or 0,
        scratch_step=scratch_step,
        threads=threads,
        scale=scale,
        starts=starts.ctypes.data,
        order=order.ctypes.data,
        lse=lse_TH.data_ptr(),
        scratch=scratch.data_ptr(),
        **{name: _View(x.data_ptr(), x.stride(0), x.stride(1)) for name, x in tensors.items()},
    )
    library.attention(ctypes.byref(arguments), DTYPES.index(query_THD.dtype), backward, threads, library.parallel)


def _sequences(layout: PackedLayout) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Where sequences begin, and their order, longest first; worked out once for all layers."""
    kept = layout.kept.get(__name__)
    if kept is None:
        lengths_B = np.asarray(layout.lengths, dtype=np.int64)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths_B)])
        kept = layout.kept[__name__] = starts, np.argsort(-lengths_B, kind="stable")
    return kept
