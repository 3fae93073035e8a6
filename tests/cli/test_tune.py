"""`embedtune tune` as scripts see it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from embedtune.cli.main import main

pytestmark = pytest.mark.usefixtures("few_general_texts")


@pytest.fixture
def command(pairs_file: Path, st_folder: Path, tmp_path: Path) -> list[str]:
    return [
        "tune", str(pairs_file), "--base", str(st_folder), "--near-duplicates", "0", "--max-length", "16",
        "--epochs", "0.5", "--dials", "lr,scale", "--out", str(tmp_path / "out"),
    ]  # fmt: skip


def test_a_search_and_two_trials_more(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    assert main([*command, "--trials", "2"]) == 0
    printed = capsys.readouterr().out
    for part in ("Trial 1 of 2: the default recipe", "Trial 2 of 2", "best trials", "scale", "best.toml", "tune.html"):
        assert part in printed
    assert "with another seed, moved by" in printed
    config = tmp_path / "out" / "config.toml"
    assert main(["tune", "--config", str(config), "--resume", "--trials", "5"]) == 0
    printed = capsys.readouterr().out
    assert "Trial 2" not in printed
    assert "Trial 5 of 5" in printed
    lines = [json.loads(line) for line in (tmp_path / "out" / "trials.jsonl").read_text().splitlines()]
    assert [trial["number"] for trial in lines] == [0, 1, 2, 3, 4, None]
    assert main(["train", "--config", str(tmp_path / "out" / "best.toml"), "--out", str(tmp_path / "run")]) == 0


def test_without_optuna_it_says_what_to_install(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("embedtune.tuning")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert main(command) == 2
    assert "pip install 'embedtune[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dials", "speed"], "--dials is speed, expected some of lr, batch-size, epochs, rank, scale"),
        (["--max-time", "5m"], "--time-budget 5m"),
        (["--resume"], "holds no run"),
        (["--dials", "rank", "--method", "full"], "--method full has no rank"),
    ],
)
def test_bad_input_gets_one_message_and_leaves_nothing(
    arguments: list[str], message: str, command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("optuna")
    assert main([*command, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
