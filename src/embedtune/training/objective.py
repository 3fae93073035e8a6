"""What a config asks to be made smaller: whether it can be, and what is trained for it."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from embedtune.config import LossConfig, ModelConfig
from embedtune.data.collection import Pairs
from embedtune.errors import ConfigError
from embedtune.losses.build import ITSELF
from embedtune.losses.scale import LearnedScale
from embedtune.models.cross_encoder import load_cross_encoder
from embedtune.models.encoder import Encoder
from embedtune.models.load import load_encoder
from embedtune.models.source import named, pin, pinned_name
from embedtune.training.teacher import check_scores


class WithScale(nn.Module):
    """What is trained where the scale is learned; the optimiser and the checkpoints then hold it too."""

    def __init__(self, encoder: Encoder, scale: LearnedScale) -> None:
        super().__init__()
        self.encoder, self.scale = encoder, scale


def check_loss(loss: LossConfig, encoder: Encoder, pairs: Pairs) -> None:
    """Refuse what this model or this data can't be trained with.

    Raises:
        ConfigError: `matryoshka` does not fit the model's embeddings.
        DataError: there is nothing to distill.
    """
    sizes, size = loss.matryoshka, encoder.embedding_size
    if sizes and max(sizes) != size:
        smaller = [str(one) for one in sizes if one < size]
        problem = "is more than the model's embeddings have" if max(sizes) > size else "leaves the full size out"
        raise ConfigError(
            f"--matryoshka {' '.join(map(str, sizes))} {problem}; expected sizes up to {size}, and {size} among them.\n"
            f"Type:  --matryoshka {' '.join([str(size), *smaller])}"
        )
    check_scores(loss, pairs)


def check_loss_models(loss: LossConfig, model: ModelConfig) -> LossConfig:
    """Load the guide and the teacher once and let them go, so that a wrong name is told before any work is done.

    Returns:
        The same loss; models of the hub are named with the commit that was loaded.

    Raises:
        ModelError: one of them can't be used.
    """
    if loss.guide is not None and loss.guide != ITSELF:
        guide = pin(named(model, loss.guide))
        load_encoder(guide)
        loss = replace(loss, guide=pinned_name(guide))
    if loss.teacher is not None:
        teacher = named(model, loss.teacher)
        load_cross_encoder(teacher)
        loss = replace(loss, teacher=pinned_name(pin(teacher)))
    return loss
