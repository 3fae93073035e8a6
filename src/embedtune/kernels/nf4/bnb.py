"""NF4 through bitsandbytes' kernels, on the CPU and on CUDA."""

from __future__ import annotations

import copy

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Params4bit
from torch import Tensor

from embedtune.kernels.nf4 import reference
from embedtune.kernels.nf4.reference import BLOCK


def quantize(weight_OI: Tensor, device: torch.device) -> Params4bit:
    """A weight in 4 bits, its scales in 8, on that device. The result is the same every time."""
    dense = Params4bit(
        weight_OI.detach().contiguous(),
        requires_grad=False,
        blocksize=BLOCK,
        compress_statistics=True,
        quant_type="nf4",
    )
    return dense.to(device)


def dequantize(weight: Params4bit, dtype: torch.dtype) -> Tensor:
    """The weight in that dtype; the same values as `reference.dequantize`.

    bitsandbytes' CPU kernel for AVX-512 (0.50) takes the wrong scale where a row is no whole number of blocks, so it is
    asked for rows of one block.
    """
    state = weight.quant_state
    shape_OI = state.shape
    if shape_OI.numel() % BLOCK:
        second = state.state2
        packed, scales = weight.data, (state.absmax, second.code, second.absmax, state.offset)
        return reference.dequantize(packed, *scales, (shape_OI[0], shape_OI[1])).to(dtype)
    state = copy.copy(state)
    state.dtype, state.shape = dtype, torch.Size((shape_OI.numel() // BLOCK, BLOCK))
    dense: Tensor = dequantize_4bit(weight.data, state)
    return dense.view(shape_OI)
