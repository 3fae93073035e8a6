"""What is tried next, what is given up, and what the journal keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from embedtune.errors import OutputError
from embedtune.tuning.records import State, Trial
from embedtune.tuning.space import Dial, Values

pytest.importorskip("optuna")

from embedtune.tuning.study import Study

LR = Dial(name="lr", default=0.01, low=0.001, high=0.1)
BATCH = Dial(name="batch-size", default=16, low=8, high=32, choices=(8, 16, 32))


def study(folder: Path, *, seed: int = 0, finish_all: bool = False) -> Study:
    return Study(folder / "journal.jsonl", (LR, BATCH), seed=seed, finish_all=finish_all)


def one_trial(search: Study, metric: float | None = None) -> Values:
    """Ask and tell; the metric falls with the batch size if not given."""
    asked = search.ask()
    metric = 1 / asked.values["batch-size"] if metric is None else metric
    assert not asked.is_hopeless(0, 0.0)
    asked.is_hopeless(1, metric)
    search.tell(asked, record(asked.values, metric))
    return asked.values


def record(values: Values, metric: float | None) -> Trial:
    state: State = "failed" if metric is None else "finished"
    return Trial(
        number=0, state=state, values=dict(values), seed=0, metric=metric, dev=[0.0], reason=None if metric else "NaN"
    )  # fmt: skip


def test_the_first_trial_is_the_default_recipe(tmp_path: Path) -> None:
    assert one_trial(study(tmp_path)) == {"lr": 0.01, "batch-size": 16}


def test_a_search_that_is_opened_again_for_every_trial_tries_the_same(tmp_path: Path) -> None:
    """Beyond the random trials at the start, and with a trial in between that no process finished."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = study(tmp_path / "a")
    values = [one_trial(whole) for _ in range(8)]
    again = []
    for number in range(8):
        search = study(tmp_path / "b")
        if number in (0, 3, 6):
            search.ask().is_hopeless(0, 0.9)
            search = study(tmp_path / "b")
        again.append(one_trial(search))
    assert again == values
    assert [trial.values for trial in study(tmp_path / "b").trials] == values
    assert [trial.number for trial in study(tmp_path / "b").trials] == list(range(8))
    assert len({value["lr"] for value in values}) == 8


def test_another_seed_tries_something_else(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    tried = [[one_trial(search) for _ in range(3)] for search in (study(tmp_path / "a"), study(tmp_path / "b", seed=1))]
    assert tried[0][0] == tried[1][0]
    assert tried[0][1] != tried[1][1]


@pytest.mark.parametrize("finish_all", [False, True])
def test_what_is_below_the_median_at_an_evaluation_is_hopeless(finish_all: bool, tmp_path: Path) -> None:
    search = study(tmp_path, finish_all=finish_all)
    for metric in (0.5, 0.6, 0.7, 0.8):
        one_trial(search, metric)
    asked = search.ask()
    assert not asked.is_hopeless(0, 0.0)
    assert asked.is_hopeless(1, 0.6) == (not finish_all)
    good = study(tmp_path, finish_all=finish_all).ask()
    good.is_hopeless(0, 0.0)
    assert not good.is_hopeless(1, 0.7)


def test_a_failed_trial_counts_and_is_never_the_best_to_learn_from(tmp_path: Path) -> None:
    search = study(tmp_path)
    one_trial(search)
    asked = search.ask()
    search.tell(asked, record(asked.values, None))
    assert [trial.state for trial in study(tmp_path).trials] == ["finished", "failed"]
    assert study(tmp_path).trials[1].reason == "NaN"


def test_half_a_line_at_the_end_is_cut_off(tmp_path: Path) -> None:
    one_trial(study(tmp_path))
    journal = tmp_path / "journal.jsonl"
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"worker')
    again = study(tmp_path)
    assert len(again.trials) == 1
    assert journal.read_bytes().startswith(whole + b"{")
    one_trial(again)
    assert len(study(tmp_path).trials) == 2


@pytest.mark.parametrize("line", [b"gibberish\n", b"[1]\n", b'{"op_code": 99}\n', b"\x80\x04K\x01.\n"])
def test_a_damaged_journal_is_said_so(line: bytes, tmp_path: Path) -> None:
    one_trial(study(tmp_path))
    journal = tmp_path / "journal.jsonl"
    journal.write_bytes(line + journal.read_bytes())
    with pytest.raises(OutputError, match=r"journal\.jsonl can't be read"):
        study(tmp_path)


def test_the_dial_that_matters_is_found(tmp_path: Path) -> None:
    search = study(tmp_path, finish_all=True)
    for _ in range(4):
        one_trial(search)
    assert search.importances() == {}
    for _ in range(11):
        one_trial(search)
    found = search.importances()
    assert next(iter(found)) == "batch-size"
    assert sum(found.values()) == pytest.approx(1)


def test_repeats_are_kept_and_not_learnt_from(tmp_path: Path) -> None:
    search = study(tmp_path)
    values = one_trial(search)
    search.add_repeat(record(values, 0.9))
    again = study(tmp_path)
    assert [repeat.metric for repeat in again.repeats] == [0.9]
    assert len(again.trials) == 1
