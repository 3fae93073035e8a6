"""Training on graded pairs: the loss against Sentence Transformers', with and without gradient caching, and that it
learns their order.

Shapes: `N` pairs, `E` embedding size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from sentence_transformers.sentence_transformer.losses import CoSENTLoss

from embedtune.config import LossConfig, TrainingConfig
from embedtune.data.collection import Pairs
from embedtune.data.tokens import TokenTable
from embedtune.errors import ConfigError
from embedtune.losses.cosent import cosent
from embedtune.models.encoder import Encoder
from embedtune.training.graded import GradedObjective
from embedtune.training.kinds import settings_for
from embedtune.training.microbatch import MicroBatch

Objective = Callable[..., GradedObjective]


@pytest.fixture
def objective(
    sentences: list[str], st_folder: Path, load: Callable[..., Encoder], adapt: Callable[..., PeftModel]
) -> Objective:
    """Thirty pairs of sentences; some sentences are in several, on either side, and some pairs are of one sentence."""

    def make(tokens: int | None = None) -> GradedObjective:
        encoder = load(st_folder)
        adapt(encoder)
        rng = np.random.default_rng(0)
        table: TokenTable = encoder.token_table(sentences[:20], None)
        pairs = Pairs(
            query_ids=rng.integers(0, 20, 30),
            passage_ids=rng.integers(0, 20, 30),
            negative_ids=((),) * 30,
            row_ids=tuple(map(str, range(30))),
            grades=rng.integers(0, 6, 30) / 5,
        )
        return GradedObjective(encoder.train(), pairs, table, table, 20.0, MicroBatch(tokens))

    return make


def reference(objective: GradedObjective, rows: np.ndarray[Any, np.dtype[np.int64]]) -> torch.Tensor:
    """Sentence Transformers' loss of these rows, both texts of each embedded by themselves."""
    pairs = objective.pairs
    assert pairs.grades is not None
    embeddings = [
        torch.cat([objective.encoder.embed([objective.first_tokens[int(ids[row])]]) for row in rows])
        for ids in (pairs.query_ids, pairs.passage_ids)
    ]
    theirs: Any = CoSENTLoss(model=None, scale=20.0)  # type: ignore[arg-type]
    loss: torch.Tensor = theirs.compute_loss_from_embeddings(embeddings, torch.as_tensor(pairs.grades[rows]))
    return loss


def gradients(encoder: Encoder) -> list[torch.Tensor]:
    return [parameter.grad for parameter in encoder.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("tokens", [None, 40, 200])
def test_loss_and_gradients_are_sentence_transformers(tokens: int | None, objective: Objective) -> None:
    ours, rows = objective(tokens), np.arange(3, 27)
    expected = reference(ours, rows)
    expected.backward()  # type: ignore[no-untyped-call]
    wanted = [gradient.clone() for gradient in gradients(ours.encoder)]
    ours.encoder.zero_grad()
    loss, embedded = ours(rows)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
    assert wanted
    for ours_grad, theirs_grad in zip(gradients(ours.encoder), wanted, strict=True):
        torch.testing.assert_close(ours_grad, theirs_grad, rtol=1e-3, atol=2e-5)
    ids = [set(array[rows].tolist()) for array in (ours.pairs.query_ids, ours.pairs.passage_ids)]
    assert embedded == sum(len(ours.first_tokens[text]) for distinct in ids for text in distinct)
    assert (ours.micro_batch.largest < embedded) == (tokens is not None)


def test_equal_grades_ask_for_nothing() -> None:
    cosines_N = torch.tensor([0.1, 0.9, -0.3], requires_grad=True)
    loss = cosent(cosines_N, torch.tensor([0.5, 0.5, 0.5]), scale=20.0)
    assert loss.item() == 0
    loss.backward()  # type: ignore[no-untyped-call]
    assert cosines_N.grad is not None
    assert not cosines_N.grad.any()


def test_a_text_without_a_finite_embedding_is_named(objective: Objective, sentences: list[str]) -> None:
    broken = objective()
    assert broken.not_finite(np.arange(4)) == []
    with torch.no_grad():
        next(broken.encoder.parameters()).fill_(float("nan"))
    assert len(broken.not_finite(np.arange(1))) == len({broken.pairs.query_ids[0], broken.pairs.passage_ids[0]})


def test_settings_follow_the_data() -> None:
    plain, loss = settings_for(TrainingConfig(), LossConfig(), graded=False)
    assert (plain.metric, loss.loss) == ("ndcg@10", "contrastive")
    graded, loss = settings_for(TrainingConfig(), LossConfig(), graded=True)
    assert (graded.metric, loss.loss) == ("spearman", "cosent")
    assert settings_for(graded, loss, graded=True) == (graded, loss)
    assert settings_for(replace(plain, metric="mrr@10"), LossConfig(), graded=False)[0].metric == "mrr@10"


@pytest.mark.parametrize(
    ("training", "loss", "graded", "message"),
    [
        ({}, {"loss": "contrastive"}, True, "--loss contrastive: the pairs are graded"),
        ({}, {"both_directions": True}, True, "--both-directions"),
        ({"metric": "mrr@10"}, {}, True, "--metric spearman"),
        ({"passage_once": True}, {}, True, "--passage-once"),
        ({}, {"loss": "cosent"}, False, "--loss cosent: the pairs have no grades"),
        ({"metric": "spearman"}, {}, False, "--metric spearman: the pairs have no grades"),
    ],
)
def test_settings_of_the_other_kind_are_refused(
    training: dict[str, Any], loss: dict[str, Any], graded: bool, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_for(TrainingConfig(**training), LossConfig(**loss), graded=graded)
    assert message in str(caught.value)
