"""The factor on cosine similarities: fixed, or learned with the weights."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from embedtune.config.loss import SCALES
from embedtune.losses.batch import Scale


class LearnedScale(nn.Module):
    """A scale whose logarithm is a parameter, so that it changes by a share of itself and stays above 0.

    Source: Radford et al. 2021, sections 2.3 and 2.5. The parameter itself is clamped, as theirs is; a clamp in the
    forward pass alone would let it wander off where no gradient brings it back.
    """

    def __init__(self, start: float, *, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(start), dtype=torch.float32, device=device))

    def forward(self) -> Tensor:
        """The scale, between the limits of `SCALES`."""
        with torch.no_grad():
            self.log_scale.clamp_(*map(math.log, SCALES))
        return self.log_scale.exp()


def fixed_scale(value: float) -> Scale:
    """A scale that stays what it is."""
    return lambda: value
