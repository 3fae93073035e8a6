"""Every loss with a real encoder: whole and in micro-batches, and stopped and resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from embedtune.config import AdapterConfig, LossConfig, ModelConfig, TrainingConfig
from embedtune.data.collection import Collection, Pairs
from embedtune.data.prepare import Splits
from embedtune.errors import ConfigError, DataError, ModelError, TrainingInterrupted
from embedtune.loading import tokenize
from embedtune.losses.build import build_loss
from embedtune.losses.scale import LearnedScale
from embedtune.models.adapters import make_trainable
from embedtune.models.cross_encoder import load_cross_encoder
from embedtune.models.encoder import Encoder
from embedtune.progress import SilentReporter
from embedtune.trainer import build_trainer
from embedtune.training import teacher as teaching
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.guide import guide_table
from embedtune.training.loop import Trainer
from embedtune.training.microbatch import MicroBatch
from embedtune.training.objective import WithScale
from embedtune.training.selection import Measured
from embedtune.training.teacher import SCORES, taught


@pytest.fixture(scope="module")
def splits(sentences: list[str]) -> Splits:
    """Sixty rows; every third without negatives, the others with two."""
    rows = np.arange(60)
    negatives = tuple(() if row % 3 == 0 else ((row + 7) % 60, (row + 11) % 60) for row in range(60))
    pairs = Pairs(query_ids=rows, passage_ids=rows, negative_ids=negatives, row_ids=tuple(map(str, rows)))
    collection = Collection(
        queries=sentences[100:160], passages=sentences[200:260], qrels={row: {row: 1.0} for row in range(60)}
    )
    train, dev = pairs.select(np.arange(48)), pairs.select(np.arange(48, 60))
    return Splits(collection=collection, train=train, dev=dev, test=dev, dropped={})


@pytest.fixture(scope="module")
def teacher_folder(
    tmp_path_factory: pytest.TempPathFactory,
    bert_config: dict[str, Any],
    make_tokenizer: Callable[..., PreTrainedTokenizerFast],
) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(**bert_config)
        config.num_labels = 1
        model = BertForSequenceClassification(config)
    model.classifier.weight.data *= 20
    model.save_pretrained(folder)
    make_tokenizer(template=None).save_pretrained(folder)
    return folder


def with_scores(splits: Splits) -> Splits:
    scores = tuple((3.0, *(-0.1 * passage for passage in row)) if row else () for row in splits.train.negative_ids)
    return replace(splits, train=replace(splits.train, scores=scores))


LOSSES = [
    LossConfig(learn_scale=True, both_directions=True),
    LossConfig(distill="kl", distill_temperature=2.0),
    LossConfig(distill="margin-mse", distill_weight=0.1),
    LossConfig(matryoshka=(32, 16, 8), learn_scale=True),
    LossConfig(guide="self", guide_margin=0.05),
    LossConfig(guide="other", matryoshka=(32, 8), distill="kl", learn_scale=True),
]


@pytest.mark.parametrize("config", LOSSES)
def test_micro_batches_give_the_gradients_of_one_pass(
    config: LossConfig, st_folder: Path, splits: Splits, load: Callable[..., Encoder], adapt: Callable[..., Any]
) -> None:
    encoder, given = load(st_folder), with_scores(splits)
    pairs = given.train if config.distill != "none" else splits.train
    guide = None
    if config.guide == "other":
        model = ModelConfig(base=str(st_folder), device="cpu", precision="fp32")
        guide = guide_table(model, pairs, splits.collection, margin=0.1, reporter=SilentReporter())
    adapt(encoder)
    texts, scale = tokenize(encoder, splits.collection), LearnedScale(20.0)
    trained = [p for p in encoder.parameters() if p.requires_grad] + [scale.log_scale] * config.learn_scale

    def gradients(tokens: int | None) -> tuple[Tensor, list[Tensor]]:
        objective = ContrastiveObjective(
            encoder=encoder,
            pairs=pairs,
            qrels=splits.collection.qrels,
            query_tokens=texts.queries,
            passage_tokens=texts.passages,
            loss=build_loss(config, scale if config.learn_scale else None),
            guide=guide,
            micro_batch=MicroBatch(tokens),
        )
        encoder.zero_grad()
        scale.zero_grad()
        loss, _ = objective(np.arange(10))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach(), [p.grad.clone() for p in trained if p.grad is not None]

    (whole, wanted), (cached, found) = gradients(None), gradients(300)
    assert len(wanted) == len(trained)
    torch.testing.assert_close(cached, whole, rtol=1e-5, atol=1e-6)
    largest = max(gradient.abs().max().item() for gradient in wanted)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-5 * largest)


def trainer_of(
    folder: Path, checkpoint: Path, splits: Splits, loss: LossConfig, load: Callable[..., Encoder]
) -> Trainer:
    torch.manual_seed(0)
    encoder = load(checkpoint)
    make_trainable(encoder, AdapterConfig(rank=4, alpha=8, dropout=0.1))
    config = TrainingConfig(lr=1e-2, batch_size=16, max_steps=6, eval_steps=3, checkpoint_minutes=0)
    folder.mkdir(exist_ok=True)
    trainer = build_trainer(encoder, splits, tokenize(encoder, splits.collection), config, out=folder, loss=loss)

    def distance() -> Measured:
        """The further the adapter is from nothing, the better: the last weights are the ones that count."""
        far = sum(p.abs().sum().item() for n, p in encoder.named_parameters() if "lora_B" in n)
        return Measured({config.metric: far})

    return replace(trainer, evaluate=distance, worse=None)


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("learn_scale", [True, False])
def test_stopped_and_resumed_it_ends_as_if_it_had_never_stopped(
    learn_scale: bool,
    tmp_path: Path,
    st_folder: Path,
    teacher_folder: Path,
    splits: Splits,
    load: Callable[..., Encoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a teacher, whose scores are not made again."""
    loss = LossConfig(learn_scale=learn_scale, distill="kl", teacher=str(teacher_folder))
    whole = trainer_of(tmp_path / "whole", st_folder, splits, loss, load)
    expected = whole.run(resume=False)

    first = trainer_of(tmp_path / "stopped", st_folder, splits, loss, load)
    taken = iter(range(100))

    def objective(rows: Any) -> tuple[Tensor, int]:
        if next(taken) == 4:
            raise KeyboardInterrupt
        return first.objective(rows)

    with pytest.raises((KeyboardInterrupt, TrainingInterrupted)):
        replace(first, objective=objective).run(resume=False)
    assert (tmp_path / "stopped" / SCORES).is_file()

    monkeypatch.setattr(teaching, "load_cross_encoder", lambda _: pytest.fail("scored again"))
    resumed = trainer_of(tmp_path / "stopped", st_folder, splits, loss, load)
    torch.manual_seed(99)
    progress = resumed.run(resume=True)
    assert progress.losses == expected.losses
    assert progress.best_step == 6
    found, wanted = weights(resumed), weights(whole)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert ("scale.log_scale" in found) == learn_scale
    if isinstance(resumed.model, WithScale):
        assert resumed.model.scale().item() != pytest.approx(20.0, abs=1e-4)


def test_a_learned_scale_is_not_decayed(
    tmp_path: Path, st_folder: Path, splits: Splits, load: Callable[..., Encoder]
) -> None:
    from embedtune.training.optim import build_optimizer

    trainer = trainer_of(tmp_path / "run", st_folder, splits, LossConfig(learn_scale=True), load)
    assert isinstance(trainer.model, WithScale)
    optimizer = build_optimizer(trainer.model.parameters(), replace(trainer.config, weight_decay=0.5), trainer.plan)
    log_scale = trainer.model.scale.log_scale
    decays = [g["weight_decay"] for g in optimizer.param_groups if any(p is log_scale for p in g["params"])]
    assert decays == [0.0]


def test_the_teachers_scores_are_the_cross_encoders(teacher_folder: Path, splits: Splits, tmp_path: Path) -> None:
    config = LossConfig(distill="margin-mse", teacher=str(teacher_folder))
    model = ModelConfig(device="cpu")
    pairs, keep = taught(splits.train, splits.collection, config, model, folder=tmp_path, reporter=SilentReporter())
    reference = CrossEncoder(str(teacher_folder), device="cpu")
    passages, scores = splits.collection.passages, pairs.scores
    assert scores is not None
    assert scores[0] == ()
    own: Sequence[int] = (4, *splits.train.negative_ids[4])
    logits = torch.nn.Identity()
    texts: Any = [(splits.collection.queries[4], passages[passage]) for passage in own]
    np.testing.assert_allclose(scores[4], reference.predict(texts, activation_fn=logits), rtol=1e-4, atol=1e-5)
    assert keep is not None
    keep()
    again = taught(splits.train, splits.collection, config, model, folder=tmp_path, reporter=SilentReporter())
    assert again == (pairs, None)
    (tmp_path / SCORES).write_bytes(b"damaged")
    other = taught(splits.train, splits.collection, config, model, folder=tmp_path, reporter=SilentReporter())
    assert other.pairs.scores == pairs.scores
    assert other.keep is not None


def test_what_cannot_be_distilled_is_said(
    tmp_path: Path, st_folder: Path, splits: Splits, load: Callable[..., Encoder]
) -> None:
    bare = replace(splits, train=replace(splits.train, negative_ids=((),) * 48))
    with pytest.raises(DataError, match=r"no training row has any.\nGive a column `negative`"):
        trainer_of(tmp_path / "a", st_folder, bare, LossConfig(distill="kl", teacher="x"), load)
    with pytest.raises(DataError, match=r"the data has no scores.\nType:  --teacher MODEL"):
        trainer_of(tmp_path / "b", st_folder, splits, LossConfig(distill="kl"), load)


def test_sizes_are_held_against_the_models(
    tmp_path: Path, st_folder: Path, splits: Splits, load: Callable[..., Encoder]
) -> None:
    for sizes, problem in (((64, 8), "is more than"), ((16, 8), "leaves the full size out")):
        with pytest.raises(ConfigError, match=rf"{problem}(.|\n)*Type:  --matryoshka 32 "):
            trainer_of(tmp_path / "c", st_folder, splits, LossConfig(matryoshka=sizes), load)


def test_an_encoder_is_no_teacher(bare_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"--teacher \S+ is no cross-encoder: its config names BertModel"):
        load_cross_encoder(ModelConfig(base=str(bare_folder), device="cpu"))
