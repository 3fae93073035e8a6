"""Equal texts and rows are one in memory, and everything that is counted stays as it was."""

from __future__ import annotations

import gzip
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedtune.data import columns, records
from embedtune.data.clean import CollectionBuilder
from embedtune.data.columns import column_names, resolve_columns, rows_of
from embedtune.data.json_files import json_lines
from embedtune.data.read import read, read_passages
from embedtune.data.table import Columns

LONG = "a text that nothing else interns: "


def jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    found: bytes = sink.getvalue().to_pybytes()
    return found


FORMS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "a.jsonl": jsonl,
    "a.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.json": lambda rows: json.dumps(rows).encode(),
    "lines.json": jsonl,
    "a.parquet": parquet,
}


@pytest.mark.parametrize("name", FORMS)
def test_equal_texts_are_one_text(name: str, tmp_path: Path) -> None:
    rows = [
        {"question": f"{LONG}{n}", "passage": f"{LONG}{n % 3}", "negatives": [f"{LONG}{(n + 1) % 3}", "x"]}
        for n in range(12)
    ]
    (tmp_path / name).write_bytes(FORMS[name](rows))
    found = read(str(tmp_path / name)).rows
    assert [(row.anchor, row.positive, list(row.negatives)) for row in found] == [tuple(row.values()) for row in rows]
    texts = [text for row in found for text in (row.anchor, row.positive, *row.negatives)]
    assert len({id(text) for text in texts}) == len(set(texts)) == 13


def test_equal_texts_of_csv_and_of_a_corpus_are_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("question,passage\n" + f"q,{LONG}\nr,{LONG}\n" * 2)
    (tmp_path / "a.txt").write_text(f"{LONG}x\n" * 5)
    (tmp_path / "corpus.jsonl").write_bytes(jsonl([{"text": f"{LONG}y"}] * 5))
    assert len({id(row.positive) for row in read(str(tmp_path / "a.csv")).rows}) == 1
    for name in ("a.txt", "corpus.jsonl"):
        passages = read_passages(str(tmp_path / name))
        assert len(passages) == 5
        assert len({id(passage) for passage in passages}) == 1


def test_a_row_that_is_repeated_is_one_row_and_counted_each_time(tmp_path: Path) -> None:
    good, empty = {"question": "q", "passage": "p"}, {"question": "q", "passage": ""}
    (tmp_path / "a.jsonl").write_bytes(jsonl([good, empty, good, empty, good, {"question": "r", "passage": "s"}]))
    table = read(str(tmp_path / "a.jsonl"))
    assert len(table.rows) == 6
    assert len({id(row) for row in table.rows}) == 3
    clean = CollectionBuilder().add(table)
    assert clean.dropped == {"duplicate_pairs": 2, "empty_positive": 2}
    assert clean.pairs.row_ids == ("a-000001", "a-000006")


def test_values_of_other_kinds_are_others(tmp_path: Path) -> None:
    ids = [1, True, 1.0, "1", None, 0, False, ""]
    rows = [{"id": id_, "question": "q", "passage": "p"} for id_ in ids]
    rows += [{"id": "q", "question": "id", "passage": "p"}, {"question": "q", "passage": "p"}]
    rows += [{"passage": "q", "question": "p"}]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows * 2))
    found = read(str(tmp_path / "a.jsonl")).rows
    assert [row.id for row in found] == ["1", "", "", "1", "", "0", "", "", "q", "", ""] * 2
    assert (found[-1].anchor, found[-1].positive) == ("p", "q")


@pytest.mark.parametrize("recent", [1, 3, 65_536])
def test_rows_are_those_that_reading_without_sharing_gives(
    recent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (records, columns):
        monkeypatch.setattr(module, "RECENT", recent)
    draw = random.Random(0)
    values = ["a", "b", "", None, 7, ["a", "b"], ["a"], [], {"a": "b"}]
    for kind in range(8):
        rows = [
            {
                "id": draw.choice(["i", None, 3]),
                "question": draw.choice(values),
                "passage": draw.choice(values),
                "negative_1": draw.choice(values),
                "label": draw.choice([0, 1, True, "1"]),
            }
            for _ in range(40)
        ]
        rows += draw.choices(rows, k=200)
        path = tmp_path / f"{kind}.jsonl"
        path.write_bytes(jsonl(rows))
        plain = list(json_lines(path))
        names = column_names(plain)
        labels = [float(str(record.fields["label"]) in ("1", "True")) for record in plain]
        expected = rows_of(plain, resolve_columns(Columns(), names, str(path)), names, labels)
        assert [replace(row, origin="") for row in read(str(path)).rows] == [
            replace(row, origin="") for row in expected
        ]


def test_numbers_with_equal_hashes_take_no_longer(tmp_path: Path) -> None:
    """Python hashes a whole number by what it leaves over 2**61 - 1: these would all be looked for in one place."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"question": "q", "passage": "p", "n": n * (2**61 - 1)} for n in range(16_000)]))
    begin = time.process_time()
    assert len(read(str(path)).rows) == 16_000
    assert time.process_time() - begin < 5


def test_memory_grows_with_distinct_texts(tmp_path: Path) -> None:
    """30 MB of rows; texts of their own, or a dict a row, would take as much."""
    texts = [f"{n} {'word ' * 300}" for n in range(20)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"question": f"q{n % 40}", "passage": texts[n % 20]} for n in range(20_000)]))
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    try:
        assert len(read(str(path)).rows) == 20_000
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000
