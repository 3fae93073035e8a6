"""A loss at several sizes against Sentence Transformers' MatryoshkaLoss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MatryoshkaLoss, MultipleNegativesRankingLoss
from torch import Tensor, nn
from torch.nn import functional

from embedtune.losses.batch import EmbeddedBatch
from embedtune.losses.contrastive import contrastive
from embedtune.losses.matryoshka import matryoshka
from embedtune.losses.scale import fixed_scale
from tests.losses.batches import random_batch, value_and_gradients


class Given(nn.Module):
    """A model that embeds what is embedded already."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(features)

    def get_embedding_dimension(self) -> int:
        return 8


@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 0.25)])
def test_it_is_sentence_transformers(weights: tuple[float, ...]) -> None:
    sizes = (8, 4, 3)
    generator = torch.Generator().manual_seed(0)
    raw_QE, raw_PE = (torch.randn(5, 8, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    model: Any = Given()
    inner: Any = MultipleNegativesRankingLoss(model, scale=20.0)
    reference = MatryoshkaLoss(model, inner, list(sizes), list(weights) or [1 / 3] * 3)
    features: Iterable[Any] = [{"sentence_embedding": raw_QE}, {"sentence_embedding": raw_PE}]
    expected: Tensor = reference(features, torch.empty(0))

    rows = torch.arange(5)
    batch = EmbeddedBatch(
        queries_QE=functional.normalize(raw_QE),
        passages_PE=functional.normalize(raw_PE),
        positives_Q=rows,
        answers_2A=torch.stack([rows, rows]),
    )
    loss = matryoshka(contrastive(fixed_scale(20.0)), sizes, weights)(batch)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, (raw_QE, raw_PE))
    torch.testing.assert_close(torch.autograd.grad(loss, (raw_QE, raw_PE)), wanted)


def test_the_full_size_alone_is_the_loss_itself() -> None:
    batch, loss = random_batch(), contrastive(fixed_scale(20.0))
    for found, wanted in zip(
        value_and_gradients(matryoshka(loss, (8,)), batch), value_and_gradients(loss, batch), strict=True
    ):
        assert torch.equal(found, wanted)
