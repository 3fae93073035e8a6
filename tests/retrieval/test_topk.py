"""Exact search: against a stable sort of all scores, above all where scores tie.

Shapes: `Q` queries, `D` passages, `E` embedding size, `K` results per query.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from embedtune.retrieval.topk import search, top_k

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")),
]


def stable_order(scores_QD: Tensor) -> Tensor:
    return scores_QD.argsort(dim=1, descending=True, stable=True)


def small_integers(rows: int, size: int, seed: int) -> Tensor:
    """Few distinct values, so most scores tie and every sum is exact."""
    return torch.randint(-1, 2, (rows, size), generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("chunk_size", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("k", [1, 5, 97, 500])
def test_ties_go_to_the_lower_id_whatever_the_chunk_size(k: int, chunk_size: int, device: str) -> None:
    queries_QE, corpus_DE = small_integers(23, 4, 0).to(device), small_integers(97, 4, 1).to(device)
    scores_QD = queries_QE @ corpus_DE.T
    expected_QK = stable_order(scores_QD)[:, :k]
    found = search(queries_QE, corpus_DE, k, chunk_size=chunk_size)
    assert torch.equal(found.ids_QK, expected_QK)
    assert torch.equal(found.scores_QK, scores_QD.gather(1, expected_QK))
    assert found.scores_QK.dtype == torch.float32


@pytest.mark.parametrize("device", DEVICES)
def test_copies_of_a_passage_tie_and_keep_their_order(device: str) -> None:
    """In fp32 the copies' scores would differ by where they stand in the matrix product."""
    generator = torch.Generator().manual_seed(2)
    distinct_E = torch.nn.functional.normalize(torch.randn(50, 37, generator=generator))
    copies_D = torch.randint(0, 50, (700,), generator=generator)
    corpus_DE = distinct_E[copies_D].to(device)
    queries_QE = torch.nn.functional.normalize(torch.randn(40, 37, generator=generator)).to(device)
    expected_QK = stable_order((queries_QE.double() @ distinct_E.to(device).double().T).float()[:, copies_D])
    for chunk_size in (3, 100, 256, 2048):
        found = search(queries_QE, corpus_DE, 60, chunk_size=chunk_size)
        assert torch.equal(found.ids_QK, expected_QK[:, :60])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_are_scored_in_fp32(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    queries_QE = torch.randn(5, 16, generator=generator).to(dtype).requires_grad_()
    corpus_DE = torch.randn(30, 16, generator=generator).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = search(queries_QE, corpus_DE, 30, chunk_size=8)
    exact_QD = (queries_QE.detach().double() @ corpus_DE.double().T).float()
    assert torch.equal(found.scores_QK, exact_QD.sort(dim=1, descending=True).values)
    assert not found.scores_QK.requires_grad


def test_top_k_restores_every_kind_of_score() -> None:
    scores_QD = torch.tensor([[0.0, -0.0, -1.5, 3e38, -3e38, 1e-45, -1e-45, float("-inf"), 2.0]])
    found = top_k(scores_QD, 99)
    assert found.ids_QK.tolist() == [[3, 8, 5, 0, 1, 6, 2, 4, 7]]
    assert torch.equal(found.scores_QK, scores_QD.gather(1, found.ids_QK))


def test_progress_adds_up_to_the_queries() -> None:
    done: list[int] = []
    search(small_integers(23, 4, 0), small_integers(9, 4, 1), 3, chunk_size=10, on_progress=done.append)
    assert done == [10, 10, 3]


def test_no_queries_give_an_empty_result() -> None:
    assert search(torch.empty(0, 4), torch.zeros(9, 4), 3).ids_QK.shape == (0, 3)


@pytest.mark.parametrize(
    ("queries_QE", "corpus_DE", "k", "chunk_size", "message"),
    [
        (torch.zeros(4), torch.zeros(2, 4), 1, 8, r"queries: got shape \(4,\)"),
        (torch.zeros(1, 4), torch.zeros(2, 5), 1, 8, r"corpus: got shape \(2, 5\)"),
        (torch.zeros(1, 4), torch.zeros(0, 4), 1, 8, "passages: got 0"),
        (torch.zeros(1, 4), torch.zeros(2, 4), 0, 8, "k: got 0"),
        (torch.zeros(1, 4), torch.zeros(2, 4), 1, 0, "chunk_size: got 0"),
        (torch.full((1, 4), torch.nan), torch.zeros(2, 4), 1, 8, "query embeddings have NaN"),
        (torch.zeros(1, 4), torch.full((2, 4), torch.inf), 1, 8, "corpus embeddings have NaN or infinite"),
    ],
)
def test_input_that_does_not_fit_is_refused(
    queries_QE: Tensor, corpus_DE: Tensor, k: int, chunk_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        search(queries_QE, corpus_DE, k, chunk_size=chunk_size)


def test_top_k_refuses_scores_that_are_not_fp32() -> None:
    with pytest.raises(ValueError, match=r"torch\.float64"):
        top_k(torch.zeros(1, 3, dtype=torch.float64), 1)
