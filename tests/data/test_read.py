"""Any source the user may type becomes the same rows, or one message that says what to type."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from embedtune.data.read import RECOGNISED_BY, Columns, available_splits, read, read_passages, stream_passages
from embedtune.errors import DataError

RECORDS = [
    {"id": "a1", "anchor": "What is über?", "positive": 'It says "above",\nor over.', "negative": "no\ttab"},
    {"id": "a2", "anchor": "什么是检索", "positive": "检索 🔎 is search", "negative": ""},
]


def write_jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS), encoding="utf-8")


def write_json(path: Path) -> None:
    path.write_text(json.dumps(RECORDS, ensure_ascii=False, indent=1), encoding="utf-8")


def write_csv(path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(RECORDS[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(RECORDS)


def write_parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(RECORDS), path)


WRITERS: dict[str, Callable[[Path], None]] = {
    ".jsonl": write_jsonl,
    ".json": write_json,
    ".csv": write_csv,
    ".tsv": write_csv,
    ".parquet": write_parquet,
}


def jsonl(path: Path, *records: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_form_gives_the_same_rows(tmp_path: Path, suffix: str, packed: bool) -> None:
    path = tmp_path / f"pairs{suffix}"
    WRITERS[suffix](path)
    if packed:
        (tmp_path / f"pairs{suffix}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / f"pairs{suffix}.gz"
    table = read(str(path))
    assert [(row.id, row.anchor, row.positive, row.negatives) for row in table.rows] == [
        (record["id"], record["anchor"], record["positive"], (record["negative"],)) for record in RECORDS
    ]
    assert table.columns == Columns(anchor="anchor", positive="positive", negatives=("negative",))
    assert table.rows[0].origin.startswith(path.name)
    assert available_splits(str(path)) == frozenset()


def test_lists_in_json_and_parquet_cells(tmp_path: Path) -> None:
    record: dict[str, object] = {"query": "q", "pos": ["p1", "p2"], "neg": ["n1", "n2"]}
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "a.parquet")
    for source in (jsonl(tmp_path / "a.jsonl", record), str(tmp_path / "a.parquet")):
        rows = read(source).rows
        assert [(row.anchor, row.positive, row.negatives) for row in rows] == [
            ("q", "p1", ("n1", "n2")),
            ("q", "p2", ("n1", "n2")),
        ]


def test_several_questions_to_one_passage(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"passage": "p", "questions": ["q1", "q2"]})
    assert [(row.anchor, row.positive) for row in read(source).rows] == [("q1", "p"), ("q2", "p")]


def test_empty_list_of_positives_stays_a_row_to_be_counted(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"anchor": "q", "positive": []})
    assert [row.positive for row in read(source).rows] == [None]


def test_given_columns_win_over_recognised_ones(tmp_path: Path) -> None:
    record: dict[str, object] = {"question": "q", "title": "t", "context": "c", "neg": "n", "wrong": "w"}
    source = jsonl(tmp_path / "a.jsonl", record)
    table = read(source, columns=Columns(anchor="title", positive="question", negatives=("wrong",)))
    assert (table.rows[0].anchor, table.rows[0].positive, table.rows[0].negatives) == ("t", "q", ("w",))


def test_missing_negatives_are_no_negatives(tmp_path: Path) -> None:
    first: dict[str, object] = {"anchor": "q1", "positive": "p1"}
    second: dict[str, object] = {"anchor": "q2", "positive": "p2", "negative_1": "n", "negative_2": None}
    rows = read(jsonl(tmp_path / "a.jsonl", first, second)).rows
    assert [row.negatives for row in rows] == [(), ("n",)]


def test_no_such_file_suggests_a_close_name(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", {})
    with pytest.raises(DataError, match=r"No such file: .*trian\.jsonl'.*Did you mean .*train\.jsonl'"):
        read(str(tmp_path / "trian.jsonl"))


@pytest.mark.parametrize("source", ["nowhere.csv", "a/b/c", "./owner", "~/nowhere", "owner/name.jsonl.gz", "a b"])
def test_what_reads_like_a_path_is_not_asked_of_the_hub(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="No such file"):
        read(source)


def test_misspelled_folder_beside_existing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data" / "scifact").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="Did you mean 'data/scifact'"):
        read("data/scifakt")


def test_unknown_suffix_lists_the_known_ones(tmp_path: Path) -> None:
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"'\.xlsx'; expected \.jsonl, \.json, \.csv, \.tsv or \.parquet"):
        read(str(tmp_path / "a.xlsx"))


def test_folder_that_is_no_beir_folder_names_its_files(tmp_path: Path) -> None:
    jsonl(tmp_path / "train.jsonl", {})
    with pytest.raises(DataError, match=r"not a BEIR one.*It holds train\.jsonl"):
        read(str(tmp_path))


def test_passages_of_every_form(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"ID": 1, "Passage": "p1"}, {"ID": 2, "Passage": ["p2", "p3"]})
    assert read_passages(source) == ["p1", "p2", "p3"]
    (tmp_path / "a.json").write_text('[{"content": "p"}]')
    assert read_passages(str(tmp_path / "a.json")) == ["p"]
    (tmp_path / "a.csv").write_text("nr,context\n1,p\n")
    assert read_passages(str(tmp_path / "a.csv")) == ["p"]
    assert read_passages(str(tmp_path / "a.csv"), column="nr") == ["1"]


def test_passages_of_a_text_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone passage\r\n\r\n  another\u2028one \n".encode())
    assert read_passages(str(tmp_path / "a.txt")) == ["one passage", "another\u2028one"]
    (tmp_path / "a.txt").write_text("\n\n")
    with pytest.raises(DataError, match="no passages"):
        read_passages(str(tmp_path / "a.txt"))
    with pytest.raises(DataError, match="No such file"):
        read_passages(str(tmp_path / "b.txt"))


def test_passages_of_a_beir_corpus_file_carry_their_titles(tmp_path: Path) -> None:
    source = jsonl(
        tmp_path / "corpus.jsonl",
        {"_id": "1", "title": "Title.", "text": "Text."},
        {"_id": "2", "title": "", "text": "Untitled."},
    )
    assert read_passages(source) == ["Title. Text.", "Untitled."]


def test_passage_column_not_recognised(tmp_path: Path) -> None:
    source = jsonl(tmp_path / "a.jsonl", {"body": "p"})
    with pytest.raises(DataError, match=r"Columns found: 'body'.*text, passage"):
        read_passages(source)


@pytest.mark.parametrize("suffix", [*WRITERS, ".txt"])
@pytest.mark.parametrize("packed", [False, True])
def test_streamed_passages_are_the_same(tmp_path: Path, suffix: str, packed: bool) -> None:
    path = tmp_path / f"passages{suffix}"
    WRITERS.get(suffix, lambda path: path.write_text("one\n\ntwo\n"))(path)
    if packed:
        (tmp_path / f"passages{suffix}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path = tmp_path / f"passages{suffix}.gz"
    assert list(stream_passages(str(path))) == read_passages(str(path))
    if suffix != ".txt":
        assert list(stream_passages(str(path), column="anchor")) == ["What is über?", "什么是检索"]


@pytest.mark.parametrize(
    ("name", "head", "row", "fault", "message"),
    [
        ("a.txt", "", "text {}\n", "\0\n", "line 3001: a NUL byte"),
        ("a.jsonl", "", '{{"text": "text {}"}}\n', "no JSON\n", "line 3001: not valid JSON"),
        ("a.csv", "text\n", "text {}\n", "a,b\n", "line 3002: 2 fields; expected 1"),
        ("a.tsv", "text\n", "text {}\n", "a\tb\n", "line 3002: 2 fields; expected 1"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_streamed_passages_come_before_the_fault_of_a_later_line(
    tmp_path: Path, name: str, head: str, row: str, fault: str, message: str, packed: bool
) -> None:
    content = (head + "".join(row.format(number) for number in range(3000)) + fault).encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    passages = stream_passages(str(path))
    assert [next(passages) for _ in range(3000)] == [f"text {number}" for number in range(3000)]
    with pytest.raises(DataError, match=message):
        next(passages)


def test_of_parquet_only_the_passages_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    texts = [f"text {number}" for number in range(20_000)]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([float("nan")] * 40_000), 2)
    pq.write_table(pa.table({"vector": vectors, "a.b": texts}), path)
    damaged = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(0).dictionary_page_offset
    damaged[start : start + 20] = bytes(20)
    path.write_bytes(damaged)
    with pytest.raises(DataError, match="can't be read as Parquet"):
        read_passages(str(path), column="vector")
    assert list(stream_passages(str(path), column="a.b")) == texts == read_passages(str(path), column="a.b")


def test_a_row_group_of_parquet_is_never_in_memory_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [os.urandom(125).hex() for _ in range(40_000)]}), path)
    assert pq.ParquetFile(path).num_row_groups == 1
    next(stream_passages(str(path)))
    tracemalloc.start()
    assert sum(1 for _ in stream_passages(str(path))) == 40_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < path.stat().st_size / 2


def test_a_beir_corpus_file_whose_titles_come_late(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"_id": str(number), "text": "Text."} for number in range(RECOGNISED_BY + 1)]
    source = jsonl(tmp_path / "corpus.jsonl", *rows, {"_id": "last", "title": "Title.", "text": "Text."})
    assert list(stream_passages(source)) == ["Text."] * (RECOGNISED_BY + 1) + ["Title. Text."] == read_passages(source)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "corpus.parquet")
    assert list(stream_passages(str(tmp_path / "corpus.parquet"))) == ["Text."] * (RECOGNISED_BY + 1)


def test_streamed_sources_that_are_faulty_from_the_start(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "empty.csv").write_text("text\n")
    for source, message in [
        (str(tmp_path / "empty.txt"), "no passages"),
        (str(tmp_path / "empty.csv"), "no rows"),
        (jsonl(tmp_path / "a.jsonl", {"body": "p"}), "Columns found: 'body'"),
        (str(tmp_path / "nowhere.jsonl"), "No such file"),
    ]:
        with pytest.raises(DataError, match=message):
            list(stream_passages(source))
