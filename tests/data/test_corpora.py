"""BEIR folders and LlamaIndex files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from embedtune.data.read import available_splits, read, read_passages
from embedtune.errors import DataError

CORPUS = [
    {"_id": "d1", "title": "Title.", "text": "One."},
    {"_id": "d2", "title": "", "text": "Two."},
    {"_id": "d3", "text": "Three."},
]
QUERIES = [{"_id": "q1", "text": "first?"}, {"_id": 2, "text": "second?"}]
HEADER = "query-id\tcorpus-id\tscore\n"


def beir(folder: Path, qrels: dict[str, str], *, packed: bool = False) -> str:
    texts = {
        "corpus.jsonl": "".join(json.dumps(document) + "\n" for document in CORPUS),
        "queries.jsonl": "".join(json.dumps(query) + "\n" for query in QUERIES),
        **qrels,
    }
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if packed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(text.encode()))
        else:
            path.write_text(text)
    return str(folder)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["qrels/{}.tsv", "qrels.{}.tsv"])
def test_beir_splits(tmp_path: Path, form: str, packed: bool) -> None:
    qrels = {
        form.format("train"): HEADER + "q1\td1\t2\nq1\td2\t0\nq1\td3\t-1\r\n",
        form.format("validation"): HEADER + "2\td3\t1\n",
        form.format("test"): "2\td2\t1\n",
    }
    source = beir(tmp_path, qrels, packed=packed)
    assert available_splits(source) == {"train", "dev", "test"}
    train, dev, test = (read(source, split=split) for split in ("train", "dev", "test"))
    assert [(row.anchor, row.positive, row.grade) for row in train.rows] == [("first?", "Title. One.", 2.0)]
    assert [(row.anchor, row.positive) for row in dev.rows] == [("second?", "Three.")]
    assert [(row.anchor, row.positive) for row in test.rows] == [("second?", "Two.")]
    assert train.rows[0].origin.endswith(":2")
    assert train.passages == ["Title. One.", "Two.", "Three."] == read_passages(source)


def test_a_single_split_is_read_like_a_file(tmp_path: Path) -> None:
    source = beir(tmp_path, {"qrels/test.tsv": HEADER + "q1\td1\t1\n"})
    assert available_splits(source) == frozenset()
    assert len(read(source, split="train").rows) == 1


def test_split_that_is_not_there(tmp_path: Path) -> None:
    source = beir(tmp_path, {"qrels/train.tsv": HEADER, "qrels/test.tsv": HEADER})
    assert available_splits(source) == {"train", "test"}
    with pytest.raises(DataError, match=r"no qrels for the split 'dev'; found: test, train"):
        read(source, split="dev")
    with pytest.raises(DataError, match="found: none"):
        read(beir(tmp_path / "without", {}), split="dev")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("q9\td1\t1\n", "line 2: the query id 'q9' is not in the folder's queries.jsonl"),
        ("q1\td9\t1\n", "line 2: the corpus id 'd9' is not in the folder's corpus.jsonl"),
        ("q1 d1 1\n", "line 2: received .*tabs"),
        ("q1\td1\thigh\n", "line 2: received .*number"),
        ("q1\td1\t0\n", "no rows with a score above 0"),
    ],
)
def test_qrels_that_cannot_be_used(tmp_path: Path, line: str, expected: str) -> None:
    source = beir(tmp_path, {"qrels/test.tsv": HEADER + line})
    with pytest.raises(DataError, match=expected):
        read(source, split="test")


def test_corpus_that_cannot_be_used(tmp_path: Path) -> None:
    source = beir(tmp_path, {"qrels/test.tsv": HEADER + "q1\td1\t1\n"})
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\n{"_id": "d1", "text": "b"}\n')
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: the _id 'd1' is there twice"):
        read(source)
    (tmp_path / "corpus.jsonl").write_text('{"id": "d1", "text": "a"}\n')
    with pytest.raises(DataError, match="expected the keys '_id' and 'text'"):
        read(source)


def llamaindex(path: Path, **changes: object) -> str:
    content: dict[str, object] = {
        "queries": {"q1": "first?", "q2": "second?"},
        "corpus": {"d1": "One.", "d2": "Two.", "d3": "Three."},
        "relevant_docs": {"q1": ["d1", "d2"], "q2": ["d2"]},
        "mode": "text",
    }
    text = json.dumps(content | changes).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return str(path)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz"])
def test_llamaindex(tmp_path: Path, name: str) -> None:
    source = llamaindex(tmp_path / name)
    table = read(source)
    assert [(row.anchor, row.positive) for row in table.rows] == [
        ("first?", "One."),
        ("first?", "Two."),
        ("second?", "Two."),
    ]
    assert table.passages == ["One.", "Two.", "Three."] == read_passages(source)
    assert available_splits(source) == frozenset()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"relevant_docs": {"q9": ["d1"]}}, "relevant_docs of 'q9': there is no such id in 'queries'"),
        ({"relevant_docs": {"q1": ["d9"]}}, "'d9' is not in 'corpus'"),
        ({"relevant_docs": {"q1": "d1"}}, "received str; expected a list"),
        ({"relevant_docs": {}}, "has no rows"),
        ({"queries": ["first?"]}, "'queries' is list; expected an object"),
    ],
)
def test_llamaindex_that_cannot_be_used(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        read(llamaindex(tmp_path / "a.json", **changes))
