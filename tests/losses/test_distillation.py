"""Distillation against Sentence Transformers' losses, and against loops where rows differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
from torch import Tensor

from embedtune.losses.batch import EmbeddedBatch, Loss
from embedtune.losses.distillation import kl_divergence, margin_mse, weighted_sum
from embedtune.losses.scale import fixed_scale
from tests.losses.batches import random_batch, value_and_gradients, whole_rows

SCALE = 7.0
BOTH = [margin_mse(fixed_scale(SCALE)), kl_divergence(fixed_scale(SCALE), temperature=2.0)]


def scaled(first: Tensor, second: Tensor) -> Tensor:
    """What Sentence Transformers' losses take for the score of two embeddings."""
    return SCALE * (first * second).sum(-1)


def theirs(loss: Any) -> Loss:
    def of_batch(batch: EmbeddedBatch) -> Tensor:
        assert batch.teacher is not None
        passages = [batch.passages_PE[column_Q] for column_Q in batch.teacher.columns_QC.T]
        value: Tensor = loss.compute_loss_from_embeddings([batch.queries_QE, *passages], batch.teacher.scores_QC)
        return value

    return of_batch


def test_margin_mse_is_sentence_transformers() -> None:
    model: Any = None
    batch = whole_rows(random_batch())
    expected = value_and_gradients(theirs(MarginMSELoss(model, similarity_fct=scaled)), batch)
    torch.testing.assert_close(value_and_gradients(margin_mse(fixed_scale(SCALE)), batch), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_kl_is_sentence_transformers(temperature: float) -> None:
    model: Any = None
    batch = whole_rows(random_batch())
    reference = theirs(DistillKLDivLoss(model, similarity_fct=scaled, temperature=temperature))
    ours = kl_divergence(fixed_scale(SCALE), temperature=temperature)
    torch.testing.assert_close(value_and_gradients(ours, batch), value_and_gradients(reference, batch))


def naive_margin_mse(student: Tensor, teacher: Tensor) -> Tensor:
    margins, wanted = student[0] - student[1:], teacher[0] - teacher[1:]
    return torch.stack([(m - w) ** 2 for m, w in zip(margins, wanted, strict=True)]).mean()


def naive_kl(student: Tensor, teacher: Tensor) -> Tensor:
    wanted, found = (teacher / 2).softmax(0), (student / 2).softmax(0)
    return 4 * (wanted * (wanted.log() - found.log())).sum()


@pytest.mark.parametrize(("ours", "naive"), list(zip(BOTH, (naive_margin_mse, naive_kl), strict=True)))
def test_rows_with_different_numbers_of_scores(ours: Loss, naive: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Rows without a scored negative count in the mean and add nothing."""

    def by_row(batch: EmbeddedBatch) -> Tensor:
        assert batch.teacher is not None
        total = batch.queries_QE.sum() * 0 + batch.passages_PE.sum() * 0
        for row, columns in ((0, [3, 2, 6]), (1, [0, 4]), (2, [5, 7, 2])):
            student = SCALE * batch.passages_PE[columns] @ batch.queries_QE[row]
            total = total + naive(student, batch.teacher.scores_QC[row, : len(columns)])
        return total / 5

    batch = random_batch()
    torch.testing.assert_close(value_and_gradients(ours, batch), value_and_gradients(by_row, batch))


@pytest.mark.parametrize("loss", BOTH)
def test_a_batch_without_scores_adds_nothing(loss: Loss) -> None:
    batch = random_batch()
    assert batch.teacher is not None
    for width in (1, 3):
        teacher = batch.teacher._replace(
            columns_QC=batch.positives_Q[:, None].expand(-1, width),
            scores_QC=torch.zeros(5, width),
            given_QC=torch.zeros(5, width, dtype=torch.bool),
        )
        empty = EmbeddedBatch(**{**vars(batch), "teacher": teacher})
        assert all((tensor == 0).all() for tensor in value_and_gradients(loss, empty))


def test_a_student_that_scores_like_its_teacher_is_done() -> None:
    batch = whole_rows(random_batch())
    assert batch.teacher is not None
    own_QC = torch.einsum("qe,qce->qc", batch.queries_QE, batch.passages_PE[batch.teacher.columns_QC]).detach()
    done = EmbeddedBatch(**{**vars(batch), "teacher": batch.teacher._replace(scores_QC=SCALE * own_QC + 3)})
    for loss in BOTH:
        for tensor in value_and_gradients(loss, done):
            torch.testing.assert_close(tensor, torch.zeros_like(tensor), atol=1e-12, rtol=0)


def test_a_weighted_sum() -> None:
    batch = random_batch()
    both = weighted_sum(*BOTH, weight=0.25)
    torch.testing.assert_close(both(batch), BOTH[0](batch) + BOTH[1](batch) / 4)


def test_no_teacher_is_said() -> None:
    with pytest.raises(ValueError, match="needs the scores of a teacher"):
        BOTH[0](EmbeddedBatch(**{**vars(random_batch()), "teacher": None}))
