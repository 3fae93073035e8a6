"""Packed attention, one sequence at a time: slow, plain, and what every fast version is held to.

Shapes: `T` packed tokens, `H` query heads, `K` key/value heads (H a multiple of K), `D` head size, `L` the length of a
sequence, or for the bias of the longest one at least.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

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
    """Softmax attention within each packed sequence (Vaswani et al. 2017, eq. 1).

    Args:
        query_THD, key_TKD, value_TKD: packed projections; a key head serves H / K query heads.
        layout: where the sequences begin and end.
        scale: factor on the scores.
        causal: a token sees itself and what comes before it.
        window: a token sees at most `window - 1` tokens to either side (Mistral's and ModernBERT's convention).
        bias_HLL: added to the scaled scores by head, query position and key position in the sequence; any floating
            dtype. A shorter sequence takes its first rows and columns.

    Returns:
        Shape (T, H, D), in the dtype of the inputs.
    """
    repeats = query_THD.shape[1] // key_TKD.shape[1]
    outputs = []
    bounds = [0, *torch.tensor(layout.lengths).cumsum(0).tolist()]
    for start, stop in pairwise(bounds):
        query_HLD = query_THD[start:stop].transpose(0, 1)
        key_HLD = key_TKD[start:stop].transpose(0, 1).repeat_interleave(repeats, 0)
        value_HLD = value_TKD[start:stop].transpose(0, 1).repeat_interleave(repeats, 0)
        scores_HLL = scale * query_HLD @ key_HLD.transpose(1, 2)
        if bias_HLL is not None:
            scores_HLL = scores_HLL + bias_HLL[:, : stop - start, : stop - start].to(scores_HLL.dtype)
        hidden_LL = hidden_positions(stop - start, causal, window, query_THD.device)
        if hidden_LL is not None:
            scores_HLL = scores_HLL.masked_fill(hidden_LL, float("-inf"))
        outputs.append((scores_HLL.softmax(-1) @ value_HLD).transpose(0, 1))
    return torch.cat(outputs)


def hidden_positions(length: int, causal: bool, window: int | None, device: torch.device) -> Tensor | None:
    """Which key (column) a query (row) must not see, bool (length, length); None if it sees all of them."""
    if not causal and (window is None or window >= length):
        return None
    positions = torch.arange(length, device=device)
    distance_LL = positions[:, None] - positions[None, :]
    hidden_LL = torch.zeros_like(distance_LL, dtype=torch.bool)
    if causal:
        hidden_LL |= distance_LL < 0
    if window is not None:
        hidden_LL |= distance_LL.abs() >= window
    return hidden_LL
