"""Whose nearest passages are the same.

Shapes: `D` passages, `E` embedding size.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedtune.evaluation import neighbours
from embedtune.evaluation.neighbours import nearest_passages, neighbour_facts, overlaps


def random_corpus(passages: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(passages, 16, generator=generator), dim=-1)


def test_nearest_first_and_never_the_passage_itself() -> None:
    corpus_DE = random_corpus(60)
    scores_DD = (corpus_DE @ corpus_DE.T).fill_diagonal_(-2)
    found = nearest_passages(corpus_DE, seed=0)
    assert found.rows_S.tolist() == list(range(60))
    assert found.nearest_SK.tolist() == scores_DD.topk(10, dim=1).indices.tolist()


def test_a_model_agrees_with_itself_and_with_a_rotation_of_itself() -> None:
    corpus_DE = random_corpus(80)
    rotation_EE = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(1)))[0]
    base = nearest_passages(corpus_DE, seed=0)
    assert neighbour_facts(base, nearest_passages(corpus_DE @ rotation_EE, seed=0))["overlap"] == 1.0


def test_unrelated_models_agree_by_chance_only() -> None:
    base, tuned = (nearest_passages(random_corpus(400, seed), seed=0) for seed in (0, 1))
    facts = neighbour_facts(base, tuned)
    assert facts["overlap"] == pytest.approx(10 / 399, abs=0.01)
    assert (facts["k"], facts["passages"]) == (10, 400)


def test_shared_neighbours_are_counted_whatever_their_order() -> None:
    base_DE = functional.normalize(torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]]), dim=-1)
    tuned_DE = base_DE[[0, 2, 1, 3]]
    base, tuned = nearest_passages(base_DE, seed=0), nearest_passages(tuned_DE, seed=0)
    assert base.nearest_SK.shape == (4, 3)
    assert overlaps(base, tuned).tolist() == [1.0] * 4


def test_doubles_are_one_anothers_neighbours() -> None:
    corpus_DE = torch.ones(15, 4) / 2
    found = nearest_passages(corpus_DE, seed=0)
    assert found.nearest_SK[0].tolist() == list(range(1, 11))
    assert found.nearest_SK[14].tolist() == list(range(10))


def test_large_corpora_are_sampled_and_searched_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "SAMPLE", 20)
    corpus_DE = random_corpus(90)
    found, all_found = nearest_passages(corpus_DE, seed=3), None
    assert len(found.rows_S) == 20
    assert found.nearest_SK.max() > 80
    monkeypatch.setattr(neighbours, "SAMPLE", 90)
    all_found = nearest_passages(corpus_DE, seed=3)
    assert np.array_equal(found.nearest_SK, all_found.nearest_SK[found.rows_S])
    with pytest.raises(ValueError, match="different passages"):
        overlaps(found, all_found)


def test_one_passage_has_no_neighbours() -> None:
    with pytest.raises(ValueError, match="got 1 passages, expected at least 2"):
        nearest_passages(torch.ones(1, 4), seed=0)
