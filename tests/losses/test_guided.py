"""Negatives that a guide takes for answers: against Sentence Transformers' GISTEmbedLoss, a loop, and in tiles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.losses import GISTEmbedLoss
from torch import Tensor
from torch.nn import functional

from embedtune.losses import tiled
from embedtune.losses.batch import EmbeddedBatch, Guide
from embedtune.losses.contrastive import contrastive, guided_by_itself
from embedtune.losses.scale import fixed_scale
from embedtune.models.memory import peak_bytes
from tests.losses.batches import normal, random_batch, value_and_gradients

SCALE = 7.0


class Given(SentenceTransformer):
    """A model that embeds what is embedded already."""

    def forward(self, input: Any, **_: Any) -> Any:
        return input


@pytest.mark.parametrize("margin", [0.0, 0.2, -0.2])
def test_it_is_sentence_transformers_loss(margin: float, st_folder: Path) -> None:
    """Without its scores of questions with questions and of passages with passages, which there are none of here."""
    model, guide = Given(str(st_folder), device="cpu"), SentenceTransformer(str(st_folder), device="cpu")
    embedded = [normal(6, 8, seed).requires_grad_() for seed in (1, 2, 3)]
    guiding = [normal(6, 3, seed) for seed in (4, 5, 6)]
    loss: Any = GISTEmbedLoss(
        model, guide, temperature=1 / SCALE, margin=margin, contrast_anchors=False, contrast_positives=False
    )
    loss.guide, loss.must_retokenize = _Twice(guiding), False
    expected = loss([{"sentence_embedding": part} for part in embedded], torch.empty(0))
    rows = torch.arange(6)
    batch = EmbeddedBatch(
        queries_QE=embedded[0],
        passages_PE=torch.cat(embedded[1:]),
        positives_Q=rows,
        answers_2A=torch.stack([rows, rows]),
        guide=Guide(guiding[0], torch.cat(guiding[1:]), margin),
    )
    found = contrastive(fixed_scale(SCALE))(batch)
    torch.testing.assert_close(found, expected)
    assert found < contrastive(fixed_scale(SCALE))(replace(batch, guide=None))
    wanted = torch.autograd.grad(expected, embedded)
    # Theirs normalises what is normal already, which turns away the gradient along the embedding.
    for part, gradient, right in zip(embedded, torch.autograd.grad(found, embedded), wanted, strict=True):
        torch.testing.assert_close(gradient - (gradient * part).sum(1, keepdim=True) * part, right)


class _Twice(torch.nn.Module):
    """A guide that gives its embeddings one after another."""

    def __init__(self, embeddings: list[Tensor]) -> None:
        super().__init__()
        self._left = iter(embeddings)

    def forward(self, features: Any, **_: Any) -> Any:
        return {"sentence_embedding": next(self._left)}


def by_hand(batch: EmbeddedBatch, *, both_directions: bool) -> Tensor:
    """Row by row, candidate by candidate."""
    guide, terms = batch.guide, []
    assert guide is not None
    known = set(zip(*batch.answers_2A.tolist(), strict=True))
    positives = batch.positives_Q.tolist()
    for row, own in enumerate(positives):
        least = guide.queries_QG[row] @ guide.passages_PG[own] - guide.margin
        ahead = [
            column
            for column in range(len(batch.passages_PE))
            if column == own
            or ((row, column) not in known and guide.queries_QG[row] @ guide.passages_PG[column] <= least)
        ]
        scores = SCALE * batch.passages_PE[ahead] @ batch.queries_QE[row]
        terms.append(scores.logsumexp(0) - scores[ahead.index(own)])
        if both_directions:
            others = [
                other
                for other in range(len(positives))
                if other == row
                or ((other, own) not in known and guide.queries_QG[other] @ guide.passages_PG[own] <= least)
            ]
            scores = SCALE * batch.queries_QE[others] @ batch.passages_PE[own]
            terms.append(scores.logsumexp(0) - scores[others.index(row)])
    return torch.stack(terms).mean()


@pytest.mark.parametrize("both_directions", [False, True])
@pytest.mark.parametrize("margin", [-0.3, 0.0, 0.3])
@pytest.mark.parametrize("tile_scores", [tiled.TILE_SCORES, 20, 1])
def test_plain_and_tiled_are_a_loop(
    tile_scores: int, margin: float, both_directions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiled, "TILE_SCORES", tile_scores)
    batch = random_batch(margin=margin)
    loss = contrastive(fixed_scale(SCALE), both_directions=both_directions)
    expected = value_and_gradients(lambda one: by_hand(one, both_directions=both_directions), batch)
    torch.testing.assert_close(value_and_gradients(loss, batch), expected)


def test_the_model_may_guide_itself() -> None:
    """No gradient goes through what it says, and what it ranks above the positive is left out."""
    batch = random_batch()
    guide = Guide(batch.queries_QE.detach(), batch.passages_PE.detach(), 0.0)
    loss = contrastive(fixed_scale(SCALE))
    wanted = value_and_gradients(loss, replace(batch, guide=guide))
    torch.testing.assert_close(value_and_gradients(guided_by_itself(loss, margin=0.0), batch), wanted)


def test_a_row_with_no_negatives_left_has_no_loss() -> None:
    batch = random_batch(margin=2.5)
    for both_directions in (False, True):
        found = value_and_gradients(contrastive(fixed_scale(SCALE), both_directions=both_directions), batch)
        assert all((tensor == 0).all() for tensor in found)


def test_tiles_do_not_hold_all_scores_of_the_guide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "TILE_SCORES", 16 * 1024)
    queries_QE, passages_PE = (functional.normalize(torch.randn(1024, 6)).requires_grad_() for _ in range(2))
    rows = torch.arange(1024)
    batch = EmbeddedBatch(
        queries_QE=queries_QE, passages_PE=passages_PE, positives_Q=rows, answers_2A=torch.stack([rows, rows])
    )
    loss = guided_by_itself(contrastive(fixed_scale(SCALE), both_directions=True), margin=0.0)
    assert peak_bytes(lambda: torch.autograd.backward(loss(batch))) < 1024 * 1024
