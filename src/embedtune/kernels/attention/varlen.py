"""Packed attention through torch's own variable-length flash attention, on CUDA in half precision."""

from __future__ import annotations

from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from embedtune.kernels.attention.layout import PackedLayout


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
    """Same signature and result as `reference.packed_attention`; fp16 and bf16 on CUDA only, and no bias."""
    if bias_HLL is not None:
        raise ValueError(
            f"varlen flash attention takes no bias, got one of shape {tuple(bias_HLL.shape)}; "
            "expected None: choose_attention(..., biased=True) picks a version that takes it"
        )
    repeats = query_THD.shape[1] // key_TKD.shape[1]
    if repeats > 1:  # varlen_attn itself takes grouped heads from torch 2.12 on only
        key_TKD = key_TKD.repeat_interleave(repeats, dim=1)
        value_TKD = value_TKD.repeat_interleave(repeats, dim=1)
    left = -1 if window is None else window - 1
    out = varlen_attn(
        query_THD,
        key_TKD,
        value_TKD,
        layout.cu_seqlens,
        layout.cu_seqlens,
        layout.max_length,
        layout.max_length,
        scale=scale,
        window_size=(left, 0 if causal else left),
    )
    assert isinstance(out, Tensor)  # a pair only if asked for auxiliary outputs
    return out
