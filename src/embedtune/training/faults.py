"""What is said, and gone back to, where a training step went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from embedtune.data.collection import IdArray
from embedtune.errors import NonFiniteLossError
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.state import Step
from embedtune.training.weights import trainable_tensors

NAMED_TEXTS = 3
"""At the most, where a loss is no number."""


@dataclass(frozen=True)
class Faults:
    """Finds losses and weights that are no numbers, and says what is saved when something fails."""

    model: nn.Module
    checkpoints: Checkpoints
    not_finite: Callable[[IdArray], list[str]] | None
    """Names texts of these rows whose embeddings are NaN or infinite."""

    def check_loss(self, loss: float, step: Step) -> None:
        """Raise if that is no number. The step has been taken by now: the weights of the last checkpoint come back."""
        if math.isfinite(loss):
            return
        saved = self._back_to_last_checkpoint()
        cause = ""
        if self.not_finite is not None:
            texts = [text for rows in step.rows for text in self.not_finite(rows)]
            cause = "\nWith its weights every text of that step embeds to finite numbers: the training diverged."
            if texts:
                cause = f"\nIts weights make no finite embedding of:{_listed(texts)}"
        raise NonFiniteLossError(
            f"the loss became {loss} at step {step.number} (learning rate {step.lr:.2g}); {saved}\n"
            f"Try a lower --lr, or --precision fp32.{cause}"
        )

    def check_weights(self, step: int) -> None:
        """Raise if a weight is no number, as after infinite gradients: that is not to be evaluated or saved."""
        if not all(bool(tensor.isfinite().all()) for tensor in trainable_tensors(self.model).values()):
            raise NonFiniteLossError(
                f"the weights became NaN or infinite by step {step}; {self._back_to_last_checkpoint()}\n"
                "Try a lower --lr, or --precision fp32."
            )

    def optimizer_is_too_large(self, when: str) -> str:
        """What to say where memory ran out in the optimiser."""
        return (
            f"in the optimiser {when}, with its moments; {self.what_is_saved()}\n"
            "Type one or more of:  --optimizer adamw8bit, a smaller --rank, --last-layers N, --method qlora."
        )

    def what_is_saved(self) -> str:
        """The newest checkpoint, a sentence."""
        steps = self.checkpoints.steps()
        return f"the last good checkpoint is step {steps[-1]}." if steps else "there is no checkpoint yet."

    def _back_to_last_checkpoint(self) -> str:
        """Give the model the weights of the last checkpoint; returns which one that is, half a sentence."""
        for step in self.checkpoints.steps()[-1:]:
            self.checkpoints.load_weights(step, self.model)
        return self.what_is_saved()


def _listed(texts: list[str]) -> str:
    return "".join(f"\n  {text!r}" for text in texts[:NAMED_TEXTS])
