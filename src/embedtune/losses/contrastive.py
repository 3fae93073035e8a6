"""The in-batch contrastive loss of a batch, plain or in tiles."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from embedtune.losses.batch import EmbeddedBatch, Guide, Loss, Scale
from embedtune.losses.dispatch import choose_info_nce


def contrastive(scale: Scale, *, both_directions: bool = False) -> Loss:
    """`infonce.info_nce` of a batch, in tiles where its scores are many.

    Args:
        scale: factor on the cosine similarities.
        both_directions: also rank the queries for each row's positive.
    """

    def loss(batch: EmbeddedBatch) -> Tensor:
        info_nce = choose_info_nce(len(batch.positives_Q), len(batch.passages_PE))
        return info_nce(
            batch.queries_QE,
            batch.passages_PE,
            batch.positives_Q,
            batch.answers_2A,
            scale=scale(),
            both_directions=both_directions,
            guide=batch.guide,
        )

    return loss


def guided_by_itself(loss: Loss, *, margin: float) -> Loss:
    """The loss with the batch's own embeddings, as they are and whole, for the guide.

    Source: GISTEmbed (Solatorio 2024, section 3) with the model in training in the guide's place.
    """

    def guided(batch: EmbeddedBatch) -> Tensor:
        guide = Guide(batch.queries_QE.detach(), batch.passages_PE.detach(), margin)
        return loss(replace(batch, guide=guide))

    return guided
