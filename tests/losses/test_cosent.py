"""CoSENT against Sentence Transformers' and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

from embedtune.losses.cosent import cosent
from tests.losses.batches import normal


@pytest.mark.parametrize("grades", [[0.0, 5.0, 2.5, 2.5, 1.0, 0.0, 4.2], [1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 0.0]])
def test_it_is_sentence_transformers(grades: list[float]) -> None:
    model: Any = None
    first_NE, second_NE = (normal(7, 6, seed).requires_grad_() for seed in (1, 2))
    grades_N = torch.tensor(grades, dtype=torch.float64)
    expected = CoSENTLoss(model, scale=20.0).compute_loss_from_embeddings([first_NE, second_NE], grades_N)
    loss = cosent((first_NE * second_NE).sum(1), grades_N, scale=20.0)
    torch.testing.assert_close(loss, expected)
    # Theirs normalises what is normal already, which turns part of the gradient away: that along the embedding.
    for embeddings, found, wanted in zip(
        (first_NE, second_NE),
        torch.autograd.grad(loss, (first_NE, second_NE)),
        torch.autograd.grad(expected, (first_NE, second_NE)),
        strict=True,
    ):
        along = (found * embeddings).sum(1, keepdim=True) * embeddings
        torch.testing.assert_close(found - along, wanted)


def test_three_pairs_by_hand() -> None:
    cosines_N, grades_N = torch.tensor([0.9, 0.2, 0.5]), torch.tensor([1.0, 2.0, 2.0])
    expected = math.log(1 + math.exp(10 * (0.9 - 0.2)) + math.exp(10 * (0.9 - 0.5)))
    assert cosent(cosines_N, grades_N, scale=10.0).item() == pytest.approx(expected)


def test_pairs_of_one_grade_teach_nothing() -> None:
    cosines_N = torch.tensor([0.3, 0.8], requires_grad=True)
    loss = cosent(cosines_N, torch.tensor([1.0, 1.0]), scale=20.0)
    (gradient_N,) = torch.autograd.grad(loss, cosines_N)
    assert loss.item() == 0
    assert (gradient_N == 0).all()
