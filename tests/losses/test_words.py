"""What BM25 teaches, against a loop over rows and passages."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from embedtune.config import LossConfig
from embedtune.losses import words
from embedtune.losses.batch import EmbeddedBatch, WordScores
from embedtune.losses.build import build_loss
from embedtune.losses.contrastive import contrastive
from embedtune.losses.scale import fixed_scale
from embedtune.losses.words import SHARPNESS, taught_by_words, word_divergence
from tests.losses.batches import random_batch, value_and_gradients

SCALE = 7.0


@pytest.fixture
def batch() -> EmbeddedBatch:
    """Row 2 shares no word with any passage, row 3 only with one that is another answer of it."""
    scores_QP = torch.rand(5, 8, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    scores_QP[2] = 0
    scores_QP[3] = 0
    scores_QP[3, 1] = 4.0
    return replace(random_batch(), words=WordScores(scores_QP, weight=0.3))


def naive(batch: EmbeddedBatch) -> Tensor:
    answers = set(zip(*batch.answers_2A.tolist(), strict=True))
    assert batch.words is not None
    total = batch.queries_QE.new_zeros(())
    for row, own in enumerate(batch.positives_Q.tolist()):
        kept = [place for place in range(8) if place == own or (row, place) not in answers]
        scores = batch.words.scores_QP[row, kept]
        if scores.max() > 0:
            wanted = (SHARPNESS * scores / scores.max()).softmax(0)
            found = (SCALE * batch.passages_PE[kept] @ batch.queries_QE[row]).softmax(0)
            total = total + (wanted * (wanted / found).log()).sum()
    return total / len(batch.positives_Q)


def test_the_divergence_is_that_of_a_loop(batch: EmbeddedBatch) -> None:
    found = value_and_gradients(word_divergence(fixed_scale(SCALE)), batch)
    torch.testing.assert_close(found, value_and_gradients(naive, batch))
    assert found[0] > 0


def test_tiles_give_the_same(batch: EmbeddedBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = value_and_gradients(word_divergence(fixed_scale(SCALE)), batch)
    monkeypatch.setattr(words, "TILE_SCORES", 16)
    torch.testing.assert_close(value_and_gradients(word_divergence(fixed_scale(SCALE)), batch), whole)


def test_a_learned_scale_has_its_gradient(batch: EmbeddedBatch) -> None:
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    loss = word_divergence(lambda: scale)
    *_, gradient = value_and_gradients(loss, batch, scale)
    with torch.no_grad():
        upper, lower = (word_divergence(fixed_scale(SCALE + step))(batch) for step in (1e-4, -1e-4))
    assert gradient.item() == pytest.approx(((upper - lower) / 2e-4).item(), rel=1e-5)


def test_a_row_without_words_adds_nothing(batch: EmbeddedBatch) -> None:
    assert batch.words is not None
    silent = replace(batch, words=WordScores(torch.zeros_like(batch.words.scores_QP), weight=1.0))
    value, queries_QE, passages_PE = value_and_gradients(word_divergence(fixed_scale(SCALE)), silent)
    assert value == 0
    assert not queries_QE.any()
    assert not passages_PE.any()


def test_it_stands_beside_another_loss_where_there_are_scores(batch: EmbeddedBatch) -> None:
    scale = fixed_scale(SCALE)
    other = contrastive(scale)
    taught = taught_by_words(other, scale)
    assert taught(batch).item() == pytest.approx((other(batch) + 0.3 * word_divergence(scale)(batch)).item())
    without = replace(batch, words=None)
    assert taught(without) == other(without)
    with pytest.raises(ValueError, match="needs BM25's scores"):
        word_divergence(scale)(without)


@pytest.mark.parametrize("weight", [0.3, 0.7])
def test_the_config_s_loss_has_the_weight_that_comes_with_the_scores(batch: EmbeddedBatch, weight: float) -> None:
    scale = fixed_scale(SCALE)
    assert batch.words is not None
    batch = replace(batch, words=batch.words._replace(weight=weight))
    wanted = contrastive(scale)(batch) + weight * word_divergence(scale)(batch)
    assert build_loss(LossConfig(scale=SCALE))(batch).item() == pytest.approx(wanted.item())


def test_smaller_sizes_are_taught_too(batch: EmbeddedBatch) -> None:
    found = build_loss(LossConfig(scale=SCALE, matryoshka=(8, 4)))(batch)
    cut = replace(
        batch,
        queries_QE=torch.nn.functional.normalize(batch.queries_QE[:, :4]),
        passages_PE=torch.nn.functional.normalize(batch.passages_PE[:, :4]),
    )
    plain = build_loss(LossConfig(scale=SCALE))
    assert found.item() == pytest.approx(((plain(batch) + plain(cut)) / 2).item())
