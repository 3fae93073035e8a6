"""Every faulty file gives one message that says where the fault is and what to do."""

from __future__ import annotations

import csv
import gzip
import json
import os
from pathlib import Path

import pytest

from embedtune.data.csv_files import MAX_FIELD_CHARACTERS, csv_records
from embedtune.data.files import read_records
from embedtune.data.lines import bare_stem, bare_suffix
from embedtune.errors import DataError

GOOD_LINE = b'{"anchor": "q", "positive": "p"}\n'


def message_for(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_records(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_names() -> None:
    assert bare_suffix("data/Train.JSONL.gz") == ".jsonl"
    assert bare_suffix("owner/name") == ""
    assert bare_stem("data/train.v2.jsonl.gz") == "train.v2"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"])
@pytest.mark.parametrize("packed", [False, True])
def test_empty_file(tmp_path: Path, name: str, packed: bool) -> None:
    if packed:
        assert "a." in message_for(tmp_path / f"{name}.gz", gzip.compress(b""))
    else:
        assert "is empty (0 bytes)" in message_for(tmp_path / name, b"")


@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", b"\n \n"), ("a.json", b"[]"), ("a.csv", b"anchor,positive\n")]
)
def test_no_rows(tmp_path: Path, name: str, content: bytes) -> None:
    assert "has no rows" in message_for(tmp_path / name, content)


def test_unknown_suffix(tmp_path: Path) -> None:
    message = message_for(tmp_path / "a.xlsx", b"PK")
    assert "'.xlsx'" in message
    assert ".parquet" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_binary_content(tmp_path: Path, name: str) -> None:
    assert "line 1: a NUL byte at byte 4" in message_for(tmp_path / name, b"abc\0def")
    assert "UTF-16" in message_for(tmp_path / name, "anchor,positive\n".encode("utf-16"))
    assert f"Rename it to '{name}.gz'" in message_for(tmp_path / name, gzip.compress(GOOD_LINE))


def test_invalid_utf8_names_line_and_byte(tmp_path: Path) -> None:
    message = message_for(tmp_path / "a.jsonl", GOOD_LINE * 2 + '{"anchor": "café"}'.encode("latin-1"))
    assert "line 3: not UTF-8 text (0xe9 at byte 16" in message
    assert "iconv" in message


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
def test_byte_order_mark_is_accepted(tmp_path: Path, name: str) -> None:
    contents = {
        "a.jsonl": GOOD_LINE,
        "a.json": b"[" + GOOD_LINE + b"]",
        "a.csv": b"anchor,positive\nq,p\n",
        "a.tsv": b"anchor\tpositive\nq\tp\n",
    }
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + contents[name])
    assert read_records(tmp_path / name)[0].fields == {"anchor": "q", "positive": "p"}


def test_broken_json_line_is_counted_over_blank_lines(tmp_path: Path) -> None:
    message = message_for(tmp_path / "a.jsonl", GOOD_LINE + b"\n\r\n" + b'{"anchor": "q", "posi')
    assert "line 4: not valid JSON (Unterminated string" in message
    assert "column 17" in message


def test_broken_json_file_names_the_line(tmp_path: Path) -> None:
    message = message_for(tmp_path / "a.json", b'[\n{"anchor": "q"},\n{"anchor" "q"}\n]')
    assert "line 3: not valid JSON (Expecting ':' delimiter" in message


def test_json_lines_that_are_no_objects(tmp_path: Path) -> None:
    message = message_for(tmp_path / "a.jsonl", GOOD_LINE + b'["q", "p"]\n')
    assert 'line 2: received list ["q", "p"]; expected a JSON object' in message
    assert "item 2 of the list: received str" in message_for(tmp_path / "a.json", b'[{"a": 1}, "q"]')
    assert "an object with 'data'" in message_for(tmp_path / "a.json", b'{"data": []}')


def test_deep_json_and_endless_numbers(tmp_path: Path) -> None:
    deep = b'{"anchor": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert "line 2: JSON nested too deeply" in message_for(tmp_path / "a.jsonl", GOOD_LINE + deep)
    assert "nested too deeply" in message_for(tmp_path / "a.json", deep)
    assert "line 1: JSON that can't be read" in message_for(tmp_path / "a.jsonl", b'{"id": ' + b"1" * 5000 + b"}")


def test_json_lines_under_a_json_name(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(GOOD_LINE + b"\n" + GOOD_LINE.replace(b'"q"', b'"r"'))
    records = read_records(tmp_path / "a.json")
    assert [record.origin for record in records] == ["a.json:1", "a.json:3"]


def test_line_separators_of_unicode_end_no_line(tmp_path: Path) -> None:
    text = "one\u2028two\x85three\u2029four"
    line = json.dumps({"anchor": text}, ensure_ascii=False)
    (tmp_path / "a.jsonl").write_text(f"{line}\n{line}\n", encoding="utf-8")
    records = read_records(tmp_path / "a.jsonl")
    assert [record.fields["anchor"] for record in records] == [text, text]


def test_broken_gzip(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(b'{"anchor": "q%d", "positive": "p"}\n' % n for n in range(1000)))
    assert "not a whole gzip file" in message_for(tmp_path / "cut.jsonl.gz", whole[: len(whole) // 2])
    assert "take '.gz' off its name" in message_for(tmp_path / "plain.jsonl.gz", GOOD_LINE)
    damaged = whole[:100] + bytes(byte ^ 0xFF for byte in whole[100:120]) + whole[120:]
    assert "gzip" in message_for(tmp_path / "damaged.csv.gz", damaged)


@pytest.mark.parametrize("content", [b"not parquet at all", b"PAR1" + b"\1" * 200 + b"PAR1"])
def test_broken_parquet(tmp_path: Path, content: bytes) -> None:
    assert "can't be read as Parquet" in message_for(tmp_path / "a.parquet", content)
    assert "can't be read as Parquet" in message_for(tmp_path / "a.parquet.gz", gzip.compress(content))


def test_ragged_csv_row_after_a_field_of_several_lines(tmp_path: Path) -> None:
    content = b'anchor,positive\nq1,"line\nline\nline"\n\nq2,p2,p3\n'
    message = message_for(tmp_path / "a.csv", content)
    assert "line 6: 3 fields; expected 2 as in the header ('anchor', 'positive')" in message


def test_csv_origin_is_the_line_the_row_starts_at(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'anchor,positive\r\nq1,"two\r\nlines"\r\nq2,p2\r\n')
    records = read_records(tmp_path / "a.csv")
    assert [record.origin for record in records] == ["a.csv:2", "a.csv:4"]
    assert records[0].fields["positive"] == "two\r\nlines"


@pytest.mark.parametrize("row", [b'q1,"never closed\nq2,p2\n', b'q1,"closed" too early\n'])
def test_csv_quoting_errors(tmp_path: Path, row: bytes) -> None:
    message = message_for(tmp_path / "a.csv", b"anchor,positive\nq0,p0\n" + row)
    assert "row that starts at line 3: not valid CSV" in message
    assert '""' in message


def test_csv_field_limit(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"anchor,positive\nq,{'x' * 1_000_000}\n")
    assert len(str(next(csv_records(path)).fields["positive"])) == 1_000_000
    message = message_for(path, b"anchor,positive\nq," + b"x" * (MAX_FIELD_CHARACTERS + 1))
    assert "10,000,000 characters" in message


def test_between_two_csv_rows_the_limit_of_a_field_is_everybody_elses(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"anchor,positive\nq1,p1\nq2,p2\n")
    limit = csv.field_size_limit()
    for _ in csv_records(tmp_path / "a.csv"):
        assert csv.field_size_limit() == limit


def test_csv_header_with_a_column_twice(tmp_path: Path) -> None:
    assert "the column 'text' twice" in message_for(tmp_path / "a.csv", b"text,text\na,b\n")


def test_semicolons_of_spreadsheets(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"Frage;positive\nWas, bitte?;p\n")
    assert read_records(tmp_path / "a.csv")[0].fields == {"Frage": "Was, bitte?", "positive": "p"}


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file")
def test_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD_LINE)
    path.chmod(0)
    with pytest.raises(DataError, match=r"No permission to read .*chmod"):
        read_records(path)
