"""Losses that bring the scores of a row's own passages near a teacher's.

Shapes: `Q` rows of the batch, `C` passages that a teacher has scored for a row, `E` embedding size.

The model's score is its cosine times the scale, in which the contrastive loss sees it too: cosines alone could not be
as far apart as a cross-encoder's logits. The mean is over all rows of the batch; one without scores for two passages
adds nothing to it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from embedtune.losses.batch import EmbeddedBatch, Loss, Scale, TeacherScores


def kl_divergence(scale: Scale, *, temperature: float = 1.0) -> Loss:
    """Divergence of the model's distribution over a row's own passages from the teacher's.

    Times the square of the temperature, so that gradients keep their size (Hinton et al. 2015, section 2); over a
    query's candidates as in TCT-ColBERT (Lin et al. 2020).

    Args:
        scale: factor on the cosine similarities.
        temperature: what the scores of both are divided by.
    """

    def loss(batch: EmbeddedBatch) -> Tensor:
        teacher = _teacher(batch)
        left_out_QC = ~teacher.given_QC
        # The positive stays in rows without scores, where its share is 1 for both: a softmax of nothing is NaN.
        left_out_QC[:, 0] = False
        student_QC = scale() * _cosines(batch, teacher) / temperature
        student_QC = student_QC.masked_fill(left_out_QC, float("-inf")).log_softmax(dim=1).masked_fill(left_out_QC, 0)
        wanted_QC = (teacher.scores_QC / temperature).masked_fill(left_out_QC, float("-inf")).softmax(dim=1)
        divergence = functional.kl_div(student_QC, wanted_QC, reduction="sum") / len(batch.positives_Q)
        return temperature**2 * divergence

    return loss


def margin_mse(scale: Scale) -> Loss:
    """Squared error of how far a row's positive is ahead of its hard negatives, the mean over these.

    Source: Hofstaetter et al. 2020, "Margin-MSE".

    Args:
        scale: factor on the cosine similarities.
    """

    def loss(batch: EmbeddedBatch) -> Tensor:
        teacher = _teacher(batch)
        student_QC = scale() * _cosines(batch, teacher)
        errors_QC = _margins(student_QC) - _margins(teacher.scores_QC)
        given_QC = teacher.given_QC[:, 1:] & teacher.given_QC[:, :1]
        squares_Q = errors_QC.square().masked_fill(~given_QC, 0).sum(dim=1)
        return (squares_Q / given_QC.sum(dim=1).clamp(min=1)).mean()

    return loss


def weighted_sum(first: Loss, second: Loss, *, weight: float) -> Loss:
    """The first loss, and the second one times the weight."""
    return lambda batch: first(batch) + weight * second(batch)


def _teacher(batch: EmbeddedBatch) -> TeacherScores:
    if batch.teacher is None:
        raise ValueError("this loss needs the scores of a teacher, and the batch has none")
    return batch.teacher


def _cosines(batch: EmbeddedBatch, teacher: TeacherScores) -> Tensor:
    """Of each row's question and its own passages, shape (Q, C)."""
    return torch.einsum("qe,qce->qc", batch.queries_QE, batch.passages_PE[teacher.columns_QC])


def _margins(scores_QC: Tensor) -> Tensor:
    return scores_QC[:, :1] - scores_QC[:, 1:]
