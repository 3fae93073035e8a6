"""What is one text, which rows are dropped and counted, and what a run can't be trained on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedtune.data.clean import CleanRows, CollectionBuilder
from embedtune.data.collection import Collection
from embedtune.data.read import read
from embedtune.data.spelling import passage_key, text_key
from embedtune.data.table import Columns, Row, Table
from embedtune.data.trainable import check_trainable
from embedtune.errors import DataError


def table(rows: Iterable[Row], source: str = "data/train.jsonl.gz", passages: Iterable[object] = ()) -> Table:
    return Table(rows=list(rows), source=source, passages=list(passages), columns=Columns("anchor", "positive"))


def cleaned(*rows: Row) -> tuple[CleanRows, Collection]:
    builder = CollectionBuilder()
    clean = builder.add(table(rows))
    return clean, builder.finish()


def texts(clean: CleanRows, collection: Collection) -> list[tuple[str, str, tuple[str, ...]]]:
    pairs = clean.pairs
    return [
        (
            collection.queries[pairs.query_ids[row]],
            collection.passages[pairs.passage_ids[row]],
            tuple(collection.passages[number] for number in pairs.negative_ids[row]),
        )
        for row in range(len(pairs))
    ]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("\ufb01ne", "fine"),
        ("a\u00a0 b\t\nc ", "a b c"),
        ("zero\u200bwidth", "zerowidth"),
        ("\ufeffmark", "mark"),
        ("soft\u00adhyphen", "softhyphen"),
        ("e\u200d\u0301", "\u00e9"),
        ("n\0ul", "nul"),
        ("\uff21\uff22\uff23", "ABC"),
    ],
)
def test_texts_that_look_alike_are_one(one: str, other: str) -> None:
    assert text_key(one) == text_key(other)


def test_texts_that_read_differently_are_two() -> None:
    assert len({text_key(text) for text in ("Apple", "apple", "apple.", "app le", "äpple")}) == 5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Mooring at night. Lines are doubled.", "Mooring at night Lines are doubled"),
        ("Mooring: lines", "Mooring - lines"),
        ("# Mooring\n\n\u2022 lines; fenders", "Mooring | lines, fenders!"),
        ("\u9996\u9875\u3002\u6b63\u6587", "\u9996\u9875 \u6b63\u6587"),
        ("caf\u00e9.", "cafe\u0301"),
    ],
)
def test_passages_are_one_whatever_stands_between_their_words(one: str, other: str) -> None:
    assert text_key(one) != text_key(other)
    assert passage_key(one) == passage_key(other)


@pytest.mark.parametrize(
    "texts",
    [
        ("1.5 m", "15 m", "1 5 m", "1,5 m"),
        ("-5 \u00b0C", "5 \u00b0C"),
        ("C", "C++", "C#"),
        (".env", "env"),
        ("a + b", "a * b", "a / b", "a = b"),
        ("the crew's", "the crews"),
        ("re-sign", "resign"),
        ("Apple", "apple"),
        ("...", "?!", "-"),
    ],
)
def test_punctuation_in_words_makes_another_passage(texts: tuple[str, ...]) -> None:
    assert len({passage_key(text) for text in texts}) == len(texts)


@given(st.text(alphabet=st.characters(), max_size=40))
def test_equal_texts_are_equal_passages(text: str) -> None:
    assert passage_key(text_key(text)) == passage_key(text)


def test_a_passage_in_two_punctuations_is_one_answer_and_told_of() -> None:
    """A corpus that joins title and text otherwise than the pairs has no second copy of an answer in it."""
    builder = CollectionBuilder()
    clean = builder.add(
        table(
            [
                Row("q", "Title. Its text"),
                Row("q", "Title: Its text"),
                Row("q?", "other", negatives=("Title Its text.",)),
            ]
        )
    )
    assert builder.collection.passages == ["Title. Its text", "other"]
    builder.add_passages(["Title Its text", "another", "other"])
    assert builder.finish().passages == ["Title Its text", "other", "another"]  # as the corpus has it
    assert texts(clean, builder.collection) == [("q", "Title Its text", ()), ("q?", "other", ("Title Its text",))]
    assert clean.dropped == {"duplicate_pairs": 1}
    assert builder.respelled == {0: "Title: Its text"}


def test_graded_passages_keep_their_punctuation() -> None:
    builder = CollectionBuilder()
    rows = [Row("q", "p.", grade=0.2), Row("q", "p!", grade=0.4)]
    builder.add(replace(table(rows), graded=True))
    assert builder.finish().passages == ["p.", "p!"]
    assert builder.respelled == {}


@given(st.text(alphabet=st.characters(), max_size=40))
def test_key_of_a_key_is_itself(text: str) -> None:
    assert text_key(text_key(text)) == text_key(text)


def test_first_spelling_is_kept_stripped() -> None:
    clean, collection = cleaned(Row(" caf\u00e9\u00a0? ", "p  one\n"), Row("cafe\u0301 ?", "p two"))
    assert texts(clean, collection) == [("caf\u00e9\u00a0?", "p  one", ()), ("caf\u00e9\u00a0?", "p two", ())]
    assert collection.qrels == {0: {0: 1.0, 1: 1.0}}


def test_half_a_surrogate_pair_can_be_saved() -> None:
    clean, collection = cleaned(Row("broken \ud83d emoji", "whole \U0001f600 emoji", id="\ud83d"))
    assert clean.pairs.row_ids == ("\ufffd",)
    assert collection.queries == ["broken \ufffd emoji"]
    assert collection.passages == ["whole \U0001f600 emoji"]


def test_every_dropped_row_is_counted() -> None:
    clean, collection = cleaned(
        Row("q", "p"),
        Row("", "p"),
        Row(None, "p"),
        Row("\u200b \u00a0", "p"),
        Row("q", " "),
        Row("q", None),
        Row(3, "p"),
        Row("q", {"text": "p"}),
        Row("Same", " Same"),
        Row("q ", "p\u200b"),
        Row("q", "p2", negatives=("", "n", 5, "q", "n ")),
    )
    assert clean.dropped == {
        "empty_anchor": 3,
        "empty_positive": 2,
        "non_string": 2,
        "anchor_equals_positive": 1,
        "duplicate_pairs": 1,
        "empty_negatives": 1,
        "non_string_negatives": 1,
        "negatives_that_are_anchors": 1,
    }
    assert texts(clean, collection) == [("q", "p", ()), ("q", "p2", ("n",))]
    assert collection.queries == ["q"]


def test_duplicates_lend_their_negatives_to_the_first_row() -> None:
    clean, collection = cleaned(
        Row("q", "p", negatives=("n1",)), Row("q2", "p2"), Row("q", "p", negatives=("n2", "n1"))
    )
    assert texts(clean, collection) == [("q", "p", ("n1", "n2")), ("q2", "p2", ())]


def test_negatives_that_any_table_knows_as_positives_are_taken_out() -> None:
    builder = CollectionBuilder()
    train = builder.add(table([Row("q", "p1", negatives=("p2", "p3", "n")), Row("other", "p3")]))
    test = builder.add(table([Row("q", "p2", negatives=("p1",))], source="test.jsonl"))
    collection = builder.finish()
    assert texts(train, collection)[0] == ("q", "p1", ("p3", "n"))
    assert train.dropped["negatives_that_are_positives"] == 1
    assert texts(test, collection) == [("q", "p2", ())]
    assert test.dropped["negatives_that_are_positives"] == 1
    assert collection.qrels[0] == {0: 1.0, 1: 1.0}


def test_the_same_pair_in_two_tables_is_no_duplicate() -> None:
    builder = CollectionBuilder()
    tables = [builder.add(table([Row("q", "p"), Row("q2", "p2")], source=source)) for source in ("a", "b")]
    assert [len(clean.pairs) for clean in tables] == [2, 2]
    assert [clean.dropped for clean in tables] == [{}, {}]
    assert len(builder.finish().passages) == 2


def test_extra_passages_join_the_collection_once() -> None:
    builder = CollectionBuilder()
    clean = builder.add(table([Row("q", "p", grade=2.0)], passages=["p ", "extra", "", None, 5]))
    assert clean.dropped == {"empty_passages": 2, "non_string": 1}
    assert builder.add_passages(["extra", "more", " "]) == {"empty_passages": 1}
    collection = builder.finish()
    assert collection.passages == ["p", "extra", "more"]
    assert collection.qrels == {0: {0: 2.0}}


def test_row_ids_are_given_or_made_and_unique() -> None:
    clean, _ = cleaned(
        Row("q1", "p1", id="a"),
        Row("q2", "p2"),
        Row("q3", "p3", id="a"),
        Row("q4", "p4", id="a-2"),
        Row("q5", "p5", id="a"),
    )
    assert clean.pairs.row_ids == ("a", "train-000002", "a-3", "a-2", "a-4")


def test_no_usable_row_gives_the_counts() -> None:
    with pytest.raises(DataError) as caught:
        cleaned(Row("q", ""), Row("q", None), Row(1, "p"))
    assert "none of its 3 rows can be used (empty_positive: 2, non_string: 1)" in str(caught.value)
    assert "'anchor' and 'positive'" in str(caught.value)
    assert "--positive-column NAME" in str(caught.value)


def test_squad_like_cells_of_a_file(tmp_path: Path) -> None:
    record = {"id": "x", "question": "q?", "context": "c", "answers": {"text": ["a"], "answer_start": [0]}}
    (tmp_path / "squad.jsonl").write_text(json.dumps(record) + "\n")
    builder = CollectionBuilder()
    clean = builder.add(read(str(tmp_path / "squad.jsonl")))
    assert texts(clean, builder.finish()) == [("q?", "c", ())]
    assert clean.pairs.row_ids == ("x",)


def test_one_passage_is_not_trainable() -> None:
    clean, collection = cleaned(Row("q1", "the only passage"), Row("q2", "the only passage "))
    with pytest.raises(DataError, match=r"1 distinct passage \('the only passage'\).*at least two"):
        check_trainable(clean.pairs, collection, "train.jsonl")


def test_passages_that_all_answer_every_question_are_not_trainable() -> None:
    clean, collection = cleaned(Row("q", "p1"), Row("q", "p2"))
    with pytest.raises(DataError, match="every one of its 2 passages answers every question"):
        check_trainable(clean.pairs, collection, "train.jsonl")


def test_no_rows_left_are_not_trainable() -> None:
    clean, collection = cleaned(Row("q", "p1"), Row("q2", "p2"))
    with pytest.raises(DataError, match="no rows are left"):
        check_trainable(clean.pairs.select([]), collection, "train.jsonl")


def test_a_wrong_passage_is_enough_to_train() -> None:
    clean, collection = cleaned(Row("q", "p", negatives=("n",)))
    check_trainable(clean.pairs, collection, "train.jsonl")
    clean, collection = cleaned(Row("q1", "p1"), Row("q2", "p2"))
    check_trainable(clean.pairs, collection, "train.jsonl")
