"""From rows to the loss of a real encoder, and a whole run of one, stopped and resumed."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from sentence_transformers import SentenceTransformer
from torch import Tensor

from embedtune.config import AdapterConfig, LossConfig, TrainingConfig
from embedtune.data.collection import Pairs
from embedtune.errors import TrainingInterrupted
from embedtune.losses.build import build_loss
from embedtune.losses.infonce import info_nce
from embedtune.models.adapters import attach_adapter
from embedtune.models.encoder import Encoder
from embedtune.models.packing import TokenIds
from embedtune.progress import SilentReporter
from embedtune.training.batch import batch_tokens, contrastive_batch
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from embedtune.training.microbatch import MicroBatch
from embedtune.training.plan import make_plan
from embedtune.training.selection import Measured

PAIRS = Pairs(
    query_ids=np.array([5, 2, 5, 7, 8]),
    passage_ids=np.array([30, 10, 20, 10, 40]),
    negative_ids=((), (60, 50), (50,), (30,), ()),
    row_ids=tuple("abcde"),
)
QRELS = {5: {30: 1.0, 20: 2.0, 99: 1.0}, 2: {10: 1.0}, 7: {10: 1.0, 60: 1.0}, 8: {40: 1.0}}


def test_each_text_of_a_batch_once() -> None:
    batch = contrastive_batch(PAIRS, np.array([0, 1, 2, 3]), QRELS)
    assert batch.query_ids.tolist() == [2, 5, 7]
    assert batch.passage_ids.tolist() == [10, 20, 30, 50, 60]
    assert batch.query_ids[batch.queries_Q].tolist() == [5, 2, 5, 7]
    assert batch.passage_ids[batch.positives_Q].tolist() == [30, 10, 20, 10]


def test_every_known_answer_is_marked() -> None:
    """Own positives, positives of other rows, and another row's hard negative that answers this one."""
    batch = contrastive_batch(PAIRS, np.array([0, 1, 2, 3]), QRELS)
    rows_A, columns_A = batch.answers_2A
    marked = sorted(zip(rows_A.tolist(), batch.passage_ids[columns_A].tolist(), strict=True))
    assert marked == [(0, 20), (0, 30), (1, 10), (2, 20), (2, 30), (3, 10), (3, 60)]


def test_a_question_with_more_answers_than_the_batch_has_passages() -> None:
    qrels = {**QRELS, 5: dict.fromkeys((20, 30, *range(1000, 3000)), 1.0)}
    batch = contrastive_batch(PAIRS, np.array([0, 4]), qrels)
    assert batch.passage_ids.tolist() == [30, 40]
    assert batch.answers_2A.tolist() == [[0, 1], [0, 1]]


@pytest.fixture
def texts(sentences: list[str]) -> tuple[list[str], list[str]]:
    """Two questions to a passage, of its first or last words."""
    passages = sentences[100:200]
    words = [passages[row // 2].split() for row in range(100)]
    return [" ".join(w[: len(w) // 2] if row % 2 else w[len(w) // 2 :]) for row, w in enumerate(words)], passages


def objective_of(
    encoder: Encoder,
    pairs: Pairs,
    qrels: Mapping[int, Mapping[int, float]],
    texts: tuple[list[str], list[str]],
    micro_batch: MicroBatch | None = None,
) -> ContrastiveObjective:
    return ContrastiveObjective(
        encoder=encoder,
        pairs=pairs,
        qrels=qrels,
        query_tokens=encoder.token_table(texts[0], "query"),
        passage_tokens=encoder.token_table(texts[1], "passage"),
        loss=build_loss(LossConfig()),
        micro_batch=micro_batch or MicroBatch(),
    )


def test_the_loss_is_that_of_the_embeddings_people_get(
    st_folder: Path,
    texts: tuple[list[str], list[str]],
    load: Callable[..., Encoder],
    adapt: Callable[..., PeftModel],
) -> None:
    """Before training, the plain model's: queries with their prompt, passages with theirs."""
    rows = np.array([0, 1, 2, 3])
    encoder = load(st_folder)
    objective = objective_of(encoder, PAIRS, QRELS, texts)
    loss, tokens = objective(rows)
    model = SentenceTransformer(str(st_folder), device="cpu")
    queries_QE = model.encode_query([texts[0][query] for query in PAIRS.query_ids[rows]], convert_to_tensor=True)
    passages = [10, 20, 30, 50, 60]
    passages_PE = model.encode_document([texts[1][passage] for passage in passages], convert_to_tensor=True)
    answers_2A = torch.tensor([[p in QRELS[int(q)] for p in passages] for q in PAIRS.query_ids[rows]]).nonzero().T
    expected = info_nce(queries_QE, passages_PE, torch.tensor([2, 0, 1, 0]), answers_2A)
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)
    distinct = [objective.query_tokens[query] for query in (2, 5, 7)]
    distinct += [objective.passage_tokens[passage] for passage in passages]
    assert tokens == sum(map(len, distinct))
    assert tokens == batch_tokens(PAIRS, rows, objective.query_tokens, objective.passage_tokens)

    adapted = adapt(encoder)
    objective(rows)[0].backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in adapted.parameters() if p.requires_grad)


def trainer_of(
    folder: Path,
    checkpoint: Path,
    texts: tuple[list[str], list[str]],
    load: Callable[..., Encoder],
    *,
    micro_batch_tokens: int | None = None,
    dropout: float = 0.1,
) -> Trainer:
    """All that a process does before it trains: load, attach, tokenise."""
    torch.manual_seed(0)
    encoder = load(checkpoint)
    attach_adapter(encoder, AdapterConfig(rank=4, alpha=8, dropout=dropout))
    rows = np.arange(100)
    pairs = Pairs(
        query_ids=rows, passage_ids=rows // 2, negative_ids=((),) * 100, row_ids=tuple(map(str, rows.tolist()))
    )
    qrels = {row: {row // 2: 1.0} for row in range(100)}
    config = TrainingConfig(lr=1e-2, batch_size=16, epochs=4, eval_steps=7)
    micro_batch = MicroBatch(micro_batch_tokens)
    objective = objective_of(encoder, pairs, qrels, texts, micro_batch)
    folder.mkdir(exist_ok=True)

    def evaluate() -> Measured:
        """How far the questions are closer to their passages than to others."""
        queries_QE, passages_PE = encoder.embed_all(objective.query_tokens), encoder.embed_all(objective.passage_tokens)
        scores_QP = queries_QE @ passages_PE[:50].T
        own_Q = scores_QP[torch.arange(100), torch.arange(100) // 2]
        return Measured({"ndcg@10": (own_Q.mean() - scores_QP.mean()).item()})

    return Trainer(
        model=encoder,
        objective=objective,
        evaluate=evaluate,
        pairs=pairs,
        config=config,
        plan=make_plan(config, 100),
        seed=0,
        checkpoints=Checkpoints(folder / "checkpoints", keep_last=2),
        log_folder=folder,
        reporter=SilentReporter(),
        micro_batch=micro_batch,
    )


def adapter(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


def test_an_encoder_learns(
    tmp_path: Path, st_folder: Path, texts: tuple[list[str], list[str]], load: Callable[..., Encoder]
) -> None:
    trainer = trainer_of(tmp_path / "run", st_folder, texts, load)
    progress = trainer.run(resume=False)
    assert progress.step == 28
    assert progress.best_metric > progress.evaluations[0]["ndcg@10"] + 0.05
    assert np.mean(progress.losses[-4:]) < np.mean(progress.losses[:4])
    assert trainer.evaluate().metrics["ndcg@10"] == pytest.approx(progress.best_metric, abs=1e-6)


@pytest.mark.parametrize("micro_batch_tokens", [None, 150])
def test_an_encoder_stopped_and_resumed_ends_as_if_it_had_never_stopped(
    micro_batch_tokens: int | None,
    tmp_path: Path,
    st_folder: Path,
    texts: tuple[list[str], list[str]],
    load: Callable[..., Encoder],
) -> None:
    def trainer(folder: str) -> Trainer:
        return trainer_of(tmp_path / folder, st_folder, texts, load, micro_batch_tokens=micro_batch_tokens)

    whole = trainer("whole")
    expected = whole.run(resume=False)

    plain, evaluations = trainer("stopped"), iter(range(100))

    def evaluate() -> Measured:
        if next(evaluations) == 2:
            signal.raise_signal(signal.SIGINT)
        return plain.evaluate()

    stopped = replace(plain, evaluate=evaluate)
    with pytest.raises(TrainingInterrupted, match="stopped at step 14 of 28"):
        stopped.run(resume=False)

    resumed = trainer("stopped")
    torch.manual_seed(99)
    progress = resumed.run(resume=True)
    assert progress.losses == expected.losses
    assert progress.evaluations == expected.evaluations
    ended, wanted = adapter(resumed), adapter(whole)
    assert all(torch.equal(ended[name], wanted[name]) for name in wanted)


def test_memory_that_runs_out_changes_nothing_but_the_micro_batch(
    tmp_path: Path, st_folder: Path, texts: tuple[list[str], list[str]], load: Callable[..., Encoder]
) -> None:
    """A machine that holds 300 tokens with their activations, and batches of about 600."""
    whole = trainer_of(tmp_path / "whole", st_folder, texts, load, dropout=0)
    expected = whole.run(resume=False)
    trainer = trainer_of(tmp_path / "short", st_folder, texts, load, dropout=0)
    encoder: Any = trainer.model
    embed, seen = encoder.embed, list[int]()

    def embed_with_little_memory(batch: Sequence[TokenIds]) -> Tensor:
        if torch.is_grad_enabled():
            seen.append(sum(map(len, batch)))
            if seen[-1] > 300:
                torch.empty(2**48, dtype=torch.uint8)
        embeddings: Tensor = embed(batch)
        return embeddings

    encoder.embed = embed_with_little_memory
    progress = trainer.run(resume=False)
    assert progress.micro_batch_tokens is not None
    assert progress.micro_batch_tokens <= 300
    assert max(seen[:10]) > 400
    assert max(seen[-10:]) <= 300
    assert progress.losses == pytest.approx(expected.losses, rel=2e-3)
    assert (progress.pairs, progress.tokens) == (expected.pairs, expected.tokens)
    ended, wanted = adapter(trainer), adapter(whole)
    for name, weight in wanted.items():
        assert (ended[name] - weight).norm() < 0.05 * weight.norm(), name
