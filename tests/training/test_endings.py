"""How the step loop ends before its end: time that is over, memory that is out, numbers that are none."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]
from torch import Tensor, nn

from embedtune.config import LossConfig, TrainingConfig
from embedtune.data.collection import IdArray, Pairs
from embedtune.durations import parse_seconds
from embedtune.errors import ConfigError, NonFiniteLossError, RunError, StorageError, TrainingInterrupted
from embedtune.losses.build import build_loss
from embedtune.models.encoder import Encoder
from embedtune.progress import SilentReporter
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.contrastive import ContrastiveObjective
from embedtune.training.loop import Trainer
from embedtune.training.optim import build_optimizer
from embedtune.training.plan import make_plan
from embedtune.training.selection import Measured

ROWS = 24


class Line(nn.Module):
    """Fits a line through dropout, so that the random state matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(4, 1)
        self.x_NE = torch.randn(ROWS, 4)

    def loss(self, rows: IdArray) -> tuple[Tensor, int]:
        predicted_N = self.linear(nn.functional.dropout(self.x_NE[rows], 0.5))[:, 0]
        return (predicted_N - 1).square().mean(), 10


def make(folder: Path, model: Any, **options: Any) -> Trainer:
    fields = {"objective": model.loss, "evaluate": lambda: Measured({"ndcg@10": model.linear.bias.item()})}
    fields |= {name: options.pop(name) for name in ("objective", "evaluate", "not_finite") if name in options}
    config = TrainingConfig(**{"lr": 0.05, "batch_size": 4, "max_steps": 6, "eval_steps": 3, **options})
    rows = np.arange(ROWS)
    return Trainer(
        model=model,
        pairs=Pairs(query_ids=rows, passage_ids=rows, negative_ids=((),) * ROWS, row_ids=tuple(map(str, rows))),
        config=config,
        plan=make_plan(config, ROWS),
        seed=0,
        checkpoints=Checkpoints(folder / "checkpoints", keep_last=config.keep_last),
        log_folder=folder,
        reporter=SilentReporter(),
        **fields,
    )


def weights(trainer: Trainer) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder / "tensorboard")).Reload().Scalars(tag)
    return [(event.step, event.value) for event in events]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("25m", 1500), ("2h", 7200), ("1h30m", 5400), (" 1H2M3S ", 3723)]
)
def test_lengths_of_time(text: str, seconds: int) -> None:
    assert parse_seconds(text, option="max-time") == seconds


@pytest.mark.parametrize("text", ["", "25", "0m", "m", "1m1h", "-5m", "1.5h", "soon"])
def test_what_is_no_length_of_time(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"--max-time is '.*', expected a length of time such as 90s, 25m, 2h or 1h30m"
    ):
        TrainingConfig(max_time=text)


@pytest.mark.parametrize("where", ["steps", "evaluation"])
def test_when_its_time_is_over_a_run_has_stopped_and_goes_on_to_the_same_weights(where: str, tmp_path: Path) -> None:
    """Within the time, a checkpoint included; an evaluation that would take longer is not waited for."""
    whole = make(tmp_path / "whole", Line())
    progress = whole.run(resume=False)
    model, started = Line(), time.monotonic()

    def slow(rows: IdArray) -> tuple[Tensor, int]:
        time.sleep(0.4 if where == "steps" else 0)
        return model.loss(rows)

    def evaluate() -> Measured:
        if where == "evaluation" and len(list((tmp_path / "timed").glob("*/step-*"))) > 0:
            time.sleep(60)
        return Measured({"ndcg@10": model.linear.bias.item()})

    timed = make(tmp_path / "timed", model, objective=slow, evaluate=evaluate, max_time="3s")
    with pytest.raises(
        TrainingInterrupted, match=r"--max-time \ds: stopped at step \d of 6; everything is saved"
    ) as caught:
        timed.run(resume=False)
    assert caught.value.exit_code == 75
    assert time.monotonic() - started < 30  # on a busy machine; alone it is below the time given
    resumed = make(tmp_path / "timed", Line())
    assert resumed.run(resume=True).losses == progress.losses
    assert torch.equal(weights(resumed), weights(whole))
    for tag in ("train/loss", "train/lr", "dev/ndcg@10"):
        assert curve(tmp_path / "timed", tag) == curve(tmp_path / "whole", tag)


def test_checkpoints_by_the_clock_change_nothing(tmp_path: Path) -> None:
    often = make(tmp_path / "often", Line(), checkpoint_minutes=0.0, keep_last=9)
    losses = often.run(resume=False).losses
    seldom = make(tmp_path / "seldom", Line(), keep_last=9)
    assert seldom.run(resume=False).losses == losses
    assert torch.equal(weights(often), weights(seldom))
    assert often.checkpoints.steps() == [0, 1, 2, 3, 4, 5, 6]
    assert seldom.checkpoints.steps() == [0, 3, 6]


def test_steps_that_are_done_again_are_in_the_curves_once(tmp_path: Path) -> None:
    """Killed after step 5, with a checkpoint at step 3: events of steps 4 and 5 were written already."""
    whole = make(tmp_path / "whole", Line())
    whole.run(resume=False)
    model, calls = Line(), iter(range(1, 99))

    def dies(rows: IdArray) -> tuple[Tensor, int]:
        if next(calls) == 6:
            raise KeyboardInterrupt
        return model.loss(rows)

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "killed", model, objective=dies).run(resume=False)
    assert [step for step, _ in curve(tmp_path / "killed", "train/loss")] == [1, 2, 3, 4, 5]
    time.sleep(1.1)  # TensorBoard reads files in the order of their names, which tell seconds
    make(tmp_path / "killed", Line()).run(resume=True)
    for tag in ("train/loss", "train/lr", "dev/ndcg@10"):
        assert curve(tmp_path / "killed", tag) == curve(tmp_path / "whole", tag)


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    """The loss of the step that spoils them is finite: its gradient is not."""
    model, calls = Line(), iter(range(1, 99))

    def spoils(rows: IdArray) -> tuple[Tensor, int]:
        loss, tokens = model.loss(rows)
        if next(calls) == 2:
            loss = loss + (0 * model.linear.bias).sqrt().sum()  # whose derivative at zero is infinite
        return loss, tokens

    trainer = make(tmp_path, model, objective=spoils, checkpoint_minutes=0.0)
    with pytest.raises(
        NonFiniteLossError, match=r"the weights became NaN .* by step 2; the last good checkpoint is step 1"
    ):
        trainer.run(resume=False)
    assert trainer.checkpoints.steps() == [0, 1]
    assert weights(trainer).isfinite().all()


@pytest.mark.parametrize(
    ("named", "said"),
    [
        (["one", "two", "three", "four"], "\nIts weights make no finite embedding of:\n  'one'\n  'two'\n  'three'"),
        ([], "every text of that step embeds to finite numbers: the training diverged."),
    ],
)
def test_a_loss_that_is_no_number_is_said_to_come_from_texts(named: list[str], said: str, tmp_path: Path) -> None:
    model, asked = Line(), list[int]()

    def objective(rows: IdArray) -> tuple[Tensor, int]:
        loss, tokens = model.loss(rows)
        return loss * (math.nan if 3 in rows else 1), tokens

    def not_finite(rows: IdArray) -> list[str]:
        asked.extend(rows.tolist())
        return named

    with pytest.raises(NonFiniteLossError) as caught:
        make(tmp_path, model, objective=objective, not_finite=not_finite).run(resume=False)
    assert str(caught.value).endswith(said)
    assert len(asked) == 4
    assert 3 in asked


def test_texts_without_finite_embeddings_are_found(
    st_folder: Path, load: Callable[..., Encoder], sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, rows = load(st_folder), np.arange(4)
    objective = ContrastiveObjective(
        encoder=encoder,
        pairs=Pairs(query_ids=rows, passage_ids=rows, negative_ids=((),) * 4, row_ids=("a", "b", "c", "d")),
        qrels={},
        query_tokens=encoder.token_table(sentences[:4], "query"),
        passage_tokens=encoder.token_table(sentences[10:14], "passage"),
        loss=build_loss(LossConfig()),
    )
    assert objective.not_finite(rows) == []
    embed, bad = encoder.embed, objective.passage_tokens[2]

    def spoiled(texts: Any) -> Tensor:
        embeddings = embed(texts)
        return torch.where(torch.tensor([np.array_equal(t, bad) for t in texts])[:, None], math.inf, embeddings)

    monkeypatch.setattr(encoder, "embed", spoiled)
    found = objective.not_finite(rows)
    assert len(found) == 1
    assert sentences[12].split()[0] in found[0]


@pytest.mark.parametrize("where", ["moments", "step", "evaluation"])
def test_memory_that_runs_out_elsewhere_is_told(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Line()

    def out_of_memory(*_: Any, **__: Any) -> Any:
        torch.empty(2**48, dtype=torch.uint8)

    if where == "moments":
        monkeypatch.setattr("embedtune.training.optim.torch.zeros_like", out_of_memory)
        trainer = make(tmp_path, model)
        message = r"in the optimiser before the next step, .*there is no checkpoint yet\.\nType one or more of:  --opt"
    elif where == "step":
        monkeypatch.setattr(torch.optim.AdamW, "step", out_of_memory)
        trainer = make(tmp_path, model)
        message = (
            r"in the optimiser in step 1, .*the last good checkpoint is step 0\.\nType one or more of:  --optimizer"
        )
    else:
        trainer = make(tmp_path, model, evaluate=out_of_memory)
        message = (
            r"in the evaluation on the dev set at step 0; there is no checkpoint yet\.\nType:  a smaller --dev-corpus"
        )
    with pytest.raises(RunError, match=message):
        trainer.run(resume=False)


def test_moments_are_there_before_the_first_forward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after a checkpoint that has none, as those before the first step once were; to the same bits."""
    model, seen, optimizers = Line(), list[int](), list[torch.optim.Optimizer]()

    def build(*given: Any) -> torch.optim.Optimizer:
        optimizers.append(build_optimizer(*given))
        return optimizers[-1]

    def objective(rows: IdArray) -> tuple[Tensor, int]:
        seen.append(len(optimizers[-1].state))
        if len(optimizers) == 1:
            raise LookupError("no such row")
        return model.loss(rows)

    monkeypatch.setattr("embedtune.training.loop.build_optimizer", build)
    with monkeypatch.context() as before:
        before.setattr("embedtune.training.loop.allocate_moments", lambda optimizer: None)
        with pytest.raises(LookupError, match="no such row"):
            make(tmp_path / "stopped", model, objective=objective).run(resume=False)
    assert seen == [0]
    make(tmp_path / "stopped", model, objective=objective).run(resume=True)
    assert seen[1:] == [2] * 6
    resumed, model = model, Line()
    make(tmp_path / "whole", model).run(resume=False)
    assert torch.equal(resumed.linear.weight, model.linear.weight)


def test_a_checkpoint_that_cant_be_written_ends_the_run_with_the_last_one_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calls = Line(), iter(range(1, 99))

    def fills_the_disk(rows: IdArray) -> tuple[Tensor, int]:
        if next(calls) == 5:
            monkeypatch.setattr("os.fsync", full)
        return model.loss(rows)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(
        StorageError, match=r"step-00000006 can't be written: No space .*\nThe last good checkpoint is step 3"
    ):
        make(tmp_path, model, objective=fills_the_disk).run(resume=False)
    monkeypatch.undo()
    whole = make(tmp_path / "whole", Line())
    whole.run(resume=False)
    resumed = make(tmp_path, Line())
    resumed.run(resume=True)
    assert torch.equal(weights(resumed), weights(whole))


def test_a_signal_while_the_last_checkpoint_is_written_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make(tmp_path, Line())
    save = Checkpoints.save

    def interrupted(checkpoints: Checkpoints, trained: Any, progress: Any) -> None:
        if progress.step == 6:
            signal.raise_signal(signal.SIGTERM)
        save(checkpoints, trained, progress)

    monkeypatch.setattr(Checkpoints, "save", interrupted)
    with pytest.raises(TrainingInterrupted, match="checkpoints are saved") as caught:
        trainer.run(resume=False)
    assert caught.value.exit_code == 143
    assert trainer.checkpoints.steps()[-1] == 6
