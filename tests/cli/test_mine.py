"""`embedtune mine`: pairs in, pairs with negatives out, which `embedtune train` reads."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from embedtune.cli.main import main
from embedtune.data.read import read


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write(tmp_path / "pairs.jsonl", 30)


def write(file: Path, count: int, *, start: int = 0, **more: str) -> Path:
    rows = [
        {"id": f"row-{n}", "question": f"ba{n} dor?", "passage": f"kefin {n} ligal {n * 7}", **more}
        for n in range(start, start + count)
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return file


def run(*arguments: object) -> int:
    return main(["mine", *map(str, arguments)])


def lines(file: Path) -> list[dict[str, Any]]:
    packed = file.read_bytes()
    text = gzip.decompress(packed) if file.suffix == ".gz" else packed
    return [json.loads(line) for line in text.decode().splitlines()]


def test_scores_of_a_teacher_stay_out_as_they_miss_what_was_mined(pairs: Path, st_folder: Path, tmp_path: Path) -> None:
    rows = [{**row, "negative_1": "zo zu", "scores": [4.0, 1.0]} for row in lines(pairs)]
    pairs.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    out = tmp_path / "mined.jsonl"
    assert run(pairs, "--base", st_folder, "--out", out, "--max-score-ratio", 100) == 0
    assert all(len(row.negatives) == 3 for row in read(str(out)).rows)
    assert all("scores" not in row for row in lines(out))


def test_what_is_written_is_read_by_train(
    pairs: Path, st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mined.jsonl"
    bounds = ("--max-score-ratio", 100, "--hard-negatives", 3)
    assert run(pairs, "--base", st_folder, "--out", out, *bounds) == 0
    rows = lines(out)
    assert [list(row) for row in rows] == [["id", "anchor", "positive", "negative_1", "negative_2", "negative_3"]] * 30
    assert [row["id"] for row in rows] == [f"row-{n}" for n in range(30)]
    passages = {f"kefin {n} ligal {n * 7}" for n in range(30)}
    for row in rows:
        texts = [row["positive"], *(row[f"negative_{n}"] for n in (1, 2, 3))]
        assert len(set(texts)) == 4
        assert set(texts) <= passages
    table = read(str(out))
    assert table.columns.negatives == ("negative_1", "negative_2", "negative_3")
    assert all(len(row.negatives) == 3 for row in table.rows)
    printed = capsys.readouterr().out
    for part in (
        "90 negatives added to 30 pairs",
        "30 known answers",
        "mean score by the model",
        "hard:  ba",
        str(out),
    ):
        assert part in printed
    train = ["train", str(out), "--base", str(st_folder), "--out", str(tmp_path / "run"), "--max-steps", "1"]
    assert main(train) == 0
    assert read(str(tmp_path / "run" / "splits" / "train.jsonl")).rows[0].negatives


def test_rows_with_fewer_negatives_and_packed_files(pairs: Path, st_folder: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "mined.jsonl.gz", tmp_path / "again.jsonl.gz"
    for file in (out, again):
        assert run(pairs, "--base", st_folder, "--out", file, "--mine-from", "both", "--max-score-ratio", 0.98) == 0
    assert out.read_bytes() == again.read_bytes()
    found = {len(row.negatives) for row in read(str(out)).rows}
    assert {0, 2} <= found
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.jsonl.gz", "mined.jsonl.gz", "pairs.jsonl"]


def test_given_negatives_come_first_and_held_out_texts_stay_out(st_folder: Path, tmp_path: Path) -> None:
    held_out = write(tmp_path / "test.jsonl", 6, start=4)
    dev = write(tmp_path / "dev.jsonl", 3, start=20)
    train = write(tmp_path / "train.jsonl", 30, negative="kefin 5 ligal 35")
    out = tmp_path / "mined.jsonl"
    options = ("--near-duplicates", 0, "--max-score-ratio", 100, "--mine-depth", 100, "--hard-negatives", 50)
    assert run(train, "--test", held_out, "--dev", dev, "--base", st_folder, "--out", out, *options) == 0
    rows = lines(out)
    assert [row["id"] for row in rows] == [f"row-{n}" for n in range(30) if n not in {*range(4, 10), *range(20, 23)}]
    left_out = {row["passage"] for file in (held_out, dev) for row in lines(file)}
    for row in rows:
        assert row["negative_1"] == "kefin 5 ligal 35"
        assert not left_out & {text for name, text in row.items() if name not in ("id", "anchor", "negative_1")}
        assert len(row) == 3 + 1 + 20


def test_a_judge(pairs: Path, st_folder: Path, tmp_path: Path, make_judge: Callable[..., Path], capsys: Any) -> None:
    out = tmp_path / "mined.jsonl"
    assert run(pairs, "--base", st_folder, "--out", out, "--judge", make_judge()) == 0
    assert "mean score by the judge" in capsys.readouterr().out
    assert [list(row)[-1] for row in lines(out)] == ["scores"] * 30
    assert run(pairs, "--base", st_folder, "--out", tmp_path / "other.jsonl", "--judge", st_folder) == 2
    assert "is no cross-encoder" in capsys.readouterr().err
    assert not (tmp_path / "other.jsonl").exists()


def test_what_a_judge_said_is_distilled_without_scoring_it_again(
    pairs: Path, st_folder: Path, tmp_path: Path, make_judge: Callable[..., Path], capsys: Any
) -> None:
    """The judge's logits are what the same cross-encoder gives as --teacher."""
    given = [{**row, "negative_1": "zo zu", "scores": [4.0, 1.0]} for row in lines(pairs)]
    pairs.write_text("\n".join(map(json.dumps, given)) + "\n", encoding="utf-8")
    out, judge = tmp_path / "mined.jsonl", make_judge()
    bounds = ("--max-score-ratio", 1.1, "--hard-negatives", 3)
    assert run(pairs, "--base", st_folder, "--out", out, "--judge", judge, *bounds) == 0
    rows = lines(out)
    assert any(len(row["scores"]) == 5 for row in rows)
    assert all(len(row["scores"]) == len(row) - 3 for row in rows)
    train = ["train", str(out), "--base", str(st_folder), "--max-steps", "1", "--distill", "kl"]
    capsys.readouterr()
    for folder, options in (("data", []), ("teacher", ["--teacher", str(judge)])):
        assert main([*train, *options, "--out", str(tmp_path / folder)]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if "positives are" in line]
    assert len(told) == 2
    assert told[0].replace("the data", "IT") == told[1].replace(str(judge), "IT")
    assert not (tmp_path / "data" / "teacher.safetensors").exists()
    assert "scores" in lines(tmp_path / "data" / "splits" / "train.jsonl")[0]


def test_texts_cannot_write_to_the_terminal(
    st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [
        {"question": f"ba{n}\x1b[2J [bold]dor", "passage": f"kefin\x1b]0;{n}\x07 {'ligal ' * 200}{n}"} for n in range(9)
    ]
    file.write_text("\n".join(map(json.dumps, rows)) + "\n")
    out = tmp_path / "mined.jsonl"
    assert run(file, "--base", st_folder, "--out", out, "--near-duplicates", 0, "--max-score-ratio", 100) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b[2J [bold]dor" in printed
    assert len(printed) < 6_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jsonl"], "No such file"),
        (["PAIRS", "--out", "mined.csv"], "expected a name that ends in .jsonl or .jsonl.gz"),
        (["PAIRS", "--out", "missing/mined.jsonl"], "does not exist"),
        (["PAIRS", "--out", "folder.jsonl"], "is a folder, expected a file"),
        (["PAIRS", "--out", "PAIRS"], "as it would be replaced"),
        (["PAIRS", "--test", "PAIRS"], "no rows are left to train on"),
        (["PAIRS", "--mine-skip", "30"], "--mine-skip is 30, expected 0 or more and below --mine-depth, 30"),
        (["PAIRS", "--hard-negatives", "31"], "--mine-depth is 30, expected at least"),
        (["PAIRS", "--hard-negatives", "-1"], "--hard-negatives is -1"),
        (["PAIRS", "--max-score-ratio", "0"], "--max-score-ratio is 0.0"),
        (["PAIRS", "--score-margin", "-1"], "--score-margin is -1.0"),
        (["PAIRS", "--judge", "./nowhere"], "it does not exist"),
        (["PAIRS", "--base", "./nowhere"], "it does not exist"),
    ],
)
def test_bad_input_gets_one_message_and_leaves_nothing(
    arguments: list[str],
    message: str,
    pairs: Path,
    st_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.jsonl").mkdir()
    given = [str(pairs) if argument == "PAIRS" else argument for argument in arguments]
    given += [] if "--base" in given else ["--base", str(st_folder)]
    given += [] if "--out" in given else ["--out", "mined.jsonl"]
    before = sorted(tmp_path.rglob("*"))
    assert run(*given) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before


def test_no_negatives_wanted_leaves_the_pairs_as_they_are(pairs: Path, st_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "mined.jsonl"
    assert run(pairs, "--base", st_folder, "--out", out, "--hard-negatives", 0) == 0
    assert {tuple(row) for row in lines(out)} == {("id", "anchor", "positive")}
