"""A linear layer through oneDNN with the bias in its epilogue, on the CPU in half precision.

`functional.linear` writes the bias to the whole output before the product and reads it again in it: a tenth of the
time of a product of 384 features with 1,536. The operation is the one that torch's compiler calls; it is no public one,
so it is tried once before it is used.

Shapes: `T` tokens, `I` input features, `O` output features.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

HALF = (torch.bfloat16, torch.float16)


def linear(x_TI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """Same result as `functional.linear`; nothing here has a gradient."""
    out_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, weight_OI, bias_O, "none", [], "none")
    return out_TO


@functools.cache
def refused(dtype: torch.dtype) -> str | None:
    """Why it can't be used in that dtype; None if it can."""
    if dtype not in HALF:
        return f"oneDNN's pays in half precision, not in {dtype}"
    x_TI = torch.arange(-60, 60).view(4, 30).to(dtype) / 64
    weight_OI, bias_O = x_TI[:3].flip(1) / 2, x_TI[0, :3]
    try:
        found_TO = linear(x_TI, weight_OI, bias_O)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        return f"oneDNN's fails in {dtype}: {str(error).splitlines()[0]}"
    wanted_TO = functional.linear(x_TI.float(), weight_OI.float(), bias_O.float())
    if not torch.allclose(found_TO.float(), wanted_TO, rtol=1e-2, atol=1e-2):
        return f"oneDNN's gives another result in {dtype}"
    return None
