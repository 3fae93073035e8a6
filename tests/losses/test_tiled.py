"""The tiled loss against the plain one, in value and every gradient, and what it must not hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from embedtune.losses import infonce, tiled
from embedtune.losses.dispatch import InfoNCE, choose_info_nce
from embedtune.models.memory import peak_bytes

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=(pytest.mark.gpu, needs_cuda))]
VERSIONS: tuple[InfoNCE, InfoNCE] = (infonce.info_nce, tiled.info_nce)


def random_batch(
    queries: int, passages: int, *, answers: int, dtype: torch.dtype = torch.float64, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows that may share a question, a positive or both, and known answers drawn at random, own ones among them."""
    generator = torch.Generator().manual_seed(queries + passages)
    distinct_UE = functional.normalize(torch.randn(max(1, queries - 2), 6, generator=generator, dtype=torch.float64))
    queries_QE = distinct_UE[torch.randint(len(distinct_UE), (queries,), generator=generator)]
    passages_PE = functional.normalize(torch.randn(passages, 6, generator=generator, dtype=torch.float64))
    positives_Q = torch.randint(passages, (queries,), generator=generator)
    rows_A = torch.randint(queries, (answers,), generator=generator)
    columns_A = torch.randint(passages, (answers,), generator=generator)
    own_2Q = torch.stack([torch.arange(queries), positives_Q])
    answers_2A = torch.cat([torch.stack([rows_A, columns_A]), own_2Q[:, ::2]], dim=1)
    embeddings = (x.to(device, dtype).requires_grad_() for x in (queries_QE, passages_PE))
    return *embeddings, positives_Q.to(device), answers_2A.to(device)  # type: ignore[return-value]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("both_directions", [False, True])
@pytest.mark.parametrize("tile_scores", [1, 20, 33, 10_000])
@pytest.mark.parametrize(
    ("queries", "passages", "answers"), [(1, 1, 0), (7, 5, 0), (7, 5, 9), (13, 31, 40), (2, 3, 30)]
)
def test_values_and_gradients_are_the_plain_ones(
    queries: int,
    passages: int,
    answers: int,
    tile_scores: int,
    both_directions: bool,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiled, "TILE_SCORES", tile_scores)
    batch = random_batch(queries, passages, answers=answers, device=device)
    found = []
    for info_nce in VERSIONS:
        loss = info_nce(*batch, scale=7.0, both_directions=both_directions)
        found.append((loss, *torch.autograd.grad(loss * 3, batch[:2])))
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("both_directions", [False, True])
def test_single_and_half_precision(both_directions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In fp32 as good as the plain one; half precision is computed in fp32, and only what comes out is rounded."""
    monkeypatch.setattr(tiled, "TILE_SCORES", 64)
    exact = random_batch(24, 40, answers=50)
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        batch = random_batch(24, 40, answers=50, dtype=dtype)
        wanted = [x.detach().to(dtype).double().requires_grad_() for x in exact[:2]]
        expected = infonce.info_nce(wanted[0], wanted[1], *exact[2:], both_directions=both_directions)
        loss = tiled.info_nce(*batch, both_directions=both_directions)
        assert loss.dtype == torch.float32
        assert abs(loss.item() - expected.item()) < 1e-5
        gradients = torch.autograd.grad(loss, batch[:2])
        for gradient, right in zip(gradients, torch.autograd.grad(expected, wanted), strict=True):
            assert gradient.dtype == dtype
            assert (gradient.double() - right).norm() < tolerance * right.norm()


def test_it_holds_a_tile_of_the_scores_and_not_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "TILE_SCORES", 16 * 1024)
    batch = random_batch(1024, 1024, answers=100, dtype=torch.float32)
    scores = 4 * 1024 * 1024

    def peak(info_nce: InfoNCE) -> int:
        return peak_bytes(lambda: torch.autograd.backward(info_nce(*batch)))

    plain, few = map(peak, VERSIONS)
    assert plain > 2 * scores
    assert few < scores / 4


def test_it_is_chosen_where_there_are_more_scores_than_a_tile_has() -> None:
    assert choose_info_nce(128, 512) is infonce.info_nce
    assert choose_info_nce(8192, 8192) is tiled.info_nce
