"""Batches to try losses on."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from embedtune.losses.batch import EmbeddedBatch, Guide, Loss, TeacherScores


def normal(count: int, size: int, seed: int) -> Tensor:
    """Random normalised embeddings in double precision."""
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(count, size, generator=generator, dtype=torch.float64))


def random_batch(*, size: int = 8, margin: float | None = None) -> EmbeddedBatch:
    """Five rows, of which two share a question and two a positive; row 3 has no scores, row 4 but its positive's."""
    queries_QE = normal(5, size, 1)[torch.tensor([0, 1, 2, 3, 0])]
    positives_Q = torch.tensor([3, 0, 5, 0, 1])
    answers_2A = torch.tensor([[0, 1, 2, 3, 4, 0, 4, 2], [3, 0, 5, 0, 1, 1, 3, 6]])
    columns_QC = torch.tensor([[3, 2, 6], [0, 4, 0], [5, 7, 2], [0, 0, 0], [1, 1, 1]])
    given_QC = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 0], [1, 0, 0]]).bool()
    scores_QC = 5 * torch.randn(5, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return EmbeddedBatch(
        queries_QE=queries_QE.requires_grad_(),
        passages_PE=normal(8, size, 2).requires_grad_(),
        positives_Q=positives_Q,
        answers_2A=answers_2A,
        guide=None if margin is None else Guide(normal(5, 3, 4), normal(8, 3, 5), margin),
        teacher=TeacherScores(columns_QC, scores_QC, given_QC),
    )


def value_and_gradients(loss: Loss, batch: EmbeddedBatch, *parameters: Tensor) -> list[Tensor]:
    """The loss of the batch, and its gradients for queries, passages and parameters."""
    value = loss(batch)
    return [value, *torch.autograd.grad(value, (batch.queries_QE, batch.passages_PE, *parameters))]


def whole_rows(batch: EmbeddedBatch) -> EmbeddedBatch:
    """The batch with all scores given."""
    assert batch.teacher is not None
    return replace(batch, teacher=batch.teacher._replace(given_QC=torch.ones(5, 3, dtype=torch.bool)))
