"""How much of the order among the passages themselves is left after tuning: whose nearest passages are the same.

Whoever groups, deduplicates or recommends passages by their embeddings gets other results as far as they are not.

Shapes: `D` passages, `S` sampled passages, `K` nearest passages of each, `E` embedding size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from embedtune.data.collection import IdArray
from embedtune.evaluation.metrics import FloatArray
from embedtune.retrieval.topk import search

K = 10
SAMPLE = 2_000
"""Passages whose neighbours are looked up, at most; among all passages."""


@dataclass(frozen=True, kw_only=True)
class Neighbours:
    """The nearest passages of a sample, of one model."""

    rows_S: IdArray
    """The sampled rows of the corpus, ascending."""
    nearest_SK: IdArray
    """Rows of the nearest other passages, nearest first; K is `K` or, in a smaller corpus, all the others."""


def nearest_passages(corpus_DE: Tensor, *, seed: int) -> Neighbours:
    """The nearest other passages of up to `SAMPLE` passages: exact, ties towards the lower row.

    The sample depends on the seed and the number of passages alone, so two models get the same one, and of the base
    just these ids need be kept.

    Args:
        corpus_DE: Normalised embeddings of all passages.
        seed: Of the sample.

    Raises:
        ValueError: There are fewer than two passages, or an embedding is NaN or infinite.
    """
    passages = len(corpus_DE)
    if passages < 2:
        raise ValueError(f"got {passages} passages, expected at least 2, as a passage is not its own neighbour")
    rows_S = np.sort(np.random.default_rng(seed).choice(passages, min(SAMPLE, passages), replace=False))
    k = min(K, passages - 1)
    found = search(corpus_DE[rows_S], corpus_DE, k + 1).ids_QK.cpu().numpy()
    others = found != rows_S[:, None]
    # A passage with more than k exact doubles before it is not among its own k + 1 nearest.
    others[others.all(axis=1), -1] = False
    return Neighbours(rows_S=rows_S, nearest_SK=found[others].reshape(len(rows_S), k))


def overlaps(base: Neighbours, tuned: Neighbours) -> FloatArray:
    """Share of its K nearest passages that both models agree on, for each passage of the sample, shape (S,).

    Raises:
        ValueError: The samples are not the same.
    """
    if not np.array_equal(base.rows_S, tuned.rows_S):
        raise ValueError("the neighbours are of different passages; expected two models on one corpus, with one seed")
    # Within a row each id is there once, so what is there twice of the two rows together is shared.
    both_S2K = np.sort(np.concatenate([base.nearest_SK, tuned.nearest_SK], axis=1), axis=1)
    shared_S: FloatArray = (both_S2K[:, 1:] == both_S2K[:, :-1]).sum(axis=1) / base.nearest_SK.shape[1]
    return shared_S


def neighbour_facts(base: Neighbours, tuned: Neighbours) -> dict[str, Any]:
    """For the results: how many nearest passages were looked at, of how many passages, and how many are the same."""
    return {
        "k": base.nearest_SK.shape[1],
        "overlap": float(overlaps(base, tuned).mean()),
        "passages": len(base.rows_S),
    }
