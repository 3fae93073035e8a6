"""Copies and overlapping chunks are found; what merely shares a phrase is not."""

from __future__ import annotations

import numpy as np
import pytest

from embedtune.data.near import MAX_HOSTS, WINDOW, find_near_duplicates, near_pairs


def words(count: int, *, seed: int) -> list[str]:
    return [f"word{number}" for number in np.random.default_rng(seed).integers(0, 5_000, count)]


def pairs_among(*texts: str, threshold: float = 0.6) -> list[tuple[int, int]]:
    left, right = near_pairs(texts, threshold=threshold)
    return list(zip(left.tolist(), right.tolist(), strict=True))


def test_overlapping_chunks_and_contained_ones_are_found() -> None:
    document = words(400, seed=0)
    chunk, shifted, next_one = (" ".join(document[start : start + 100]) for start in (0, 25, 100))
    assert pairs_among(chunk, next_one, shifted, " ".join(document)) == [(0, 2), (0, 3), (1, 3), (2, 3)]


def test_a_copy_is_one_whatever_its_case_and_punctuation() -> None:
    text = words(30, seed=1)
    assert pairs_among(" ".join(text), ", ".join(text).upper() + "!", " ".join(words(30, seed=2))) == [(0, 1)]


def test_the_threshold_is_a_share_of_the_shorter_text() -> None:
    document = words(300, seed=3)
    # 46 of 96 shingles are shared.
    halves = " ".join(document[:100]), " ".join(document[50:150])
    assert pairs_among(*halves, threshold=0.47) == [(0, 1)]
    assert pairs_among(*halves, threshold=0.49) == []


def test_sentences_that_differ_in_their_figures_are_not_near_duplicates() -> None:
    loss = "Net loss was ${} million and ${} million during the years ended December 31, {} and {}, respectively."
    assert pairs_among(loss.format("108.8", "261.6", 2023, 2022), loss.format("396.6", "973.6", 2021, 2020)) == []
    assert pairs_among("passage 4", "passage 5", "Passage, 4!") == [(0, 2)]


def test_a_heading_is_no_copy_of_the_passages_under_it() -> None:
    heading = "Item 8: Financial Statements and Supplementary Data"
    assert pairs_among(heading, f"{heading} {' '.join(words(80, seed=4))}", heading.upper()) == [(0, 2)]


def test_a_disclaimer_joins_none_of_the_passages_that_carry_it() -> None:
    disclaimer = " ".join(words(40, seed=5))
    carrying = [f"{' '.join(words(100, seed=10 + number))} {disclaimer}" for number in range(MAX_HOSTS + 1)]
    assert pairs_among(disclaimer, *carrying) == []
    assert len(pairs_among(disclaimer, *carrying[:-1])) == MAX_HOSTS


@pytest.mark.parametrize(
    "text",
    [
        "人工智能是研究如何使计算机能够模拟人类智能行为的科学它包括机器学习自然语言处理和计算机视觉等领域",
        "ภาษาไทยเป็นภาษาราชการและภาษาประจำชาติของประเทศไทยมีผู้พูดจำนวนมากทั้งในประเทศและต่างประเทศ",
    ],
)
def test_scripts_without_spaces(text: str) -> None:
    assert pairs_among(text, f"{text[3:]}。", text[::-1]) == [(0, 1)]


def test_texts_without_a_word_are_like_nothing() -> None:
    assert pairs_among("?!", "…", "", "a", "b") == []
    assert pairs_among() == []


def test_many_copies_hang_together() -> None:
    template = words(60, seed=6)
    copies = [" ".join([*template, f"number{number}"]) for number in range(40 * WINDOW)]
    others = [" ".join(words(60, seed=1_000 + number)) for number in range(50)]
    near = find_near_duplicates(copies + others, np.arange(len(copies) + 50), threshold=0.6)
    assert (near.passages, near.groups) == (len(copies), 1)


def test_only_the_given_passages_are_compared_and_keep_their_ids() -> None:
    copy = " ".join(words(50, seed=7))
    passages = [copy, "other", copy + " more", "another", copy + " and"]
    near = find_near_duplicates(passages, np.array([4, 1, 2, 2]), threshold=0.6)
    assert near.leaders_D.tolist() == [0, 1, 2, 3, 2]
    assert near.facts() == {"threshold": 0.6, "passages": 2, "groups": 1}
    assert find_near_duplicates(passages, np.array([1]), threshold=0.6).passages == 0
