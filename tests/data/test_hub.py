"""Data sets of the hub. Without a network `datasets.load_dataset` is stood in for by local `Dataset`s."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from embedtune.data.hub import is_hub_id
from embedtune.data.read import Columns, available_splits, read, read_passages
from embedtune.errors import DataError


def offer(monkeypatch: pytest.MonkeyPatch, **splits: list[dict[str, object]]) -> list[tuple[str, str | None]]:
    """Makes `load_dataset` give these splits; the calls made are listed."""
    calls: list[tuple[str, str | None]] = []
    content = datasets.DatasetDict({name: datasets.Dataset.from_list(rows) for name, rows in splits.items()})

    def load_dataset(name: str, config: str | None = None) -> datasets.DatasetDict:
        calls.append((name, config))
        return content

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def rows_of(name: str) -> list[dict[str, object]]:
    row: dict[str, object] = {"question": f"{name}?", "answer": [name, "more"], "id": 7, "vector": [0.5] * 4}
    return [row]


def test_splits_by_their_names(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = offer(monkeypatch, train=rows_of("a"), validation=rows_of("b"), test=rows_of("c"))
    assert available_splits("owner/name:config") == {"train", "dev", "test"}
    for split, name in (("train", "a"), ("dev", "b"), ("test", "c")):
        table = read("owner/name:config", split=split)  # type: ignore[arg-type]
        assert [(row.anchor, row.positive, row.id) for row in table.rows] == [
            (f"{name}?", name, "7"),
            (f"{name}?", "more", "7"),
        ]
    assert table.columns == Columns(anchor="question", positive="answer")
    assert set(calls) == {("owner/name", "config")}


def test_a_single_split_is_read_like_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, test=rows_of("a"))
    assert available_splits("name") == frozenset()
    assert len(read("name", split="train").rows) == 2


def test_split_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, train=rows_of("a"), test=rows_of("b"))
    with pytest.raises(DataError, match="no split 'dev'; it has: train, test"):
        read("owner/name", split="dev")


def test_columns_not_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, train=[{"frage": "q", "antwort": "a"}])
    with pytest.raises(DataError, match=r"'owner/name'.*'frage', 'antwort'.*--anchor-column NAME"):
        read("owner/name")


def test_passages(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, train=[{"text": "p1"}, {"text": "p2"}])
    assert read_passages("owner/name") == ["p1", "p2"]


def test_hub_ids() -> None:
    assert all(map(is_hub_id, ["squad", "owner/name", "owner/na.me-2:en_US"]))
    assert not any(map(is_hub_id, ["./squad", "/squad", "a/b/c", "a b", "owner/", "", "a:b:c"]))


def test_unreachable_hub_says_so(tmp_path: Path) -> None:
    """In a process of its own: `datasets` reads its offline switch and cache folder when it is imported."""
    code = (
        "from embedtune.data.read import read\n"
        "from embedtune.errors import DataError\n"
        "try:\n    read('nobody/nothing')\n"
        "except DataError as error:\n    print(error)\n"
    )
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | offline, capture_output=True, text=True, timeout=60
    )
    assert "'nobody/nothing' is no file or folder here" in done.stdout, done.stderr
    assert "Check the spelling and the network" in done.stdout
    assert "type the path of a file instead" in done.stdout
