"""Residual addition and LayerNorm."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LayerNorm(NamedTuple):
    """A LayerNorm (Ba et al. 2016)."""

    weight_E: Tensor
    bias_E: Tensor
    eps: float

    @property
    def trained(self) -> tuple[Tensor | None, Tensor | None]:
        """Weight and bias, if they get a gradient."""
        weight_E, bias_E = (tensor if tensor.requires_grad else None for tensor in (self.weight_E, self.bias_E))
        return weight_E, bias_E


class Normalised(NamedTuple):
    """A normalised sum, and what its backward needs."""

    out_TE: Tensor
    sum_TE: Tensor
    mean_T: Tensor
    rstd_T: Tensor


__all__ = ["LayerNorm", "Normalised"]
