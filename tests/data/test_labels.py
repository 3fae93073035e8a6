"""What a reader said of the suspects changes which passages answer a question."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embedtune.data.clean import CollectionBuilder
from embedtune.data.collection import Collection, Pairs
from embedtune.data.labels import apply_labels, read_labels, relabelled
from embedtune.data.table import Row, Table
from embedtune.errors import DataError

Line = tuple[str, str, str, str]
"""Label, query, positive, candidate."""


def suspects(path: Path, *lines: Line) -> str:
    names = ("label", "query", "positive", "candidate")
    rows = [{**dict(zip(names, line, strict=True)), "scores": {"positive": 0.1, "candidate": 0.9}} for line in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data() -> tuple[Collection, Pairs]:
    rows = [Row("q0", "p0"), Row("q1", "p1", grade=2.0), Row("q1", "p2"), Row("q2", "p3", negatives=("p1",))]
    builder = CollectionBuilder()
    clean = builder.add(Table(rows=rows, source="a.jsonl"))
    return builder.finish(), clean.pairs


def test_also_adds_an_answer_and_instead_replaces_one(tmp_path: Path, data: tuple[Collection, Pairs]) -> None:
    collection, pairs = data
    source = suspects(
        tmp_path / "suspects.jsonl",
        ("also", "q0", "p0", "p1"),
        ("INSTEAD ", " q1", "p1", "p3\u200b"),
        ("no", "not", "in the", "data"),
        ("", "not", "in the", "data"),
    )
    replaced = apply_labels(read_labels(source), collection)
    assert collection.qrels == {0: {0: 1.0, 1: 1.0}, 1: {2: 1.0, 3: 2.0}, 2: {3: 1.0}}
    after = relabelled(pairs, replaced)
    assert after.query_ids.tolist() == [0, 1, 1, 2]
    assert after.passage_ids.tolist() == [0, 3, 2, 3]
    assert after.row_ids == pairs.row_ids


def test_a_pair_that_was_there_already_is_kept_once(tmp_path: Path, data: tuple[Collection, Pairs]) -> None:
    collection, pairs = data
    source = suspects(tmp_path / "suspects.jsonl", ("instead", "q1", "p1", "p2"))
    after = relabelled(pairs, apply_labels(read_labels(source), collection))
    assert after.passage_ids.tolist() == [0, 2, 3]
    assert collection.qrels[1] == {2: 1.0}


def test_labels_may_come_from_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "suspects.csv"
    path.write_text("label,query,positive,candidate,label by\nalso,q,p,c,me\n")
    assert [(label.label, label.candidate) for label in read_labels(str(path))] == [("also", "c")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (("maybe", "q0", "p0", "p1"), r"suspects\.jsonl:2.*'maybe'.*'also'.*'instead'.*'no'"),
        (("also", "q9", "p0", "p1"), r"suspects\.jsonl:2: the query 'q9' is not in the data.*--corpus"),
        (("also", "q0", "p9", "p1"), r"suspects\.jsonl:2: the positive 'p9' is not in the data"),
        (("also", "q0", "p0", "p9"), r"suspects\.jsonl:2: the candidate 'p9' is not in the data"),
        (("also", "q0", "p2", "p1"), r"suspects\.jsonl:2: the positive 'p2' is not a passage of its query"),
        (("instead", "q0", "p0", "p0"), r"suspects\.jsonl:2: the positive 'p0' is the candidate as well"),
        (("instead", "q1", "p2", "p1"), r"suspects\.jsonl:1: the candidate answers .*'instead' of that passage"),
    ],
)
def test_labels_that_do_not_fit(line: Line, message: str, tmp_path: Path, data: tuple[Collection, Pairs]) -> None:
    source = suspects(tmp_path / "suspects.jsonl", ("instead", "q1", "p1", "p2"), line)
    with pytest.raises(DataError, match=message):
        apply_labels(read_labels(source), data[0])


def test_a_file_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"query": "q", "positive": "p"}\n')
    with pytest.raises(DataError, match=r"pairs\.jsonl:1: no text in 'label'; expected .* suspects\.jsonl"):
        read_labels(str(path))


def test_nothing_labelled_changes_nothing(data: tuple[Collection, Pairs]) -> None:
    collection, pairs = data
    assert apply_labels([], collection) == {}
    assert np.array_equal(relabelled(pairs, {}).passage_ids, pairs.passage_ids)
