"""A search as its user meets it: what it writes, that its trials are independent, and that it loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embedtune.config import (
    AdapterConfig,
    DataConfig,
    EvaluationConfig,
    LossConfig,
    ModelConfig,
    OutputConfig,
    TrainingConfig,
)
from embedtune.config.tuning import TuneConfig, TuningConfig
from embedtune.config_file import load_toml, to_toml
from embedtune.data.prepare import prepare
from embedtune.errors import (
    ConfigError,
    DataError,
    NonFiniteLossError,
    OutputError,
    StorageError,
    TrainingInterrupted,
    UserError,
)
from embedtune.export.run_folder import RunLock
from embedtune.loading import load, tokenize
from embedtune.measuring import dev_set
from embedtune.models.encoder import Encoder
from embedtune.pipeline import train
from embedtune.progress import SilentReporter
from embedtune.training.advice import Advice
from embedtune.training.signals import StopRequest

pytest.importorskip("optuna")

from embedtune.tuning import trials as trials_module
from embedtune.tuning.search import tune
from embedtune.tuning.space import with_values
from embedtune.tuning.study import Asked
from embedtune.tuning.trial import Material, train_once
from embedtune.tuning.trials import Trials


class Interrupts(SilentReporter):
    """Does something when a stage begins."""

    def __init__(self, at: str, action: Callable[[], None]) -> None:
        self._at, self._action = at, action

    def stage(self, title: str) -> None:
        if title.startswith(self._at):
            self._action()


@pytest.fixture(scope="module")
def config(pairs_file: Path, st_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneConfig:
    return TuneConfig(
        data=DataConfig(train=str(pairs_file), near_duplicates=0.0, dev_fraction=0.3),
        model=ModelConfig(base=str(st_folder), device="cpu", precision="fp32"),
        adapter=AdapterConfig(rank=4),
        training=TrainingConfig(epochs=0.6, batch_size=16, lr=0.01, metric="map@100"),
        tuning=TuningConfig(dials=("lr", "batch-size", "rank"), trials=4),
        output=OutputConfig(out=tmp_path_factory.mktemp("searches") / "search"),
    )


@pytest.fixture(scope="module")
def searched(config: TuneConfig) -> tuple[TuneConfig, dict[str, Any]]:
    """A finished search of four trials."""
    return config, tune(config)


def to(config: TuneConfig, out: Path, *, resume: bool = False, **tuning: Any) -> TuneConfig:
    return replace(
        config, tuning=replace(config.tuning, **tuning), output=replace(config.output, out=out, resume=resume)
    )


def copy_of(searched: tuple[TuneConfig, dict[str, Any]], out: Path) -> TuneConfig:
    config, _ = searched
    shutil.copytree(config.output.out, out)
    return to(config, out, resume=True)


def timeless(trials: Any) -> list[dict[str, Any]]:
    return [{**trial, "seconds": None} for trial in trials]


def test_the_default_recipe_is_first_and_the_best_is_no_worse(searched: tuple[TuneConfig, dict[str, Any]]) -> None:
    config, summary = searched
    trials = summary["trials"]
    assert trials[0]["values"] == {"lr": 0.01, "batch-size": 16, "rank": 4}
    assert summary["default"] == trials[0]
    assert summary["best"]["metric"] == max(trial["metric"] for trial in trials if trial["metric"] is not None)
    assert summary["gain"] == summary["best"]["metric"] - trials[0]["metric"] >= 0
    repeat = summary["repeats"][0]
    assert (repeat["seed"], repeat["values"]) == (1, trials[0]["values"])
    assert repeat["dev"] != trials[0]["dev"]
    assert repeat["dev"][0] == trials[0]["dev"][0]  # the base model, asked the same
    assert summary["noise"] == abs(repeat["metric"] - trials[0]["metric"])
    lines = [json.loads(line) for line in (config.output.out / "trials.jsonl").read_text().splitlines()]
    assert lines == [*trials, repeat]
    assert all(trial["steps"] > 0 and trial["seconds"] > 0 for trial in lines)
    assert not list(config.output.out.glob(".trial*"))


def test_the_best_config_trains_to_the_same_dev_metric(
    searched: tuple[TuneConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config, summary = searched
    best = load_toml(config.output.out / "best.toml")
    assert best.training.lr == summary["best"]["values"]["lr"]
    results = train(replace(best, output=replace(best.output, out=tmp_path / "run")))
    assert [one["map@100"] for one in results["train"]["dev"]] == summary["best"]["dev"]


def test_a_trial_alone_gives_what_it_gave_after_others(
    searched: tuple[TuneConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """Bit for bit: no weight, no random number and no gradient of an earlier trial is left in it."""
    config, summary = searched
    last = next(trial for trial in reversed(summary["trials"]) if trial["state"] == "finished")
    assert last["number"] > 0
    splits = prepare(config.data, seed=0)
    texts = tokenize(load(config.model, SilentReporter()), splits.collection)
    dev = dev_set(splits, texts, config.training, seed=0)
    seen = list[float]()
    progress = train_once(
        with_values(config, last["values"], seed=0),
        Material(splits, texts, dev, Advice(splits.train, None, None)),
        tmp_path,
        watch=lambda step, metric: seen.append(metric),
        stop=StopRequest(),
        reporter=SilentReporter(),
    )
    assert seen == last["dev"]
    assert len(set(seen)) > 2
    assert (progress.best_metric, progress.step) == (last["metric"], last["steps"])


def test_each_trial_is_one_training_whatever_the_recipe(
    config: TuneConfig, searched: tuple[TuneConfig, dict[str, Any]], tmp_path: Path
) -> None:
    """The settings found are for as many as the recipe has."""
    thorough = replace(config, training=replace(config.training, recipe="thorough", averaging="none"))
    found = tune(to(thorough, tmp_path / "out", trials=1, repeats=0))
    assert timeless(found["trials"]) == timeless(searched[1]["trials"])[:1]
    assert load_toml(tmp_path / "out" / "best.toml").training.trainings == 3


def test_the_test_split_is_not_embedded(config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded, pack = set[tuple[int, ...]](), Encoder._pack

    def recorded(self: Encoder, texts: Any) -> Any:
        embedded.update(tuple(text) for text in texts)
        return pack(self, texts)

    monkeypatch.setattr(Encoder, "_pack", recorded)
    tune(to(config, tmp_path / "out", trials=1, repeats=0))
    splits = prepare(config.data, seed=0)
    texts = tokenize(load(config.model, SilentReporter()), splits.collection)
    of_test = {tuple(texts.queries[query]) for query in splits.test.query_ids}
    of_test |= {tuple(texts.passages[passage]) for passage in splits.test.passage_ids}
    of_dev = {tuple(texts.queries[query]) for query in splits.dev.query_ids}
    assert of_dev <= embedded
    assert not of_test & embedded


def test_more_trials_later_are_those_of_one_search(searched: tuple[TuneConfig, dict[str, Any]], tmp_path: Path) -> None:
    config, whole = searched
    tune(to(config, tmp_path / "out", trials=2))
    moved = replace(config, training=replace(config.training, lr=None, batch_size=None))
    again = tune(to(moved, tmp_path / "out", resume=True, dials=()))
    assert timeless(again["trials"]) == timeless(whole["trials"])
    assert timeless(again["repeats"]) == timeless(whole["repeats"])


@pytest.fixture
def graded(config: TuneConfig, sentences: list[str], tmp_path: Path) -> TuneConfig:
    """A search on sentences that share more or fewer of their words, with everything else left open."""
    rows = []
    for number in range(120):
        words, shared = sentences[number].split(), number % 5
        other = [*words[: shared + 1], *sentences[number + 150].split()[shared:]]
        rows.append({"sentence1": " ".join(words), "sentence2": " ".join(other), "score": shared})
    (tmp_path / "sts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return replace(
        to(config, tmp_path / "graded", dials=(), trials=2),
        data=DataConfig(train=str(tmp_path / "sts.jsonl"), near_duplicates=0.0, dev_fraction=0.3),
        training=TrainingConfig(),
    )


def test_graded_pairs_are_searched_by_the_order_of_their_grades(graded: TuneConfig, tmp_path: Path) -> None:
    summary = tune(graded)
    assert [dial["name"] for dial in summary["dials"]] == ["lr", "batch-size", "epochs", "scale"]
    first, second = summary["trials"]
    assert first["values"]["scale"] == 20.0
    assert first["dev"][0] == second["dev"][0]  # Spearman's correlation of the base, on the same pairs
    assert first["dev"][1:] != second["dev"][1:]
    pairs = len((graded.output.out / "splits" / "dev.jsonl").read_text().splitlines())
    assert (summary["metric"], summary["dev_items"]) == ("spearman", pairs)
    assert "question" not in (graded.output.out / "tune.html").read_text()
    best = load_toml(graded.output.out / "best.toml")
    assert (best.loss.loss, best.training.metric) == ("cosent", "spearman")
    results = train(replace(best, output=replace(best.output, out=tmp_path / "run")))
    assert [one["spearman"] for one in results["train"]["dev"]] == summary["best"]["dev"]
    resumed = tune(to(graded, graded.output.out, resume=True, trials=2))
    assert resumed["trials"] == summary["trials"]


@pytest.mark.parametrize(
    "section",
    [
        {"loss": LossConfig(guide="./no-guide")},
        {"loss": LossConfig(distill="kl", teacher="./no-teacher")},
        {"evaluation": EvaluationConfig(against=("./no-rival",))},
        {"evaluation": EvaluationConfig(forgetting=("./no-set.jsonl",))},
    ],
)
def test_what_is_not_there_is_told_before_anything_is_written(
    section: dict[str, Any], config: TuneConfig, tmp_path: Path
) -> None:
    rows = [{**json.loads(line), "negative": "bador"} for line in Path(config.data.train).read_text().splitlines()]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = replace(config, data=replace(config.data, train=str(tmp_path / "rows.jsonl")), **section)
    with pytest.raises(UserError, match=r"no-(guide|teacher|rival|set)"):
        tune(to(given, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_teacher_scores_once_for_all_trials(
    config: TuneConfig, make_judge: Callable[..., Path], tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in Path(config.data.train).read_text().splitlines()]
    rows = [{**row, "negative": rows[-1 - number]["positive"]} for number, row in enumerate(rows)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    counted = list[str]()

    class Counts(SilentReporter):
        def counting(self, label: str, total: int | None) -> Any:
            counted.append(label)
            return super().counting(label, total)

    teacher = make_judge()
    given = replace(
        to(config, tmp_path / "out", dials=("lr",), trials=2),
        data=replace(config.data, train=str(tmp_path / "rows.jsonl")),
        loss=LossConfig(distill="kl", teacher=str(teacher)),
    )
    whole = tune(given, Counts())
    tune(to(given, tmp_path / "out", resume=True, trials=3), Counts())
    assert counted.count(f"teacher: {teacher}") == 1
    alone = tune(to(replace(given, loss=LossConfig()), tmp_path / "alone", trials=1, repeats=0))
    assert alone["trials"][0]["dev"] != whole["trials"][0]["dev"]  # the scores are made use of


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stop_keeps_what_is_over(
    number: signal.Signals, code: int, config: TuneConfig, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    reporter = Interrupts("Trial 2", lambda: signal.raise_signal(number))
    with pytest.raises(TrainingInterrupted, match=r"stopped in trial 2, .* saved: 1\.") as caught:
        tune(to(config, out, trials=2, repeats=0), reporter)
    assert caught.value.exit_code == code
    assert len((out / "trials.jsonl").read_text().splitlines()) == 1
    summary = tune(to(config, out, resume=True, trials=2, repeats=0))
    assert [trial["number"] for trial in summary["trials"]] == [0, 1]


KILLED = """
import os, signal, sys
from pathlib import Path
from embedtune.config.tuning import TuneConfig
from embedtune.config_file import load_config
from embedtune.progress import SilentReporter
from embedtune.tuning.search import tune

class Kills(SilentReporter):
    trials = 0
    def stage(self, title):
        self.trials += title.startswith("Trial")
    def training(self, *, done, steps):
        if self.trials == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training(done=done, steps=steps)

tune(load_config(TuneConfig, Path(sys.argv[1])), Kills())
"""


def test_a_killed_search_goes_on_to_the_same_trials(
    searched: tuple[TuneConfig, dict[str, Any]], tmp_path: Path
) -> None:
    config, whole = searched
    out, file = tmp_path / "out", tmp_path / "config.toml"
    file.write_text(to_toml(to(config, out)))
    # The same bits take the same number of threads.
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(file)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (out / ".trial.tmp").is_dir()
    summary = tune(to(config, out, resume=True))
    assert timeless(summary["trials"]) == timeless(whole["trials"])
    assert timeless(summary["repeats"]) == timeless(whole["repeats"])
    assert not (out / ".trial.tmp").exists()


def test_a_time_budget_that_is_over_is_no_error(
    config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def timed(*arguments: Any, stop: StopRequest, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 3:
            stop.deadline = time.monotonic() + 1.5
        return train_once(*arguments, stop=stop, **options)

    monkeypatch.setattr(trials_module, "train_once", timed)
    slow = replace(config, training=replace(config.training, epochs=400.0))
    quick = to(config, tmp_path / "quick", time_budget="5m")
    assert len(tune(quick)["trials"]) < 4
    assert (quick.output.out / "best.toml").is_file()
    count = 2
    with pytest.raises(TrainingInterrupted, match="over before the default recipe was trained once") as caught:
        tune(to(slow, tmp_path / "slow", time_budget="5m"))
    assert caught.value.exit_code == 75
    count = 9
    assert len(tune(to(config, quick.output.out, resume=True))["trials"]) == 4


def test_no_trial_is_begun_that_would_not_fit(config: TuneConfig, tmp_path: Path) -> None:
    told = list[str]()

    class Notes(SilentReporter):
        def note(self, text: str) -> None:
            told.append(text)

    def late(*fields: Any) -> Trials:
        trials = Trials(*fields)
        trials.stop.deadline = time.monotonic() + 1e-3
        return trials

    out = tmp_path / "out"
    tune(to(config, out, trials=1, repeats=0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tune.__globals__, "Trials", late)
        summary = tune(to(config, out, resume=True, trials=2, repeats=0, time_budget="5m"), Notes())
    assert len(summary["trials"]) == 1
    assert "--time-budget 5m: no time for another trial" in told


def test_a_trial_that_diverges_is_noted_and_the_search_goes_on(
    config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def diverging(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise NonFiniteLossError("the loss became nan at step 1\nTry a lower --lr")
        if calls == 4:
            raise StorageError("No space left on device")
        return train_once(*arguments, **options)

    monkeypatch.setattr(trials_module, "train_once", diverging)
    with pytest.raises(StorageError, match="No space"):
        tune(to(config, tmp_path / "out", repeats=0))
    lines = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert [trial["state"] for trial in lines] == ["finished", "failed", "finished"]
    assert lines[1]["reason"] == "the loss became nan at step 1"
    assert "the loss became nan at step 1" in (tmp_path / "out" / "tune.html").read_text()
    calls = 1
    with pytest.raises(NonFiniteLossError):
        tune(to(config, tmp_path / "other"))


def test_a_hopeless_trial_ends_at_its_evaluation(
    config: TuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Asked, "is_hopeless", lambda self, evaluation, metric: self.trial.number > 0 and evaluation == 1
    )
    summary = tune(to(config, tmp_path / "out", trials=2, repeats=0))
    finished, pruned = summary["trials"]
    assert (pruned["state"], pruned["metric"], len(pruned["dev"])) == ("pruned", None, 2)
    assert 0 < pruned["steps"] < finished["steps"]
    assert summary["best"] == finished


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("training", {"lr": 0.02}, "--lr: 0.01 then, 0.02 now"),
        ("training", {"epochs": 3.0}, "--epochs: 0.6 then, 3.0 now"),
        ("tuning", {"dials": ("lr",)}, r"--dials: \('lr', 'batch-size', 'rank'\) then"),
        ("tuning", {"repeats": 2}, "--repeats: 1 then, 2 now"),
        ("output", {"seed": 5}, "--seed: 0 then, 5 now"),
    ],
)
def test_other_settings_are_refused(
    section: str,
    change: dict[str, Any],
    message: str,
    searched: tuple[TuneConfig, dict[str, Any]],
    tmp_path: Path,
) -> None:
    given = copy_of(searched, tmp_path / "out")
    given = replace(given, **{section: replace(getattr(given, section), **change)})
    with pytest.raises(ConfigError, match=message) as caught:
        tune(given)
    assert f"embedtune tune --config {tmp_path / 'out' / 'config.toml'} --resume" in str(caught.value)


def test_other_data_is_refused(searched: tuple[TuneConfig, dict[str, Any]], tmp_path: Path) -> None:
    given = copy_of(searched, tmp_path / "out")
    rows = Path(given.data.train).read_text().splitlines(keepends=True)
    (tmp_path / "fewer.jsonl").write_text("".join(rows[:-9]))
    with pytest.raises(DataError, match="the data has changed"):
        tune(replace(given, data=replace(given.data, train=str(tmp_path / "fewer.jsonl"))))


def test_a_folder_in_use_or_of_something_else_is_refused(
    searched: tuple[TuneConfig, dict[str, Any]], tmp_path: Path
) -> None:
    given = copy_of(searched, tmp_path / "out")
    with RunLock(tmp_path / "out") as lock:
        lock.take()
        with pytest.raises(OutputError, match="another run is writing there"):
            tune(given)
    with pytest.raises(OutputError, match="already holds a run"):
        tune(to(given, tmp_path / "out"))
    shutil.copy(tmp_path / "out" / "best.toml", tmp_path / "out" / "config.toml")
    with pytest.raises(OutputError, match="holds a training run, and no search"):
        tune(given)


def test_a_run_does_not_resume_a_search(searched: tuple[TuneConfig, dict[str, Any]], tmp_path: Path) -> None:
    given = copy_of(searched, tmp_path / "out")
    with pytest.raises(UserError, match=r"\[tuning\]"):
        train(with_values(given, {}))
