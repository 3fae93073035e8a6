"""Packed attention as a few batched matrix products for each length that occurs.

Sequences of the same length, which stand together in a packed batch, are one `baddbmm`, one softmax and one `bmm`, so
nothing is padded; one that is alone with its length is computed where it lies, without a copy. torch's own CPU flash
backward takes several times as long.

Shapes: `T` packed tokens, `H` query heads, `K` key/value heads, `D` head size; in a group `N` sequences of length `L`,
`M` = N * H. A bias for the whole batch has the length of its longest sequence, or more, for `L`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from embedtune.kernels.attention.layout import Group, PackedLayout, Visibility
from embedtune.kernels.attention.reference import hidden_positions


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
    """Same signature and result as `reference.packed_attention`, for any device and dtype."""
    repeats = query_THD.shape[1] // key_TKD.shape[1]
    if repeats > 1:
        key_TKD = key_TKD.repeat_interleave(repeats, dim=1)
        value_TKD = value_TKD.repeat_interleave(repeats, dim=1)
    visibility = Visibility(causal, window)
    out: Tensor = _GroupedAttention.apply(query_THD, key_TKD, value_TKD, bias_HLL, layout, scale, visibility)
    return out


class _GroupedAttention(torch.autograd.Function):
    """Keeps each group's probabilities and recomputes nothing but the blocks of q, k and v."""

    @staticmethod
    def forward(
        ctx: Any,
        query_THD: Tensor,
        key_THD: Tensor,
        value_THD: Tensor,
        bias_HLL: Tensor | None,
        layout: PackedLayout,
        scale: float,
        visibility: Visibility,
    ) -> Tensor:
        out_THD = torch.empty_like(query_THD, memory_format=torch.contiguous_format)
        probabilities = []
        for group in layout.groups:
            query_MLD, key_MLD, value_MLD = (_to_block(x_THD, group) for x_THD in (query_THD, key_THD, value_THD))
            mask_LL = _mask(group.length, visibility, query_THD)
            probs_MLL = _scores(query_MLD, key_MLD, mask_LL, bias_HLL, group.count, scale).softmax(-1)
            _from_block(torch.bmm(probs_MLL, value_MLD), group, out_THD)
            probabilities.append(probs_MLL)
        ctx.layout, ctx.scale = layout, scale
        ctx.bias_kind = None if bias_HLL is None else (bias_HLL.shape, bias_HLL.dtype)
        ctx.save_for_backward(query_THD, key_THD, value_THD, *probabilities)
        return out_THD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (grad_out_THD,) = grad_outputs
        query_THD, key_THD, value_THD, *probabilities = ctx.saved_tensors
        grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (query_THD, key_THD, value_THD)]
        grad_bias_HLL = None
        if ctx.needs_input_grad[3]:
            shape, dtype = ctx.bias_kind
            grad_bias_HLL = query_THD.new_zeros(shape, dtype=dtype)
        for group, probs_MLL in zip(ctx.layout.groups, probabilities, strict=True):
            query_MLD, key_MLD, value_MLD, grad_MLD = (
                _to_block(x, group) for x in (query_THD, key_THD, value_THD, grad_out_THD)
            )
            _from_block(torch.bmm(probs_MLL.transpose(1, 2), grad_MLD), group, grads[2])
            grad_probs_MLL = torch.bmm(grad_MLD, value_MLD.transpose(1, 2))
            grad_scores_MLL = torch._softmax_backward_data(grad_probs_MLL, probs_MLL, -1, probs_MLL.dtype)
            if grad_bias_HLL is not None:
                grad_NHLL = grad_scores_MLL.view(group.count, -1, group.length, group.length)
                grad_bias_HLL[:, : group.length, : group.length] += grad_NHLL.sum(0)
            grad_scores_MLL *= ctx.scale
            _from_block(torch.bmm(grad_scores_MLL, key_MLD), group, grads[0])
            _from_block(torch.bmm(grad_scores_MLL.transpose(1, 2), query_MLD), group, grads[1])
        return grads[0], grads[1], grads[2], grad_bias_HLL, None, None, None


def _scores(
    query_MLD: Tensor, key_MLD: Tensor, mask_LL: Tensor | None, bias_HLL: Tensor | None, count: int, scale: float
) -> Tensor:
    """Scaled scores of a group of `count` sequences, with the mask and the bias added, shape (M, L, L)."""
    block, length = query_MLD.shape[:2]
    if bias_HLL is not None:
        bias_HLL = bias_HLL[:, :length, :length].to(query_MLD.dtype)
    added = [x for x in (mask_LL, bias_HLL) if x is not None]
    if not added:
        return torch.bmm(query_MLD, key_MLD.transpose(1, 2)).mul_(scale)
    # The product is added onto them in place: broadcast over sequences or heads, they take no memory of their own.
    scores_NHLL = query_MLD.new_empty(count, block // count, length, length)
    if len(added) == 1:
        scores_NHLL.copy_(added[0])
    else:
        torch.add(*added, out=scores_NHLL[0])
        scores_NHLL[1:].copy_(scores_NHLL[0])
    return scores_NHLL.view(block, length, length).baddbmm_(query_MLD, key_MLD.transpose(1, 2), alpha=scale)


def _to_block(x_THD: Tensor, group: Group) -> Tensor:
    """The group's tokens as a block (N * H, L, D); a view if it is one sequence."""
    tokens_THD = x_THD[group.start : group.stop]
    if group.count == 1:
        return tokens_THD.transpose(0, 1)
    heads, size = tokens_THD.shape[1:]
    block_NLHD = tokens_THD.reshape(group.count, group.length, heads, size)
    return block_NLHD.transpose(1, 2).reshape(group.count * heads, group.length, size)


def _from_block(block_MLD: Tensor, group: Group, out_THD: Tensor) -> None:
    """Writes a block (N * H, L, D) back to the group's tokens."""
    heads, size = out_THD.shape[1:]
    target_NLHD = out_THD[group.start : group.stop].view(group.count, group.length, heads, size)
    target_NLHD.copy_(block_MLD.view(group.count, heads, group.length, size).transpose(1, 2))


def _mask(length: int, visibility: Visibility, like: Tensor) -> Tensor | None:
    """Additive mask, -inf where a key must not be seen, shape (L, L); None if all are seen."""
    hidden_LL = hidden_positions(length, visibility.causal, visibility.window, like.device)
    if hidden_LL is None:
        return None
    return torch.zeros(length, length, dtype=like.dtype, device=like.device).masked_fill_(hidden_LL, float("-inf"))
