"""The contrastive loss against Sentence Transformers', by hand, and what a known positive must not do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from torch import Tensor
from torch.nn import functional

from embedtune.losses.infonce import info_nce


def random_embeddings(queries: int, passages: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(  # type: ignore[return-value]
        functional.normalize(torch.randn(count, 6, generator=generator, dtype=torch.float64)).requires_grad_()
        for count in (queries, passages)
    )


def only(positives_Q: Tensor) -> Tensor:
    """Each row is answered by its own positive and nothing else."""
    return torch.stack([torch.arange(len(positives_Q)), positives_Q])


def also(answers_2A: Tensor, *answers: tuple[int, int]) -> Tensor:
    """More known answers: row and column of each."""
    return torch.cat([answers_2A, torch.tensor(answers).T], dim=1)


def test_without_known_positives_it_is_sentence_transformers_loss() -> None:
    """Five positives, then five hard negatives; theirs normalises, ours is given normalised embeddings."""
    generator = torch.Generator().manual_seed(0)
    raw_QE, raw_PE = (torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_() for n in (5, 10))
    theirs: Any = MultipleNegativesRankingLoss(model=None, scale=20.0)  # type: ignore[arg-type]
    expected = theirs.compute_loss_from_embeddings([raw_QE, raw_PE[:5], raw_PE[5:]], None)
    positives_Q = torch.arange(5)
    queries_QE, passages_PE = functional.normalize(raw_QE), functional.normalize(raw_PE)
    loss = info_nce(queries_QE, passages_PE, positives_Q, only(positives_Q), scale=20.0)
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, (raw_QE, raw_PE))
    torch.testing.assert_close(torch.autograd.grad(loss, (raw_QE, raw_PE)), wanted)


def test_columns_may_come_in_any_order() -> None:
    queries_QE, passages_PE = random_embeddings(4, 7)
    positives_Q, order_P = torch.arange(4), torch.tensor([5, 3, 0, 6, 2, 1, 4])
    answers_2A = also(only(positives_Q), (1, 6))
    loss = info_nce(queries_QE, passages_PE, positives_Q, answers_2A)
    place_P = order_P.argsort()
    moved_2A = torch.stack([answers_2A[0], place_P[answers_2A[1]]])
    shuffled = info_nce(queries_QE, passages_PE[order_P], place_P[positives_Q], moved_2A)
    torch.testing.assert_close(loss, shuffled)


def test_a_masked_case_by_hand() -> None:
    """Scores of 2 against 1 and 0 for the first query, whose second answer is left out; 1 against 0 for the other."""
    queries_QE = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    passages_PE = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0]], dtype=torch.float64)
    answers_2A = torch.tensor([[0, 0, 1], [0, 1, 2]])
    loss = info_nce(queries_QE, passages_PE, torch.tensor([0, 2]), answers_2A, scale=2.0)
    first = torch.tensor([2.0, 1.2, 0.0], dtype=torch.float64).exp()
    second = torch.tensor([1.6, 0.0, 1.2, 2.0], dtype=torch.float64).exp()
    expected = -((first[0] / first.sum()).log() + (second[0] / second.sum()).log()) / 2
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("both_directions", [False, True])
def test_a_known_positive_never_loses_score(both_directions: bool) -> None:
    """Query 0 is also answered by query 1's positive: nothing pushes the two apart, or together."""
    queries_QE, passages_PE = random_embeddings(3, 5)
    positives_Q = torch.arange(3)
    answers_2A = also(only(positives_Q), (0, 1))

    def score_gradients(answers_2A: Tensor) -> Tensor:
        """The gradient of the scores, obtained with the identity as queries."""
        scores_QP = (queries_QE @ passages_PE.T).detach().requires_grad_()
        identity_QQ = torch.eye(3, dtype=torch.float64)
        loss = info_nce(identity_QQ, scores_QP.T, positives_Q, answers_2A, both_directions=both_directions)
        (gradient_QP,) = torch.autograd.grad(loss, scores_QP)
        return gradient_QP

    masked_QP, unmasked_QP = score_gradients(answers_2A), score_gradients(only(positives_Q))
    assert masked_QP[0, 1] == 0
    assert unmasked_QP[0, 1] > 0
    wrong_QP = torch.ones(3, 5, dtype=torch.bool)
    wrong_QP[answers_2A[0], answers_2A[1]] = False
    assert (masked_QP[wrong_QP] > 0).all()
    assert (masked_QP.diagonal() < 0).all()


def test_the_gradient_of_a_passage_that_all_know_comes_from_its_own_query_only() -> None:
    queries_QE, passages_PE = random_embeddings(3, 3)
    answers_2A = also(only(torch.arange(3)), (0, 2), (1, 2))
    loss = info_nce(queries_QE, passages_PE, torch.arange(3), answers_2A)
    (gradient_PE,) = torch.autograd.grad(loss, passages_PE)
    probability = (20 * queries_QE[2] @ passages_PE.T).softmax(0)[2]
    torch.testing.assert_close(gradient_PE[2], (20 / 3) * (probability - 1) * queries_QE[2])


def test_both_directions_against_a_hand_written_version() -> None:
    """Rows 0 and 2 share a question, and passage 1 also answers row 3."""
    queries_QE, passages_PE = random_embeddings(4, 6)
    positives_Q = torch.tensor([0, 1, 4, 5])
    others = ((0, 4), (2, 0), (3, 1))
    terms = []
    for row in range(4):
        own = int(positives_Q[row])
        rivals = [passage for passage in range(6) if passage == own or (row, passage) not in others]
        scores = 7 * passages_PE[rivals] @ queries_QE[row]
        terms.append(scores.logsumexp(0) - 7 * passages_PE[own] @ queries_QE[row])
        rivals = [query for query in range(4) if query == row or (query, own) not in others]
        scores = 7 * queries_QE[rivals] @ passages_PE[own]
        terms.append(scores.logsumexp(0) - 7 * passages_PE[own] @ queries_QE[row])
    expected = torch.stack(terms).mean()
    loss = info_nce(
        queries_QE, passages_PE, positives_Q, also(only(positives_Q), *others), scale=7.0, both_directions=True
    )
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("both_directions", [False, True])
def test_a_question_that_comes_twice_with_two_passages(both_directions: bool) -> None:
    """Both rows have their own positive; the other row's is no negative, so nothing is left to get wrong."""
    queries_QE, passages_PE = random_embeddings(2, 2)
    answers_2A = also(only(torch.arange(2)), (0, 1), (1, 0))
    loss = info_nce(queries_QE, passages_PE, torch.arange(2), answers_2A, both_directions=both_directions)
    gradients = torch.autograd.grad(loss, (queries_QE, passages_PE))
    assert loss.item() == 0
    assert all((gradient == 0).all() for gradient in gradients)
