"""The step loop: what is trained, which checkpoint wins, when it stops, and that it can go on."""

from __future__ import annotations

import math
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from embedtune.config import TrainingConfig
from embedtune.data.batches import BatchOrder
from embedtune.data.collection import IdArray, Pairs
from embedtune.errors import NonFiniteLossError, RunError, TrainingInterrupted
from embedtune.progress import SilentReporter
from embedtune.training import loop
from embedtune.training.checkpoint import Checkpoints
from embedtune.training.loop import Trainer
from embedtune.training.microbatch import MicroBatch
from embedtune.training.plan import make_plan
from embedtune.training.selection import Measured

MakeTrainer = Callable[..., Trainer]


ROWS = 24


class Toy(nn.Module):
    """Fits a line through dropout, so that the random state matters."""

    def __init__(self, dropout: float = 0.5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(4, 1)
        generator = torch.Generator().manual_seed(0)
        self.x_NE = torch.randn(ROWS, 4, generator=generator)
        self.y_N = torch.randn(ROWS, generator=generator)

    def loss(self, rows: IdArray) -> tuple[Tensor, int]:
        """The objective: mean squared error of the rows, "tokens" of 10 a row."""
        predicted_N = self.linear(self.dropout(self.frozen(self.x_NE[rows])))[:, 0]
        return (predicted_N - self.y_N[rows]).square().mean(), 10 * len(rows)


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    """A trainer of a fresh toy, or of `model`, that writes into `folder`; `settings` are the config's."""

    def make(
        *,
        model: Any = None,
        evaluate: Callable[[], Mapping[str, float]] | None = None,
        folder: str = "run",
        reporter: Any = None,
        objective: Callable[[IdArray], tuple[Tensor, int]] | None = None,
        micro_batch: MicroBatch | None = None,
        **settings: Any,
    ) -> Trainer:
        model = model or Toy()
        config = TrainingConfig(**{"lr": 0.05, "batch_size": 4, "epochs": 2, "eval_steps": 3, **settings})
        pairs = Pairs(
            query_ids=np.arange(ROWS),
            passage_ids=np.arange(ROWS),
            negative_ids=((),) * ROWS,
            row_ids=tuple(map(str, range(ROWS))),
        )
        root = tmp_path / folder
        root.mkdir(exist_ok=True)
        return Trainer(
            model=model,
            objective=objective or model.loss,
            evaluate=lambda: Measured(evaluate() if evaluate else {"ndcg@10": model.linear.weight.sum().item()}),
            pairs=pairs,
            config=config,
            plan=make_plan(config, ROWS, mining=bool(config.mined_epochs)),
            seed=5,
            checkpoints=Checkpoints(root / "checkpoints", keep_last=config.keep_last),
            log_folder=root,
            reporter=reporter or SilentReporter(),
            micro_batch=micro_batch,
        )

    return make


@pytest.fixture(params=[0, 1], ids=["read at once", "read a step late"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are read as on the CPU, or as on a GPU."""
    monkeypatch.setitem(loop.UNREAD_STEPS, "cpu", request.param)


def scripted(metrics: list[float]) -> Callable[[], Mapping[str, float]]:
    """An evaluation that gives these values of the metric, one after another."""
    values = iter(metrics)
    return lambda: {"ndcg@10": next(values)}


@contextmanager
def recorded_gradients() -> Iterator[list[list[Tensor]]]:
    """The gradients that each optimiser step was taken with."""
    seen: list[list[Tensor]] = []

    def record(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        seen.append([p.grad.clone() for p in parameters])

    handle = register_optimizer_step_pre_hook(record)
    try:
        yield seen
    finally:
        handle.remove()


def weights(trainer: Trainer) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in trainer.model.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_a_run_learns_and_counts(make_trainer: MakeTrainer) -> None:
    model = Toy(dropout=0.0)
    trainer = make_trainer(
        model=model, epochs=10, eval_steps=100, evaluate=lambda: {"ndcg@10": -model.loss(np.arange(24))[0].item()}
    )
    frozen = model.frozen.weight.clone()
    progress = trainer.run(resume=False)
    assert progress.step == trainer.plan.steps == 60
    assert progress.pairs == 240
    assert progress.tokens == 2400
    assert progress.seconds > 0
    assert len(progress.losses) == 60
    assert torch.equal(model.frozen.weight, frozen)
    assert [entry["step"] for entry in progress.evaluations] == [0, 60]
    assert progress.evaluations[1]["ndcg@10"] > progress.evaluations[0]["ndcg@10"] + 0.1


def test_every_row_once_an_epoch(make_trainer: MakeTrainer) -> None:
    model, seen = Toy(), list[int]()

    def objective(rows: IdArray) -> tuple[Tensor, int]:
        seen.extend(rows.tolist())
        loss: tuple[Tensor, int] = model.loss(rows)
        return loss

    make_trainer(model=model, objective=objective).run(resume=False)
    assert sorted(seen[:24]) == sorted(seen[24:]) == list(range(24))
    assert seen[:24] != seen[24:]


def test_the_best_checkpoint_wins(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(keep_last=9, evaluate=scripted([0.1, 0.3, 0.9, 0.9, 0.5]))
    progress = trainer.run(resume=False)
    assert (progress.step, progress.best_step, progress.best_metric) == (12, 6, 0.9)
    assert trainer.checkpoints.steps() == [0, 3, 6, 9, 12]
    at_the_end = weights(trainer)
    for step in (0, 3, 9, 12):
        trainer.checkpoints.load_weights(step, trainer.model)
        assert not same(weights(trainer), at_the_end)
    trainer.checkpoints.load_weights(6, trainer.model)
    assert same(weights(trainer), at_the_end)


def test_where_weights_are_averaged_their_mean_is_measured_and_kept(make_trainer: MakeTrainer) -> None:
    model, seen, measured = Toy(), list[Tensor](), list[Tensor]()

    def evaluate() -> Mapping[str, float]:
        measured.append(model.linear.weight.detach().clone())
        return {"ndcg@10": float(len(measured))}

    trainer = make_trainer(model=model, evaluate=evaluate, epochs=1, mined_epochs=1, averaging="swa")
    hook = register_optimizer_step_post_hook(lambda *_: seen.append(model.linear.weight.detach().clone()))
    try:
        trainer.run(resume=False)
    finally:
        hook.remove()
    first, averaged = trainer.plan.phases
    assert (first.steps, averaged.steps, averaged.averaged) == (6, 6, True)
    assert torch.equal(measured[2], seen[5]), "before the mean is begun"
    torch.testing.assert_close(measured[3], torch.stack(seen[6:9]).mean(0))
    torch.testing.assert_close(measured[4], torch.stack(seen[6:12]).mean(0))
    assert torch.equal(model.linear.weight, measured[4])


def judged(make_trainer: MakeTrainer, values: list[list[float]], **settings: Any) -> Trainer:
    """A trainer whose evaluations give these items, for which a mean that is less by more than .15 is worse."""
    items = iter(values)

    def evaluate() -> Measured:
        found = next(items)
        return Measured({"ndcg@10": float(np.mean(found))}, found)

    def worse(one: Sequence[float], other: Sequence[float]) -> bool:
        return float(np.mean(other) - np.mean(one)) > 0.15

    return replace(make_trainer(keep_last=9, **settings), evaluate=evaluate, worse=worse)


@pytest.mark.parametrize(
    ("means", "kept"),
    [
        ([0.1, 0.3, 0.9, 0.8, 0.8], 12),  # within noise of the best, so the latest
        ([0.1, 0.3, 0.9, 0.8, 0.6], 9),  # the last one is not
        ([0.1, 0.3, 0.9, 0.6, 0.6], 6),
        ([0.5, 0.45, 0.4, 0.5, 0.5], 0),  # nothing is above the start
        ([0.5, 0.45, 0.55, 0.5, 0.5], 12),  # something was
        ([0.1, 0.5, 0.4, 0.36, 0.3], 9),  # each is held against the best and not against the one before
    ],
)
def test_the_latest_that_is_not_worse_than_the_best_counts(
    means: list[float], kept: int, make_trainer: MakeTrainer
) -> None:
    trainer = judged(make_trainer, [[mean - 0.01, mean + 0.01] for mean in means])
    progress = trainer.run(resume=False)
    assert [entry["step"] for entry in progress.evaluations] == [0, 3, 6, 9, 12]
    assert progress.best_step == kept
    assert progress.best_metric == pytest.approx(means[kept // 3])
    assert progress.highest_metric == pytest.approx(max(means))
    model = Toy()
    trainer.checkpoints.load_weights(kept, model)
    assert torch.equal(model.linear.weight, trainer.model.get_parameter("linear.weight"))


def test_a_gain_within_noise_does_not_make_patience_wait(make_trainer: MakeTrainer) -> None:
    values = [[mean] for mean in (0.1, 0.5, 0.45, 0.45, 0.45)]
    progress = judged(make_trainer, values, eval_steps=1, patience=2).run(resume=False)
    assert (progress.step, progress.best_step) == (3, 3)


def test_dev_metrics_that_are_known_are_not_measured_again(make_trainer: MakeTrainer) -> None:
    calls = list[int]()

    def evaluate() -> Mapping[str, float]:
        calls.append(1)
        return {"ndcg@10": 0.5}

    trainer = replace(make_trainer(evaluate=evaluate), start=Measured({"ndcg@10": 0.25}))
    progress = trainer.run(resume=False)
    assert progress.evaluations[0] == {"step": 0, "ndcg@10": 0.25}
    assert len(calls) == len(progress.evaluations) - 1
    assert progress.best_step == 3


def test_training_that_never_helps_leaves_the_model_as_it_was(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(keep_last=2, evaluate=scripted([0.9, 0.1, 0.2, 0.3, 0.4]))
    before = weights(trainer)
    progress = trainer.run(resume=False)
    assert progress.best_step == 0
    assert same(weights(trainer), before)
    assert trainer.checkpoints.steps() == [0, 9, 12]


def test_there_is_an_evaluation_after_the_last_step(make_trainer: MakeTrainer) -> None:
    progress = make_trainer(eval_steps=5).run(resume=False)
    assert [entry["step"] for entry in progress.evaluations] == [0, 5, 10, 12]


def test_patience_stops_early(make_trainer: MakeTrainer) -> None:
    metrics = [0.1, 0.5, 0.4, 0.6, 0.6, 0.3, 0.9]
    progress = make_trainer(eval_steps=1, patience=2, evaluate=scripted(metrics)).run(resume=False)
    assert (progress.step, progress.best_step) == (5, 3)
    progress = make_trainer(eval_steps=1, max_steps=6, evaluate=scripted(metrics), folder="on").run(resume=False)
    assert (progress.step, progress.best_step) == (6, 6)


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(("step", "good"), [(1, 0), (5, 3), (6, 3), (12, 9)])
def test_a_loss_that_is_no_number_stops_the_run(step: int, good: int, bad: float, make_trainer: MakeTrainer) -> None:
    """Nothing of that step is evaluated or saved; the model is what the last checkpoint holds."""
    model, calls, evaluated = Toy(), iter(range(1, 100)), list[float]()

    def objective(rows: IdArray) -> tuple[Tensor, int]:
        loss, tokens = model.loss(rows)
        return loss * (bad if next(calls) == step else 1), tokens

    def evaluate() -> Mapping[str, float]:
        evaluated.append(model.linear.weight.sum().item())
        return {"ndcg@10": evaluated[-1]}

    trainer = make_trainer(model=model, objective=objective, evaluate=evaluate)
    message = rf"the loss became {bad} at step {step} .*the last good checkpoint is step {good}\.\nTry a lower --lr"
    with pytest.raises(NonFiniteLossError, match=message):
        trainer.run(resume=False)
    assert len(evaluated) == 1 + good // 3
    assert all(map(math.isfinite, evaluated))
    assert trainer.checkpoints.steps()[-1] == good
    at_the_end = weights(trainer)
    assert all(parameter.isfinite().all() for parameter in at_the_end)
    trainer.checkpoints.load_weights(good, model)
    assert same(weights(trainer), at_the_end)


@pytest.mark.usefixtures("reading")
def test_when_losses_are_read_changes_nothing(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer(accumulate=2, patience=1, evaluate=scripted([0.1, 0.5, 0.2]), eval_steps=2)
    progress = trainer.run(resume=False)
    monkeypatch.setitem(loop.UNREAD_STEPS, "cpu", 0)
    other = make_trainer(accumulate=2, patience=1, evaluate=scripted([0.1, 0.5, 0.2]), eval_steps=2, folder="other")
    expected = other.run(resume=False)
    assert len(progress.losses) == progress.step == 4
    assert progress.losses == expected.losses
    assert same(weights(trainer), weights(other))


class Hungry:
    """A toy's loss on a machine that holds that many tokens at a time: it fails late, having done all its work."""

    def __init__(self, model: Toy, micro_batch: MicroBatch, *, room: int) -> None:
        self.model, self.micro_batch, self.room = model, micro_batch, room
        self.tried: list[int] = []

    def __call__(self, rows: IdArray) -> tuple[Tensor, int]:
        self.micro_batch.largest, self.micro_batch.longest = self.micro_batch.tokens or 5_000, 10
        self.tried.append(self.micro_batch.largest)
        loss, tokens = self.model.loss(rows)
        if self.micro_batch.largest > self.room:
            torch.autograd.backward(loss * 3)
            torch.empty(2**48, dtype=torch.uint8)
        return loss, tokens


class Listens(SilentReporter):
    """Remembers what the user is warned of."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_a_step_without_memory_is_repeated_with_less_at_a_time(make_trainer: MakeTrainer) -> None:
    whole = make_trainer(folder="whole", accumulate=2)
    expected = whole.run(resume=False)
    model, size, reporter = Toy(), MicroBatch(), Listens()
    objective = Hungry(model, size, room=1_300)
    trainer = make_trainer(model=model, objective=objective, micro_batch=size, reporter=reporter, accumulate=2)
    progress = trainer.run(resume=False)
    assert reporter.warnings == [
        "memory ran out with 5,000 tokens at a time; the step is repeated with 2,500",
        "memory ran out with 2,500 tokens at a time; the step is repeated with 1,250",
    ]
    assert objective.tried == [5_000, 2_500] + 12 * [1_250]
    assert same(weights(trainer), weights(whole))
    assert progress.losses == expected.losses
    assert (progress.pairs, progress.tokens) == (expected.pairs, expected.tokens)


def test_a_resumed_run_remembers_how_much_went_through_at_a_time(make_trainer: MakeTrainer) -> None:
    model, size = Toy(), MicroBatch(5_000)
    make_trainer(model=model, objective=Hungry(model, size, room=1_300), micro_batch=size, max_steps=3).run(
        resume=False
    )
    for given, expected in ((5_000, 1_250), (None, 1_250), (700, 700)):
        model, size = Toy(), MicroBatch(given)
        objective = Hungry(model, size, room=1_300)
        trainer = make_trainer(model=model, objective=objective, micro_batch=size, max_steps=4)
        for step in trainer.checkpoints.steps()[1:]:
            if step > 3:
                shutil.rmtree(trainer.checkpoints.path(step))
        trainer.run(resume=True)
        assert objective.tried == [expected]


def test_without_memory_for_the_least_there_is_the_run_says_what_to_type(make_trainer: MakeTrainer) -> None:
    model, size = Toy(), MicroBatch()
    trainer = make_trainer(model=model, objective=Hungry(model, size, room=100), micro_batch=size)
    with pytest.raises(
        RunError, match=r"with only 256 tokens at a time\.\nType one or more of:  --gradient-checkpoint"
    ):
        trainer.run(resume=False)
    assert trainer.checkpoints.steps() == [0]


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_trainer: MakeTrainer) -> None:
    def objective(rows: IdArray) -> tuple[Tensor, int]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        make_trainer(objective=objective, micro_batch=MicroBatch(5_000)).run(resume=False)


def test_accumulated_gradients_are_the_mean_of_their_batches(make_trainer: MakeTrainer) -> None:
    model = Toy(dropout=0.0)
    trainer = make_trainer(model=model, accumulate=2, max_steps=3, max_grad_norm=0)
    start = model.linear.weight.detach().clone(), model.linear.bias.detach().clone()
    with recorded_gradients() as seen:
        progress = trainer.run(resume=False)
    assert (len(seen), progress.pairs) == (3, 3 * 2 * 4)
    order = BatchOrder(trainer.pairs, batch_size=4, seed=5)
    with torch.no_grad():
        model.linear.weight.copy_(start[0])
        model.linear.bias.copy_(start[1])
    losses = [model.loss(order[number])[0] for number in (0, 1)]
    expected = torch.autograd.grad((losses[0] + losses[1]) / 2, (model.linear.weight, model.linear.bias))
    torch.testing.assert_close(tuple(seen[0]), expected)
    assert progress.losses[0] == pytest.approx((losses[0] + losses[1]).item() / 2)


@pytest.mark.parametrize(("limit", "clipped"), [(0.01, True), (1e6, False), (0, False)])
def test_large_gradients_are_scaled_down(limit: float, clipped: bool, make_trainer: MakeTrainer) -> None:
    with recorded_gradients() as seen:
        make_trainer(max_grad_norm=limit, max_steps=3).run(resume=False)
    norms = [torch.cat([gradient.flatten() for gradient in gradients]).norm().item() for gradients in seen]
    assert len(norms) == 3
    assert all(norm == pytest.approx(0.01, rel=1e-3) for norm in norms) if clipped else min(norms) > 0.02


@pytest.mark.usefixtures("reading")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("evaluation", [0, 1, 2])
def test_a_stopped_run_goes_on_to_the_same_weights(
    evaluation: int, number: signal.Signals, make_trainer: MakeTrainer
) -> None:
    """Stopped during an evaluation: before the first step, half-way, or just before the end."""
    whole = make_trainer(folder="whole")
    whole_progress = whole.run(resume=False)

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    model, evaluations = Toy(), iter(range(100))

    def evaluate() -> Mapping[str, float]:
        if next(evaluations) == evaluation:
            signal.raise_signal(number)
        return {"ndcg@10": model.linear.weight.sum().item()}

    stopped = make_trainer(model=model, evaluate=evaluate, folder="stopped")
    steps = 3 * evaluation
    with pytest.raises(TrainingInterrupted, match=f"stopped at step {steps} of 12; everything is saved") as caught:
        stopped.run(resume=False)
    assert caught.value.exit_code == {signal.SIGINT: 130, signal.SIGTERM: 143}[number]
    assert {number: signal.getsignal(number) for number in handlers} == handlers
    assert stopped.checkpoints.steps()[-1] == steps

    torch.manual_seed(1234)
    resumed = make_trainer(folder="stopped")
    progress = resumed.run(resume=True)
    assert same(weights(resumed), weights(whole))
    assert progress.losses == whole_progress.losses
    assert progress.evaluations == whole_progress.evaluations
    assert (progress.step, progress.pairs, progress.tokens) == (12, whole_progress.pairs, whole_progress.tokens)


def test_a_crashed_run_goes_on_from_its_last_checkpoint(make_trainer: MakeTrainer) -> None:
    whole = make_trainer(folder="whole")
    whole_progress = whole.run(resume=False)

    class Crash(SilentReporter):
        def training(self, *, done: int, steps: int) -> Any:
            @contextmanager
            def opened() -> Iterator[Any]:
                class Reporting:
                    def step(self, *, step: int, **_: Any) -> None:
                        if step == 8:
                            raise OSError("the terminal went away")

                    def evaluated(self, **_: Any) -> None: ...

                yield Reporting()

            return opened()

    crashed = make_trainer(folder="crashed", reporter=Crash())
    with pytest.raises(OSError, match="the terminal went away"):
        crashed.run(resume=False)
    assert crashed.checkpoints.steps()[-1] == 6
    resumed = make_trainer(folder="crashed")
    progress = resumed.run(resume=True)
    assert same(weights(resumed), weights(whole))
    assert progress.losses == whole_progress.losses


def test_a_second_signal_is_not_held_back(make_trainer: MakeTrainer, request: pytest.FixtureRequest) -> None:
    # A shell starts what it puts in the background with SIGINT ignored.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def objective(rows: IdArray) -> tuple[Tensor, int]:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was held back")

    with pytest.raises(KeyboardInterrupt):
        make_trainer(objective=objective).run(resume=False)


def test_resuming_a_finished_run_trains_no_further(make_trainer: MakeTrainer) -> None:
    first = make_trainer()
    progress = first.run(resume=False)
    second = make_trainer()
    assert second.run(resume=True) == progress
    assert same(weights(second), weights(first))


def test_resuming_before_the_first_checkpoint_starts_anew(make_trainer: MakeTrainer) -> None:
    fresh = make_trainer(folder="one")
    fresh.run(resume=False)
    resumed = make_trainer(folder="two")
    resumed.run(resume=True)
    assert same(weights(resumed), weights(fresh))


def test_the_reporter_hears_of_every_step(make_trainer: MakeTrainer) -> None:
    heard: list[tuple[Any, ...]] = []

    class Listener(SilentReporter):
        def training(self, *, done: int, steps: int) -> Any:
            heard.append(("training", done, steps))

            @contextmanager
            def opened() -> Iterator[Any]:
                class Reporting:
                    def step(self, *, step: int, loss: float, lr: float, pairs_per_second: float) -> None:
                        assert loss > 0
                        assert lr >= 0
                        assert pairs_per_second > 0
                        heard.append(("step", step))

                    def evaluated(self, *, step: int, metric: str, value: float, best: bool) -> None:
                        heard.append((metric, step, value, best))

                yield Reporting()

            return opened()

    values = iter([0.5, 0.4, 0.6])
    make_trainer(
        reporter=Listener(),
        max_steps=3,
        eval_steps=2,
        metric="mrr@10",
        evaluate=lambda: {"ndcg@10": 0.0, "mrr@10": next(values)},
    ).run(resume=False)
    assert heard == [
        ("training", 0, 3),
        ("mrr@10", 0, 0.5, True),
        ("step", 1),
        ("step", 2),
        ("mrr@10", 2, 0.4, False),
        ("step", 3),
        ("mrr@10", 3, 0.6, True),
    ]


def test_tensorboard_files_hold_the_curves(make_trainer: MakeTrainer) -> None:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    trainer = make_trainer()
    progress = trainer.run(resume=False)
    events = EventAccumulator(str(trainer.log_folder / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("train/loss")]
    assert losses == pytest.approx(progress.losses)
    assert [event.step for event in events.Scalars("dev/ndcg@10")] == [0, 3, 6, 9, 12]
    assert len(events.Scalars("train/lr")) == 12
