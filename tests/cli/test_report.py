"""`embedtune report` and `embedtune eval --report`: the page, where it lies, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from embedtune.cli.main import main

FULL = Path(__file__).parents[1] / "report" / "full_results.json"


@pytest.fixture
def results() -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(FULL.read_text(encoding="utf-8"))
    return loaded


def test_the_page_of_a_run_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "results.json").write_text(FULL.read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "report.html").write_text("old")
    for source in (tmp_path, tmp_path / "results.json"):
        assert main(["report", str(source)]) == 0
        assert str(tmp_path / "report.html") in capsys.readouterr().out
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Smaller vectors" in page
    assert str(tmp_path / "config.toml") in page


def test_each_evaluation_has_its_own_page(results: dict[str, Any], tmp_path: Path) -> None:
    evaluation = {key: results[key] for key in ("schema", "base_model", "data", "bm25")} | {"model": results["tuned"]}
    (tmp_path / "bge.small.json").write_text(json.dumps(evaluation), encoding="utf-8")
    assert main(["report", str(tmp_path / "bge.small.json")]) == 0
    assert "reaches an NDCG@10 of" in (tmp_path / "bge.small.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        ('{"schema": 1, "base', "damaged or no JSON"),
        ("[1]", "holds no results of embedtune"),
        ('{"ndcg": 1}', "holds no results of embedtune"),
        ('{"schema": 2}', "has schema 2, expected 1"),
        ('{"schema": 1}', "missing or of another form"),
        ('{"schema": 1, "base_model": "x", "tuned": 3, "data": []}', "missing or of another form"),
    ],
)
def test_what_holds_no_results_is_refused(
    content: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "results.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "report.html").exists()


def test_a_folder_is_never_replaced_by_the_page(
    st_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").mkdir()
    (tmp_path / "report.html" / "mine.txt").write_text("mine")
    (tmp_path / "results.json").write_text(FULL.read_text(encoding="utf-8"), encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2
    evaluation = ["eval", str(st_folder), "--test", "nowhere.jsonl"]
    assert main([*evaluation, "--report", str(tmp_path / "report.html")]) == 2
    assert capsys.readouterr().err.count("is a folder") == 2
    assert (tmp_path / "report.html" / "mine.txt").exists()
    assert main([*evaluation, "--report", str(tmp_path / "no" / "page.html")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_eval_writes_a_page(
    st_folder: Path, bare_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs, page = tmp_path / "pairs.jsonl", tmp_path / "page.html"
    rows = [{"question": f"ba{n} dor?", "passage": f"kefin {n} ligal {n * 7}"} for n in range(40)]
    pairs.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    command = ["eval", str(st_folder), "--test", str(pairs), "--report", str(page)]
    assert main([*command, "--against", str(bare_folder)]) == 0
    assert f"report: {page}" in capsys.readouterr().out.replace("\n", "")
    html = page.read_text(encoding="utf-8")
    assert "In short" in html
    assert "The model minus the one it is compared with" in html
