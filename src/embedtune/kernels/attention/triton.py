"""Packed attention in Triton, on CUDA: a program a head and tile, without padding to the longest sequence.

A sequence that fits a tile is one program backward too: it holds all rows, walks over the keys and finishes the
gradients of each block of keys as it goes. Longer ones go twice, by rows and by keys. Nothing is added up atomically,
so results are the same to the last bit each time.

Shapes: `T` packed tokens, `H` query heads, `K` key/value heads, `D` head size, `L` the length of the bias, `S` parts
that its gradient is summed in.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from embedtune.kernels.attention import tiles, triton_kernels
from embedtune.kernels.attention.layout import PackedLayout

BIAS_BLOCK = 32
BIAS_PROGRAMS = 2048
"""As many programs as sum the bias's gradient, if it takes several parts to have that many."""


class _Options(NamedTuple):
    scale: float
    causal: bool
    window: int | None


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
    """Same signature and result as `reference.packed_attention`; fp16, bf16 and fp32 on CUDA, head sizes up to 256.

    Products of fp32 are in fp32, or in TF32 if `torch.backends.cuda.matmul.fp32_precision` says so.
    """
    if window is not None and window >= layout.max_length:
        window = None
    query_THD, key_TKD, value_TKD = (_rows(x) for x in (query_THD, key_TKD, value_TKD))
    options = _Options(float(scale), causal, window)
    out: Tensor = _PackedAttention.apply(query_THD, key_TKD, value_TKD, bias_HLL, layout, options)
    return out


def tables(dtype: torch.dtype, head_size: int, device: torch.device) -> tuple[tiles.Table, tiles.Table]:
    """How batches are cut into tiles, forward and backward."""
    width = max(16, triton.next_power_of_2(head_size))
    backward = tiles.table(tiles.BACKWARD, dtype, head_size)
    return (
        tiles.table(tiles.FORWARD, dtype, head_size),
        tiles.within(backward, _shared_memory(device), width, dtype.itemsize),
    )


class _PackedAttention(torch.autograd.Function):
    """Keeps the output and each row's log of the sum of exponentials."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: Tensor,
        key_TKD: Tensor,
        value_TKD: Tensor,
        bias_HLL: Tensor | None,
        layout: PackedLayout,
        options: _Options,
    ) -> Tensor:
        tokens, heads, _ = query_THD.shape
        out_THD = torch.empty_like(query_THD, memory_format=torch.contiguous_format)
        lse_HT = torch.empty(heads, tokens, dtype=torch.float32, device=query_THD.device)
        inputs = (query_THD, key_TKD, value_TKD, bias_HLL)
        sizes, _ = tables(query_THD.dtype, query_THD.shape[-1], query_THD.device)
        for part in tiles.cut(layout, sizes):
            triton_kernels.forward_kernel[(len(part.bounds_N4) * heads,)](
                **_arguments(inputs, options), out_ptr=out_THD, lse_ptr=lse_HT, tiles_ptr=part.bounds_N4,
                out_token=out_THD.stride(0), BIASED=bias_HLL is not None,
                ROWS=part.size, STEP=part.blocks.step, num_warps=part.blocks.warps, num_stages=part.blocks.stages,
            )  # fmt: skip
        ctx.layout, ctx.options = layout, options
        ctx.save_for_backward(*inputs, out_THD, lse_HT)
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query_THD, key_TKD, value_TKD, bias_HLL, out_THD, lse_HT = ctx.saved_tensors
        inputs, grad_out_THD = (query_THD, key_TKD, value_TKD, bias_HLL), _rows(grad_outputs[0])
        grads_THD = [torch.empty_like(out_THD) for _ in range(3)]
        delta_HT = torch.empty_like(lse_HT)
        arguments = _arguments(inputs, ctx.options) | {
            "lse_ptr": lse_HT,
            "delta_ptr": delta_HT,
            "grad_ptr": grad_out_THD,
            "grad_token": grad_out_THD.stride(0),
            "grad_head": grad_out_THD.stride(1),
        }
        _qkv_backward(arguments, out_THD, grads_THD, ctx.layout)
        grad_bias_HLL = None
        if ctx.needs_input_grad[3]:
            grad_bias_HLL = _bias_backward(arguments, bias_HLL, ctx.layout)
        shared = key_TKD.shape[1]
        grad_key_TKD, grad_value_TKD = (_sum_shared(grad_THD, shared) for grad_THD in grads_THD[1:])
        return grads_THD[0], grad_key_TKD, grad_value_TKD, grad_bias_HLL, None, None


def _arguments(inputs: tuple[Tensor, Tensor, Tensor, Tensor | None], options: _Options) -> dict[str, Any]:
    """What every kernel takes."""
    query_THD, key_TKD, value_TKD, bias_HLL = inputs
    tokens, heads, size = query_THD.shape
    strides = {
        f"{name}_{axis}": x.stride(number)
        for name, x in (("query", query_THD), ("key", key_TKD), ("value", value_TKD))
        for number, axis in enumerate(("token", "head"))
    }
    bias_strides = (0, 0, 0) if bias_HLL is None else bias_HLL.stride()
    return strides | {
        "query_ptr": query_THD,
        "key_ptr": key_TKD,
        "value_ptr": value_TKD,
        "bias_ptr": query_THD if bias_HLL is None else bias_HLL,
        **dict(zip(("bias_head", "bias_row", "bias_column"), bias_strides, strict=True)),
        "tokens": tokens,
        "heads": heads,
        "scale": options.scale,
        "window": options.window or 0,
        "SHARING": heads // key_TKD.shape[1],
        "SIZE": size,
        "WIDTH": max(16, triton.next_power_of_2(size)),
        "CAUSAL": options.causal,
        "WINDOWED": options.window is not None,
        "PRECISION": "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee",
    }


def _qkv_backward(arguments: dict[str, Any], out_THD: Tensor, grads_THD: list[Tensor], layout: PackedLayout) -> None:
    """Writes the gradients of queries, keys and values, and `delta`."""
    _, heads, size = out_THD.shape
    _, sizes = tables(out_THD.dtype, size, out_THD.device)
    biased = arguments["bias_ptr"] is not arguments["query_ptr"]
    arguments = arguments | {"out_token": out_THD.stride(0), "BIASED": biased}
    for part in tiles.cut(layout, sizes):
        grid = (len(part.bounds_N4) * heads,)
        launch: dict[str, Any] = {
            "STEP": part.blocks.step,
            "num_warps": part.blocks.warps,
            "num_stages": part.blocks.stages,
        }
        launch |= {"tiles_ptr": part.bounds_N4, "grad_key_ptr": grads_THD[1], "grad_value_ptr": grads_THD[2]}
        triton_kernels.rows_backward_kernel[grid](
            **arguments, **launch, out_ptr=out_THD, grad_query_ptr=grads_THD[0], WHOLE=part.whole, ROWS=part.size
        )
        if not part.whole:
            triton_kernels.keys_backward_kernel[grid](**arguments, **launch, KEYS=part.size)


def _bias_backward(arguments: dict[str, Any], bias_HLL: Tensor, layout: PackedLayout) -> Tensor:
    """The gradient of the bias, in its dtype; summed over the sequences in fp32."""
    heads, length = len(bias_HLL), layout.max_length
    blocks = triton.cdiv(length, BIAS_BLOCK)
    splits = max(1, min(len(layout.lengths), BIAS_PROGRAMS // (heads * blocks * blocks)))
    grad_SHLL = torch.empty(splits, heads, length, length, dtype=torch.float32, device=bias_HLL.device)
    triton_kernels.bias_backward_kernel[(blocks, blocks, splits * heads)](
        **arguments, grad_bias_ptr=grad_SHLL, cu_seqlens_ptr=layout.cu_seqlens,
        sequences=len(layout.lengths), length=length, BLOCK=BIAS_BLOCK, num_warps=4, num_stages=1,
    )  # fmt: skip
    grad_bias_HLL = torch.zeros_like(bias_HLL)
    grad_bias_HLL[:, :length, :length] = grad_SHLL.sum(0)
    return grad_bias_HLL


def _rows(x_THD: Tensor) -> Tensor:
    """With the values of a head next to each other, as the kernels expect them."""
    return x_THD if x_THD.stride(-1) == 1 else x_THD.contiguous()


def _sum_shared(grad_THD: Tensor, heads: int) -> Tensor:
    """The gradient by query head summed over those that share a key head, shape (T, K, D)."""
    tokens, query_heads, size = grad_THD.shape
    return grad_THD if query_heads == heads else grad_THD.view(tokens, heads, -1, size).sum(2)


@functools.cache
def _shared_memory(device: torch.device) -> int:
    """Bytes of it that a program may have; in the interpreter there is no limit."""
    if device.type != "cuda":
        return 2**30
    properties = torch.cuda.get_device_properties(device)
    # On ROCm there is only the latter.
    return int(getattr(properties, "shared_memory_per_block_optin", properties.shared_memory_per_block))
