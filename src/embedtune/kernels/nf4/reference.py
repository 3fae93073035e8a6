"""NF4 with double quantisation, written as its definition; what bitsandbytes' kernels are held to.

Shapes: `W` values of the weight, `K` blocks of 64 values, `G` groups of 256 blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Values that share one scale."""
GROUP = 256
"""Scales that share one scale of their own."""

# Quantiles of the standard normal distribution, zero among them, scaled to [-1, 1].
# fmt: off
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)
# fmt: on


def dequantize(
    packed: Tensor,
    scales_K: Tensor,
    scale_levels: Tensor,
    scale_scales_G: Tensor,
    scale_offset: Tensor,
    shape: tuple[int, int],
) -> Tensor:
    """Level of each value times the scale of its block, itself dequantised (Dettmers et al. 2023, eq. 6).

    Args:
        packed: two values a byte, the first in the upper half, uint8, W / 2 of them (rounded up).
        scales_K: a code of 8 bits for each block's scale.
        scale_levels: what these 256 codes stand for, in [-1, 1].
        scale_scales_G: factor of each group of codes.
        scale_offset: the mean scale, which was taken off before the scales were quantised.
        shape: of the weight; W is its number of values.

    Returns:
        The weight in fp32.
    """
    values, device = shape[0] * shape[1], packed.device
    scale_K = scale_levels[scales_K.long()] * scale_scales_G.repeat_interleave(GROUP)[: len(scales_K)] + scale_offset
    codes = torch.stack([packed.flatten() >> 4, packed.flatten() & 15], dim=1).flatten()[:values].long()
    levels = torch.tensor(LEVELS, device=device)[codes]
    return (levels * scale_K.repeat_interleave(BLOCK)[:values]).view(shape)
