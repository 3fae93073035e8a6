"""Texts to a flat table of token ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import embedtune.data.tokens
from embedtune.data.tokens import TokenTable, length_statistics, tokenize


@pytest.fixture(scope="module")
def tokenizer(make_tokenizer: Callable[..., Any]) -> Any:
    return make_tokenizer()


def table_of(texts: list[str], tokenizer: Any, *, prompt: str = "", max_length: int = 64) -> TokenTable:
    return tokenize(texts, tokenizer=tokenizer, prompt=prompt, max_length=max_length, empty_id=0)


def test_each_text_is_what_the_tokenizer_gives(
    tokenizer: Any, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedtune.data.tokens, "TOKENIZE_CHUNK", 7)
    table = table_of(sentences[:20], tokenizer)
    assert len(table) == 20
    expected = [tokenizer(sentence)["input_ids"] for sentence in sentences[:20]]
    assert [table[index].tolist() for index in range(20)] == expected
    assert table.lengths_N.tolist() == [len(ids) for ids in expected]
    assert table.offsets_N1[0] == 0
    assert table.offsets_N1[-1] == len(table.flat_T)
    assert table.flat_T.dtype == np.int32
    assert table.truncated == 0


def test_the_prompt_is_read_before_every_text(tokenizer: Any) -> None:
    table = table_of(["bador", "", "kefin"], tokenizer, prompt="sholat: ")
    expected = [tokenizer("sholat: " + text)["input_ids"] for text in ("bador", "", "kefin")]
    assert [table[index].tolist() for index in range(3)] == expected


def test_longer_texts_are_cut_and_counted(
    tokenizer: Any, sentences: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedtune.data.tokens, "TOKENIZE_CHUNK", 7)
    whole, cut = table_of(sentences[:30], tokenizer), table_of(sentences[:30], tokenizer, max_length=10)
    assert cut.truncated == (whole.lengths_N > 10).sum() > 0
    assert cut.lengths_N.tolist() == np.minimum(whole.lengths_N, 10).tolist()
    for index in range(30):
        # The last of the kept tokens is the special one that ends every text.
        assert cut[index][:-1].tolist() == whole[index][: len(cut[index]) - 1].tolist()
        assert cut[index][-1] == whole[index][-1]


def test_the_prompt_counts_towards_the_length(tokenizer: Any) -> None:
    assert table_of(["bador " * 6], tokenizer, max_length=8).truncated == 0
    assert table_of(["bador " * 6], tokenizer, prompt="bador bador ", max_length=8).truncated == 1


def test_a_text_without_a_token_gets_one(make_tokenizer: Callable[..., Any]) -> None:
    table = tokenize(["", "bador"], tokenizer=make_tokenizer(template=None), prompt="", max_length=64, empty_id=9)
    assert table[0].tolist() == [9]
    assert len(table[1]) == 1


def test_no_texts(tokenizer: Any) -> None:
    table = table_of([], tokenizer)
    assert len(table) == 0
    assert table.lengths_N.tolist() == []


def test_length_statistics() -> None:
    lengths = np.arange(1, 102)
    table = TokenTable(np.zeros(lengths.sum(), dtype=np.int32), np.concatenate([[0], np.cumsum(lengths)]), truncated=0)
    assert length_statistics(table) == {"median": 51.0, "p95": 96.0, "max": 101}
