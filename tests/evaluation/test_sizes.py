"""Embeddings cut off and rounded rank as vectors of that size and precision do.

Shapes: `Q` queries, `D` passages, `E` embedding size, `S` numbers kept.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedtune.data.collection import Collection
from embedtune.evaluation import sizes
from embedtune.evaluation.run import RetrievalTask, evaluate_embeddings, retrieval_task
from embedtune.evaluation.sizes import quality_by_size, stored, variants
from embedtune.retrieval.topk import search

QUERIES, PASSAGES, SIZE = 40, 300, 128


@pytest.fixture
def task() -> RetrievalTask:
    collection = Collection(
        queries=[f"q{n}" for n in range(QUERIES)],
        passages=[f"p{n}" for n in range(PASSAGES)],
        qrels={n: {n: 1.0} for n in range(QUERIES)},
    )
    return retrieval_task(collection, range(QUERIES), range(PASSAGES))


@pytest.fixture
def embeddings(task: RetrievalTask) -> tuple[Tensor, Tensor]:
    """Queries near their passages; dimensions of different ranges, the first the most telling."""
    generator = torch.Generator().manual_seed(0)
    spread_E = torch.linspace(2.0, 0.2, SIZE)
    corpus_DE = torch.randn(PASSAGES, SIZE, generator=generator) * spread_E + 0.3
    queries_QE = corpus_DE[:QUERIES] + 1.5 * torch.randn(QUERIES, SIZE, generator=generator) * spread_E
    return functional.normalize(queries_QE, dim=-1), functional.normalize(corpus_DE, dim=-1)[task.passage_ids]


def test_which_sizes_are_tried() -> None:
    assert variants(384) == [
        *((n, "float32") for n in (384, 192, 96, 48)),
        (384, "int8"),
        (192, "int8"),
        (384, "binary"),
    ]
    assert [n for n, precision in variants(1024) if precision == "float32"] == [1024, 512, 256, 128, 64, 32]
    assert variants(50) == [(50, "float32"), (50, "int8"), (50, "binary")]


def test_every_size_is_measured(task: RetrievalTask, embeddings: tuple[Tensor, Tensor]) -> None:
    done: list[int] = []
    facts = quality_by_size(task, *embeddings, on_done=done.append)
    assert len(facts) == len(done) == 6
    assert [(fact["dimensions"], fact["precision"], fact["bytes"]) for fact in facts] == [
        (128, "float32", 512),
        (64, "float32", 256),
        (32, "float32", 128),
        (128, "int8", 128),
        (64, "int8", 64),
        (128, "binary", 16),
    ]
    whole = evaluate_embeddings(task, *embeddings).means
    assert facts[0]["ndcg@10"] == whole["ndcg@10"]
    assert facts[0]["recall@100"] == whole["recall@100"]
    quality = [fact["ndcg@10"] for fact in facts]
    assert quality[0] > quality[1] > quality[2] > 0.3
    assert quality[3] == pytest.approx(quality[0], abs=0.02)
    assert 0.3 < quality[5] < quality[0]


def test_cut_off_vectors_are_compared_by_their_angle(embeddings: tuple[Tensor, Tensor]) -> None:
    queries_QE, corpus_DE = embeddings
    queries_QS, corpus_DS = stored(queries_QE, corpus_DE, 32, "float32")
    cosines_QD = torch.cosine_similarity(queries_QE[:, None, :32], corpus_DE[None, :, :32], dim=-1)
    torch.testing.assert_close(queries_QS @ corpus_DS.T, cosines_QD)


def test_int8_ranks_as_the_dequantised_passages(
    embeddings: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sizes, "_CHUNK", 70)
    queries_QE, corpus_DE = embeddings
    corpus_DE[:, 5] = 0.25  # a dimension that says nothing
    queries_QS, codes_DS = stored(queries_QE, corpus_DE, SIZE, "int8")
    assert codes_DS.dtype == torch.int8
    lowest_E, highest_E = corpus_DE.amin(dim=0), corpus_DE.amax(dim=0)
    steps_E = (highest_E - lowest_E) / 255
    dequantised_DE = lowest_E + steps_E * (codes_DS + 128.0)
    assert bool(((corpus_DE - dequantised_DE).abs() <= 1.01 * steps_E + 1e-6).all())
    offset_Q = queries_QE @ (lowest_E + 128 * steps_E)
    ours_QD = queries_QS @ codes_DS.float().T + offset_Q[:, None]
    torch.testing.assert_close(ours_QD, queries_QE @ dequantised_DE.T, atol=1e-5, rtol=0)


def test_binary_ranks_by_hamming_distance_and_passage_id(embeddings: tuple[Tensor, Tensor]) -> None:
    queries_QE, corpus_DE = embeddings
    signs = stored(queries_QE, corpus_DE, SIZE, "binary")
    queries_QB, corpus_DB = (np.packbits(part.numpy() > 0, axis=-1) for part in (queries_QE, corpus_DE))
    distances_QD = np.unpackbits(queries_QB[:, None] ^ corpus_DB[None], axis=-1).sum(axis=-1)
    expected_QD = np.argsort(distances_QD.astype(np.int64), axis=1, kind="stable")
    assert search(*signs, 100).ids_QK.tolist() == expected_QD[:, :100].tolist()
