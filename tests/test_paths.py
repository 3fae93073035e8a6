"""Home folders in paths: what no shell has written out is written out, and a user that does not exist is told."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from embedtune.cli.main import main
from embedtune.cli.options import parse_train
from embedtune.config_file import load_toml
from embedtune.errors import ConfigError
from embedtune.paths import expanded
from embedtune.report.card.metadata import base_metadata

NOBODY = "~no-such-user/x"


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "pairs.jsonl"
    rows = [{"question": f"ba{n} dor?", "passage": f"kefin {n} ligal"} for n in range(30)]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", NOBODY],
        ["train", "PAIRS", "--test", NOBODY],
        ["train", "PAIRS", "--dev", NOBODY],
        ["train", "PAIRS", "--corpus", NOBODY],
        ["train", "PAIRS", "--labels", NOBODY],
        ["train", "PAIRS", "--base", NOBODY],
        ["train", "PAIRS", "--out", NOBODY],
        ["train", "PAIRS", "--config", NOBODY],
        ["train", "PAIRS", "--config", "run.toml"],
        ["train", "PAIRS", "--forgetting", NOBODY],
        ["train", "PAIRS", "--against", NOBODY],
        ["train", "PAIRS", "--start-adapter", NOBODY],
        ["train", "PAIRS", "--guide", NOBODY],
        ["eval", NOBODY, "--test", "PAIRS"],
        ["eval", "BASE", "--test", NOBODY],
        ["eval", "BASE", "--test", "PAIRS", "--corpus", NOBODY],
        ["eval", "BASE", "--test", "PAIRS", "--against", NOBODY],
        ["eval", "BASE", "--test", "PAIRS", "--out", NOBODY],
        ["eval", "BASE", "--test", "PAIRS", "--report", NOBODY],
        ["mine", NOBODY, "--out", "mined.jsonl"],
        ["mine", "PAIRS", "--out", f"{NOBODY}.jsonl"],
        ["mine", "PAIRS", "--out", "mined.jsonl", "--judge", NOBODY],
        ["encode", "BASE", NOBODY, "--out", "vectors.npy"],
        ["encode", "BASE", "PAIRS", "--out", f"{NOBODY}.npy"],
        ["report", NOBODY],
        ["push", NOBODY, "owner/name"],
    ],
    ids=" ".join,
)
def test_a_user_that_does_not_exist(
    arguments: list[str], pairs: Path, st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.toml").write_text(f'[output]\nout = "{NOBODY}"\n')
    given = [{"PAIRS": str(pairs), "BASE": str(st_folder)}.get(argument, argument) for argument in arguments]
    given += ["--base", str(st_folder)] if given[0] in ("train", "mine") and "--base" not in given else []
    given += ["--max-steps", "1"] if given[0] == "train" else []
    assert main(given) == 2
    error = capsys.readouterr().err
    assert "no home folder is known for '~no-such-user'" in error
    assert "Traceback" not in error
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("~")]


def test_home_folders_are_written_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tmp_path / "run.toml"
    config.write_text('[output]\nout = "~/runs/1"\n')
    assert expanded("~/a.jsonl") == tmp_path / "a.jsonl"
    assert expanded("~root/a") == Path(os.path.expanduser("~root/a"))
    assert load_toml(config).output.out == tmp_path / "runs" / "1"
    assert parse_train(["a.jsonl", "--config=~/run.toml"]).output.out == tmp_path / "runs" / "1"
    assert parse_train(["a.jsonl", "--out=~/runs/2"]).output.out == tmp_path / "runs" / "2"


def test_a_file_that_is_called_so_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("~backup.jsonl").write_text("{}\n")
    assert expanded("~backup.jsonl") == Path("~backup.jsonl")
    for name in ("~other.jsonl", "~a\0b", "~\ud800"):
        with pytest.raises(ConfigError, match="no home folder is known"):
            expanded(name)


def test_a_report_of_a_base_in_a_home_folder_of_elsewhere() -> None:
    assert base_metadata(NOBODY) == {}
