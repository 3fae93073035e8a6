"""A loss that brings the model's scores of a batch near BM25's.

Shapes: `Q` rows of the batch, `P` its distinct passages, `E` embedding size, `T` rows of a tile.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from embedtune.kernels.autocast import no_autocast
from embedtune.losses.batch import EmbeddedBatch, Loss, Scale
from embedtune.losses.tiled import TILE_SCORES

SHARPNESS = 10.0
"""Logit of the passage that BM25 scores best in the batch; one with none of a question's words has 0."""


def taught_by_words(loss: Loss, scale: Scale) -> Loss:
    """The loss, and beside it `word_divergence` of batches that come with BM25's scores, times the weight of these."""
    divergence = word_divergence(scale)

    def taught(batch: EmbeddedBatch) -> Tensor:
        return loss(batch) if batch.words is None else loss(batch) + batch.words.weight * divergence(batch)

    return taught


def word_divergence(scale: Scale) -> Loss:
    """Divergence of the model's distribution over the batch's passages from BM25's, the mean over the rows.

    A row's passages are its own and those that are not known to answer it. BM25's logits are its scores as shares of
    the best one in the batch, times `SHARPNESS`. A row of which no passage shares a word adds nothing.

    Source: distillation over the passages of a batch as in TCT-ColBERT (Lin et al. 2020), with BM25 in the teacher's
    place; Chen et al. 2022 (SPAR, "lexical models can teach dense ones").

    Args:
        scale: factor on the cosine similarities.
    """

    def loss(batch: EmbeddedBatch) -> Tensor:
        if batch.words is None:
            raise ValueError("this loss needs BM25's scores, and the batch has none")
        words_QP = batch.words.scores_QP
        rows_Q = torch.arange(len(batch.positives_Q), device=words_QP.device)
        left_out_QP = torch.zeros_like(words_QP, dtype=torch.bool)
        left_out_QP.index_put_((batch.answers_2A[0], batch.answers_2A[1]), left_out_QP.new_ones(()))
        left_out_QP.index_put_((rows_Q, batch.positives_Q), left_out_QP.new_zeros(()))
        factor, step = scale(), max(1, TILE_SCORES // words_QP.shape[1])
        with no_autocast(batch.queries_QE):
            parts = [
                checkpoint(
                    _summed_divergence,
                    batch.queries_QE[first : first + step],
                    batch.passages_PE,
                    factor,
                    words_QP[first : first + step],
                    left_out_QP[first : first + step],
                    use_reentrant=False,
                    preserve_rng_state=False,
                )
                for first in range(0, len(rows_Q), step)
            ]
        return torch.stack(parts).sum() / len(rows_Q)

    return loss


def _summed_divergence(
    queries_TE: Tensor, passages_PE: Tensor, factor: float | Tensor, words_TP: Tensor, left_out_TP: Tensor
) -> Tensor:
    """The sum over the rows, with all scores of these held; again in the backward pass."""
    dtype = torch.promote_types(queries_TE.dtype, torch.float32)
    model_TP = factor * (queries_TE.to(dtype) @ passages_PE.to(dtype).t())
    model_TP = model_TP.masked_fill(left_out_TP, float("-inf")).log_softmax(dim=1)
    words_TP = words_TP.masked_fill(left_out_TP, 0)
    best_T1 = words_TP.amax(dim=1, keepdim=True)
    logits_TP = SHARPNESS * words_TP / best_T1.clamp(min=torch.finfo(words_TP.dtype).tiny)
    wanted_TP = logits_TP.masked_fill(left_out_TP, float("-inf")).log_softmax(dim=1)
    differences_TP = (wanted_TP - model_TP).masked_fill(left_out_TP | (best_T1 == 0), 0)
    return (wanted_TP.exp() * differences_TP).sum()
