"""Residual addition and LayerNorm, with frozen weights."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LayerNorm(NamedTuple):
    """A frozen LayerNorm (Ba et al. 2016)."""

    weight_E: Tensor
    bias_E: Tensor
    eps: float


class Normalised(NamedTuple):
    """A normalised sum, and what its backward needs."""

    out_TE: Tensor
    sum_TE: Tensor
    mean_T: Tensor
    rstd_T: Tensor


__all__ = ["LayerNorm", "Normalised"]
