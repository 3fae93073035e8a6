"""The mean of a model's trained weights over steps (stochastic weight averaging, Izmailov et al. 2018).

At a rate that does not fall, weights keep moving about a point that is better than any of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from embedtune.training.weights import set_weights, trainable_tensors


class WeightAverage:
    """Of no steps at first; then it takes as much memory as the trained weights."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._mean = dict[str, Tensor]()
        self.steps = 0
        """That it is the mean of."""

    def weights(self) -> Mapping[str, Tensor]:
        """The mean by the parameters' names; the model's own weights as long as it is of no steps."""
        return self._mean if self.steps else trainable_tensors(self._model)

    def add(self) -> None:
        """Count the model's weights as they are now."""
        if self.steps == 0:
            self._mean = _copy(self._model)
        self.steps += 1
        torch._foreach_lerp_([*self._mean.values()], [*trainable_tensors(self._model).values()], 1 / self.steps)

    def go_on_from(self, steps: int) -> None:
        """Take the model's weights for the mean of so many steps."""
        self._mean, self.steps = _copy(self._model), steps

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the mean for its weights meanwhile."""
        if self.steps == 0:
            yield
            return
        own = _copy(self._model)
        set_weights(self._model, self._mean)
        try:
            yield
        finally:
            set_weights(self._model, own)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in trainable_tensors(model).items()}
