"""The BM25 baseline: the formula, the words, and texts that could trip it."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from embedtune.retrieval import bm25
from embedtune.retrieval.bm25 import WordIndex, bm25_search, split_finely, tokenise

CORPUS = ["the cat sat on the mat", "a dog barked", "the cat and the dog", "", "stock price of the cat"]


def test_scores_are_lucenes_formula() -> None:
    found = bm25_search(["cat mat"], CORPUS, 2)
    lengths = [6, 2, 5, 0, 5]

    def weight(containing: int, length: int) -> float:
        idf = math.log(1 + (5 - containing + 0.5) / (containing + 0.5))
        return idf / (1 + 1.5 * (1 - 0.75 + 0.75 * length / (sum(lengths) / 5)))

    assert found.ids_QK.tolist() == [[0, 2]]
    assert found.scores_QK[0].tolist() == pytest.approx([weight(3, 6) + weight(1, 6), weight(3, 5)], rel=1e-6)


def test_equal_scores_go_to_the_lower_id() -> None:
    found = bm25_search(["beta"], ["alpha gamma", "beta gamma", "alpha beta", "gamma beta"], 4)
    assert found.ids_QK.tolist() == [[1, 2, 3, 0]]


@pytest.mark.parametrize("query", ["", "!?", "unknown words", "a"])
def test_a_query_without_known_words_gets_the_first_passages_with_score_zero(query: str) -> None:
    found = bm25_search([query, "dog"], CORPUS, 3)
    assert found.ids_QK.tolist() == [[0, 1, 2], [1, 2, 0]]
    assert found.scores_QK[0].tolist() == [0.0, 0.0, 0.0]


def test_a_corpus_without_words_gets_score_zero() -> None:
    found = bm25_search(["dog"], ["", "...", "a"], 10)
    assert found.ids_QK.tolist() == [[0, 1, 2]]
    assert not found.scores_QK.any()


def test_no_queries_give_an_empty_result_and_no_corpus_is_refused() -> None:
    assert bm25_search([], CORPUS, 3).ids_QK.shape == (0, 3)
    with pytest.raises(ValueError, match="passages: got 0"):
        bm25_search(["dog"], [], 3)


def test_working_in_chunks_does_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = ["cat", "dog", "stock cat", "mat", "", "price of the dog", "sat"]
    whole = bm25_search(queries, CORPUS, 4)
    monkeypatch.setattr(bm25, "_SCORES_PER_CHUNK", 2 * len(CORPUS))
    done: list[int] = []
    chunked = bm25_search(queries, CORPUS, 4, on_progress=done.append)
    assert done == [2, 2, 2, 1]
    assert torch.equal(whole.ids_QK, chunked.ids_QK)
    assert torch.equal(whole.scores_QK, chunked.scores_QK)


def test_plain_text_gives_the_words_of_bm25s() -> None:
    tokenize = pytest.importorskip("bm25s").tokenize
    texts = [
        "What did HP's 10-K say about $1,102.5 million?",
        "snake_case, e-mail: a@b.co; I am!",
        "“Curly” quotes \u2013 and § 12(b) Straße",
        "trade marks like Chrome™ or ®",
        "Приветствую мир, как дела",
    ]
    expected = tokenize(texts, stopwords=None, return_ids=False, show_progress=False)
    assert [tokenise(text) for text in texts] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("東京都の人口は3年", ["東京", "京都", "都の", "の人", "人口", "口は", "年"]),
        ("한국어", ["한국", "국어"]),
        ("GPT模型", ["gpt", "模型"]),
        ("ﬁnance \uff11\uff12\uff13 cafe\u0301", ["finance", "123", "café"]),
    ],
)
def test_other_scripts_give_words_that_can_match(text: str, words: list[str]) -> None:
    assert tokenise(text) == words


def test_a_question_finds_its_passage_in_a_script_without_spaces() -> None:
    corpus = ["北京是中国的首都。", "东京是日本的首都。", "巴黎是法国的首都。"]
    assert bm25_search(["日本的首都是哪里"], corpus, 1).ids_QK.tolist() == [[1]]


def test_nothing_is_printed_or_logged(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    bm25_search(["cat", ""], CORPUS, 2)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_an_index_is_searched_more_than_once() -> None:
    index = WordIndex(CORPUS)
    for queries, k in ((["cat mat"], 2), (["dog", "unknown"], 4), (["cat mat"], 2)):
        expected = bm25_search(queries, CORPUS, k)
        found = index.search(queries, k)
        assert torch.equal(found.ids_QK, expected.ids_QK)
        assert torch.equal(found.scores_QK, expected.scores_QK)


STARTS_NO_JAX = """
import sys, types
from pathlib import Path
folder = Path(sys.argv[1], "jax")
folder.mkdir()
(folder / "__init__.py").write_text("raise SystemExit('JAX was started')")
sys.path.insert(0, sys.argv[1])
from embedtune.retrieval.bm25 import bm25_search
print(bm25_search(["red"], ["blue sky", "red rose"], 1).ids_QK.tolist(), "jax" in sys.modules)
"""


def test_jax_is_left_alone_where_it_is_installed(tmp_path: Path) -> None:
    """It takes three quarters of a GPU's memory when it starts."""
    ran = subprocess.run(
        [sys.executable, "-c", STARTS_NO_JAX, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.returncode) == ("[[1]] False\n", 0), ran.stderr


def test_weights_and_counts_make_the_scores_of_a_search() -> None:
    index, queries = WordIndex(CORPUS), ["the cat", "dog dog", "", "unknown", "price of the cat"]
    scores = index.counts(queries) @ index.weights().T
    found = index.search(queries, len(CORPUS))
    wanted = torch.zeros(len(queries), len(CORPUS)).scatter(1, found.ids_QK, found.scores_QK)
    torch.testing.assert_close(torch.from_numpy(scores.toarray()), wanted)
    wordless = WordIndex(["", "..."])
    assert (wordless.counts(["dog"]) @ wordless.weights().T).toarray().tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("", []),
        ("Cat", ["cat", " cat", "cat "]),
        ("the Cats", ["the", "cats", "the cats", " the", "the ", " cat", "cats", "ats "]),
        ("日本語", ["日本", "本語", "日本 本語", " 日本 ", " 本語 "]),
    ],
)
def test_split_finely_has_words_pairs_and_parts(text: str, terms: list[str]) -> None:
    assert split_finely(text) == terms


def test_a_word_in_another_form_is_found_by_its_parts() -> None:
    corpus = ["how the barge is loaded", "how a parade is led", "when parcels are collected"]
    assert bm25_search(["loading barges"], corpus, 3).scores_QK.abs().sum() == 0
    found = bm25_search(["loading barges"], corpus, 1, terms=split_finely)
    assert found.ids_QK.tolist() == [[0]]
    assert found.scores_QK.item() > 0
