"""Columns are recognised by the names people use, and the message says what to type where they are not."""

from __future__ import annotations

import pytest

from embedtune.data.columns import resolve_columns
from embedtune.data.table import Columns
from embedtune.errors import DataError

NO_SCORE = Columns(score="none")


def resolved(*names: str, asked: Columns = Columns()) -> tuple[str | None, str | None, tuple[str, ...]]:  # noqa: B008
    columns = resolve_columns(asked, names, "train.jsonl")
    return columns.anchor, columns.positive, columns.negatives


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["anchor", "positive"], ("anchor", "positive", ())),
        (["Question", "Answer"], ("Question", "Answer", ())),
        (["QUERY", "Passage Text"], ("QUERY", "Passage Text", ())),
        ([" query", "pos", "neg"], (" query", "pos", ("neg",))),
        (["id", "title", "context", "question", "answers"], ("question", "context", ())),
        (["question", "answer", "context"], ("question", "context", ())),
        (["text", "question"], ("question", "text", ())),
        (["query", "document", "answer"], ("query", "document", ())),
        (
            ["anchor", "positive", "negative_1", "Negative-2", "negative 10"],
            ("anchor", "positive", ("negative_1", "Negative-2", "negative 10")),
        ),
        (["query", "positive", "hard_negatives"], ("query", "positive", ("hard_negatives",))),
        (["query", "positive", "negative_score", "negation"], ("query", "positive", ())),
    ],
)
def test_recognised(names: list[str], expected: tuple[str, str, tuple[str, ...]]) -> None:
    assert resolved(*names) == expected


def test_given_name_is_matched_loosely_and_leaves_the_other_to_be_recognised() -> None:
    assert resolved("My Question", "text", asked=Columns(anchor="my_question")) == ("My Question", "text", ())
    assert resolved("text", "passage", asked=Columns(anchor="passage")) == ("passage", "text", ())


def test_given_column_that_is_missing() -> None:
    with pytest.raises(DataError) as caught:
        resolved("frage", "antwort", asked=Columns(anchor="fragen", positive="antwort"))
    assert "has no column 'fragen'. Columns found: 'frage', 'antwort'." in str(caught.value)
    assert "--anchor-column 'frage'" in str(caught.value)
    with pytest.raises(DataError, match="--positive-column NAME"):
        resolved("frage", "antwort", asked=Columns(anchor="frage", positive="x"))
    with pytest.raises(DataError, match="no column 'worse'"):
        resolved("anchor", "positive", asked=Columns(negatives=("worse",)))


def test_not_recognised_names_the_columns_and_the_flags() -> None:
    with pytest.raises(DataError) as caught:
        resolved("frage", "antwort")
    assert "Columns found: 'frage', 'antwort'" in str(caught.value)
    assert "--anchor-column NAME --positive-column NAME" in str(caught.value)
    with pytest.raises(DataError) as caught:
        resolved("question", "antwort")
    assert "--positive-column NAME" in str(caught.value)
    assert "--anchor-column" not in str(caught.value)


def test_sentences_are_recognised_with_their_score_only() -> None:
    columns = resolve_columns(Columns(), ["sentence1", "Sentence2", "score"], "sts.jsonl")
    assert columns == Columns("sentence1", "Sentence2", score="score", sentences=True)
    for names, asked in ((["sentence1", "sentence2"], Columns()), (["sentence1", "sentence2", "score"], NO_SCORE)):
        with pytest.raises(DataError, match="not recognised"):
            resolve_columns(asked, names, "sts.jsonl")
    assert resolve_columns(Columns(), ["question", "passage", "sentence1", "rating"], "x").score is None


def test_score_columns_are_recognised_or_given() -> None:
    for name in ("score", "Label", "similarity"):
        assert resolve_columns(Columns(), ["question", "passage", name], "x").score == name
    assert resolve_columns(Columns(score="my grade"), ["question", "passage", "My Grade"], "x").score == "My Grade"
    assert resolve_columns(NO_SCORE, ["question", "passage", "score", "scores"], "x") == Columns("question", "passage")
    with pytest.raises(DataError, match=r"no column 'scor'.*--score-column 'score'"):
        resolve_columns(Columns(score="scor"), ["question", "passage", "score"], "x")


def test_a_teachers_columns_have_the_order_of_the_negatives() -> None:
    names = ["question", "positive", "negative_1", "negative_2", "score_negative_2", "score_positive"]
    with pytest.raises(DataError, match="expected 'score_negative_1'"):
        resolve_columns(Columns(), names, "x")
    columns = resolve_columns(Columns(), [*names, "score_negative_1"], "x")
    assert columns.teacher == ("score_positive", "score_negative_1", "score_negative_2")
    with pytest.raises(DataError, match="expected a column 'negative_3'"):
        resolve_columns(Columns(), [*names, "score_negative_1", "score_negative_3"], "x")
