"""The loss that a config asks for, put together from the others."""

from __future__ import annotations

from embedtune.config import LossConfig
from embedtune.losses.batch import Loss, Scale
from embedtune.losses.contrastive import contrastive, guided_by_itself
from embedtune.losses.distillation import kl_divergence, margin_mse, weighted_sum
from embedtune.losses.matryoshka import matryoshka
from embedtune.losses.scale import fixed_scale
from embedtune.losses.words import taught_by_words

ITSELF = "self"
"""The guide that is the model in training."""


def build_loss(config: LossConfig, scale: Scale | None = None) -> Loss:
    """Contrastive, with distillation beside it, at several sizes, and guided by itself, as far as that is asked for.

    BM25 teaches where a batch comes with its scores.

    Args:
        config: what is asked for.
        scale: factor on the cosine similarities; the config's if not given.
    """
    scale = scale or fixed_scale(config.scale)
    loss = contrastive(scale, both_directions=config.both_directions)
    if config.distill == "kl":
        distilled = kl_divergence(scale, temperature=config.distill_temperature)
        loss = weighted_sum(loss, distilled, weight=config.distill_weight)
    if config.distill == "margin-mse":
        loss = weighted_sum(loss, margin_mse(scale), weight=config.distill_weight)
    loss = taught_by_words(loss, scale)
    if config.matryoshka:
        loss = matryoshka(loss, config.matryoshka, config.matryoshka_weights)
    if config.guide == ITSELF:
        loss = guided_by_itself(loss, margin=config.guide_margin)
    return loss
