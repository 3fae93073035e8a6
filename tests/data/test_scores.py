"""What a score column is taken for, that no row it calls wrong becomes a positive, and a teacher's scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedtune.config import DataConfig
from embedtune.data.clean import CleanRows, CollectionBuilder
from embedtune.data.collection import Collection
from embedtune.data.fingerprint import data_hashes
from embedtune.data.labels import relabelled
from embedtune.data.prepare import prepare, write_splits
from embedtune.data.read import Columns, read
from embedtune.errors import ConfigError, DataError


def written(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> str:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def cleaned(source: str, columns: Columns = Columns()) -> tuple[CleanRows, Collection]:  # noqa: B008
    builder = CollectionBuilder()
    rows = builder.add(read(source, columns=columns))
    return rows, builder.finish()


def labelled(*rows: tuple[str, str, object], name: str = "label") -> list[dict[str, Any]]:
    return [{"question": question, "passage": passage, name: label} for question, passage, label in rows]


def graded(*rows: tuple[str, str, object]) -> list[dict[str, Any]]:
    return [{"sentence1": first, "sentence2": second, "score": score} for first, second, score in rows]


def test_rows_labelled_0_become_negatives_and_never_positives(tmp_path: Path) -> None:
    rows = labelled(("q1", "wrong", 0), ("q1", "right", 1), ("q1", "also", 1), ("q2", "lonely", 0), ("q3", "p", 1))
    clean, collection = cleaned(written(tmp_path, rows))
    texts = [
        (collection.queries[query], collection.passages[passage], [collection.passages[p] for p in negatives])
        for query, passage, negatives in zip(
            clean.pairs.query_ids, clean.pairs.passage_ids, clean.pairs.negative_ids, strict=True
        )
    ]
    assert texts == [("q1", "right", ["wrong"]), ("q1", "also", ["wrong"]), ("q3", "p", [])]
    assert clean.dropped == {"labelled_0_only": 1}
    assert clean.rejected == 1
    assert "wrong" not in {collection.passages[p] for grades in collection.qrels.values() for p in grades}
    assert "q2" not in collection.queries
    assert clean.pairs.grades is None


def test_a_pair_labelled_both_ways_is_right(tmp_path: Path) -> None:
    rows = labelled(("q", "p", 0), ("q", "p", 1), ("q", "other", True), name="score")
    clean, _ = cleaned(written(tmp_path, rows))
    assert clean.pairs.negative_ids == ((), ())
    assert clean.dropped["negatives_that_are_positives"] == 2


def test_labels_as_csv_has_them(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,passage,label\nq,right,1\nq,wrong,0\n", encoding="utf-8")
    clean, _ = cleaned(str(path))
    assert clean.pairs.negative_ids == ((1,),)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 0], "0 in all 2 rows"),
        ([1, None], "rows.jsonl:2: the label is None; expected a number in every row"),
        ([1, "yes"], "rows.jsonl:2: the label is 'yes'"),
        ([0.5, float("nan")], "the label is nan"),
        ([3, 3], "is 3 in all rows"),
        ([[0.1, 0.2], [0.3, 0.1]], None),
        ([0, 1, 2], "may be classes"),
    ],
)
def test_what_cannot_be_understood_is_refused(labels: list[Any], message: str | None, tmp_path: Path) -> None:
    rows = labelled(*((f"q{number}", f"p{number}", label) for number, label in enumerate(labels)))
    source = written(tmp_path, rows)
    if message is None:
        assert "holds no numbers" in read(source).warning
    else:
        with pytest.raises(DataError) as caught:
            read(source)
        assert message in str(caught.value)
        assert "--score-column" in str(caught.value)
    table = read(source, columns=Columns(score="none"))
    assert [row.grade for row in table.rows] == [1.0] * len(labels)
    assert (table.graded, table.note, table.warning) == (False, "", "")


def test_words_in_a_label_column_are_told_and_an_empty_one_is_nothing(tmp_path: Path) -> None:
    words = read(written(tmp_path, labelled(("q", "p", "sport"), ("q2", "p2", None))))
    assert "such as 'sport'" in words.warning
    assert [row.grade for row in words.rows] == [1.0, 1.0]
    empty = read(written(tmp_path, labelled(("q", "p", None), ("q2", "p2", ""))))
    assert not empty.warning


def test_grades_are_brought_to_0_and_1(tmp_path: Path) -> None:
    rows = graded(("a", "b", 0.0), ("c", "d", 2.5), ("e", "e", 5.0), ("c", "d", 5), ("x", " ", 1))
    clean, collection = cleaned(written(tmp_path, rows))
    assert clean.pairs.grades is not None
    np.testing.assert_allclose(clean.pairs.grades, [0.0, 0.5, 1.0, 1.0])
    assert clean.dropped == {"empty_text": 1}
    assert (collection.graded, collection.sentences) == (True, True)
    assert collection.queries is collection.passages
    assert collection.queries == ["a", "b", "c", "d", "e"]
    assert collection.qrels == {}
    within, _ = cleaned(written(tmp_path, graded(("a", "b", 0.2), ("c", "d", 0.9))))
    assert within.pairs.grades is not None
    np.testing.assert_allclose(within.pairs.grades, [0.2, 0.9])


def test_sentences_with_0_and_1_are_graded_and_questions_with_other_numbers_too(tmp_path: Path) -> None:
    assert read(written(tmp_path, graded(("a", "b", 0), ("c", "d", 1)))).graded
    table = read(written(tmp_path, labelled(("q", "p", 0.2), ("q", "p2", 0.7))))
    assert table.graded
    assert "was taken as grades from 0.2 to 0.7" in table.warning
    given = read(written(tmp_path, labelled(("q", "p", 0.2), ("q", "p2", 0.7))), columns=Columns(score="label"))
    assert given.graded
    assert not given.warning


def test_grades_beside_negatives_are_refused(tmp_path: Path) -> None:
    rows = [{**row, "negative": "n"} for row in labelled(("q", "p", 0.2), ("q", "p2", 0.7))]
    with pytest.raises(DataError, match="A teacher's scores belong into a column 'scores'"):
        read(written(tmp_path, rows))


def test_files_of_two_kinds_are_not_joined(tmp_path: Path) -> None:
    train = written(tmp_path, graded(("a", "b", 0), ("c", "d", 5)), "train.jsonl")
    test = written(tmp_path, labelled(("q", "p", 1), ("q2", "p2", 1)), "test.jsonl")
    with pytest.raises(DataError, match=r"train.jsonl' has graded sentences, '.*test.jsonl' has pairs without grades"):
        prepare(DataConfig(train=train, test=test), seed=0)


def teacher_row(**changes: Any) -> dict[str, Any]:
    row = {"question": "q", "passage": "p", "negative_1": "n1", "negative_2": "n2", "scores": [0.9, 0.2, 0.1]}
    return {**row, **changes}


def test_a_teachers_scores_stay_with_their_texts(tmp_path: Path) -> None:
    rows = [
        teacher_row(),
        teacher_row(question="q2", passage="n1", negative_1="q2", negative_2="p", scores=["0.8", 0.3, 0.2]),
        teacher_row(question="q3", negative_2=None, scores=[0.7, 0.3]),
        teacher_row(question="q4", scores=None),
        teacher_row(question="q", passage="n2", negative_1="n3", negative_2="n1", scores=[0.6, 0.5, 0.4]),
    ]
    clean, collection = cleaned(written(tmp_path, rows))
    names = [[collection.passages[n] for n in negatives] for negatives in clean.pairs.negative_ids]
    assert names == [["n1"], ["p"], ["n1"], ["n1", "n2"], ["n3", "n1"]]
    assert clean.pairs.scores == ((0.9, 0.2), (0.8, 0.2), (0.7, 0.3), (), (0.6, 0.5, 0.4))
    assert clean.pairs.select([3, 1]).scores == ((), (0.8, 0.2))
    changed = relabelled(clean.pairs, {(0, 0): 3})
    assert changed.scores == ((), *clean.pairs.scores[1:])


def test_a_teachers_scores_in_columns_of_their_own(tmp_path: Path) -> None:
    row = {"question": "q", "passage": "p", "negative": "n", "score_positive": 0.9, "score_negative": 0.1}
    clean, _ = cleaned(written(tmp_path, [row, {**row, "question": "q2", "negative": None, "score_negative": None}]))
    assert clean.pairs.scores == ((0.9, 0.1), (0.9,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scores": [0.9, 0.2]}, "rows.jsonl:2: 2 scores in 'scores', expected 3"),
        ({"negative_2": None}, "rows.jsonl:2: 3 scores in 'scores', expected 2"),
        ({"scores": [0.9, 0.2, "x"]}, "has the score 'x', expected a number"),
        ({"scores": 0.9}, "1 scores in 'scores', expected 3"),
        ({"passage": ["p", "p2"]}, "expected one of each"),
    ],
)
def test_scores_that_do_not_fit_name_their_row(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = written(tmp_path, [teacher_row(), teacher_row(**changes)])
    with pytest.raises(DataError) as caught:
        read(source)
    assert message in str(caught.value)
    assert all(row.scores == () for row in read(source, columns=Columns(score="none")).rows)


def chain(count: int) -> list[dict[str, Any]]:
    """Graded pairs in which every fifth row begins with the second sentence of the row before."""
    rows = []
    for number in range(count):
        first = f"s{number - 1} b" if number % 5 == 0 and number else f"s{number} a"
        rows.append({"sentence1": first, "sentence2": f"s{number} b", "score": number % 6})
    return rows


def test_no_sentence_is_on_two_sides_and_the_splits_are_read_back(tmp_path: Path) -> None:
    splits = prepare(DataConfig(train=written(tmp_path, chain(200))), seed=0)
    sides = [set(pairs.query_ids) | set(pairs.passage_ids) for pairs in splits.pairs.values()]
    assert all(len(side) > 10 for side in sides)
    assert len(set.union(*sides)) == sum(map(len, sides))
    assert any("cut off by sentence" in note for note in splits.notes)
    write_splits(splits, tmp_path / "splits")
    train, dev, test = (str(tmp_path / "splits" / f"{name}.jsonl") for name in ("train", "dev", "test"))
    again = prepare(DataConfig(train=train, dev=dev, test=test), seed=0)
    for name, pairs in splits.pairs.items():
        other = again.pairs[name]
        assert other.row_ids == pairs.row_ids
        assert pairs.grades is not None
        np.testing.assert_array_equal(other.grades, pairs.grades)
    hashes = data_hashes(splits)
    assert {name: hashes[name] for name in splits.pairs} == {name: data_hashes(again)[name] for name in splits.pairs}
    assert splits.train.grades is not None
    regraded = replace(splits.train, grades=splits.train.grades / 2)
    assert data_hashes(replace(splits, train=regraded))["train"] != hashes["train"]


def test_training_pairs_with_a_test_sentence_on_either_side_are_left_out(tmp_path: Path) -> None:
    rows = [*chain(40), *graded(("seen", "x1", 1), ("x2", "seen", 2), ("x3", "x4", 3))]
    test = written(tmp_path, graded(("seen", "y", 0), ("z", "z2", 5)), "test.jsonl")
    splits = prepare(DataConfig(train=written(tmp_path, rows), test=test), seed=0)
    assert splits.leaks.pairs == splits.dropped["leaked_pairs"] == 2
    assert splits.leaks.test_passages == 1
    kept = {splits.collection.queries[i] for i in (*splits.train.query_ids, *splits.train.passage_ids)}
    assert not kept & {"seen", "x1", "x2"}
    assert any("1 of the 4 test sentences are also in the training data" in warning for warning in splits.warnings)


def test_a_teachers_scores_are_written_with_the_splits(tmp_path: Path) -> None:
    rows = [
        {"question": f"q{n}", "passage": f"p{n}", "negative": f"n{n}", **({"scores": [0.5, n / 100]} if n % 3 else {})}
        for n in range(60)
    ]
    splits = prepare(DataConfig(train=written(tmp_path, rows)), seed=0)
    write_splits(splits, tmp_path / "splits")
    again = read(str(tmp_path / "splits" / "train.jsonl"))
    assert tuple(row.scores for row in again.rows) == splits.train.scores
    assert splits.train.scores is not None
    without = replace(splits.train, scores=tuple(() for _ in splits.train.scores))
    assert data_hashes(replace(splits, train=without))["train"] != data_hashes(splits)["train"]


def test_graded_pairs_of_one_grade_or_with_a_corpus_are_refused(tmp_path: Path) -> None:
    train = written(tmp_path, chain(40))
    test = written(tmp_path, graded(("u", "v", 0.5), ("u2", "v2", 0.5), ("u3", "v3", 0.5)), "test.jsonl")
    with pytest.raises(DataError, match=r"is 0\.5 in all rows"):
        prepare(DataConfig(train=train, test=test), seed=0)
    with pytest.raises(ConfigError, match="--corpus"):
        prepare(DataConfig(train=train, corpus=train), seed=0)
