"""The sentence that a run ends with: it claims what the interval allows, no more."""

from __future__ import annotations

from typing import Any

import pytest

from embedtune.report.verdict import outcome, signed, verdict


def results(
    *, tuned: float, ci95: tuple[float, float], p_value: float = 0.0001, bm25: float | None = None, questions: int = 168
) -> dict[str, Any]:
    """Results whose base model reaches 0.6."""
    difference = {"mean": tuned - 0.6, "ci95": list(ci95), "p_value": p_value}
    known = {
        "data": {"test_queries": questions},
        "base": {"ndcg@10": 0.6},
        "tuned": {"ndcg@10": tuned},
        "delta": {"ndcg@10": difference},
    }
    return known if bm25 is None else {**known, "bm25": {"ndcg@10": bm25}}


def test_a_gain_is_told_with_its_interval() -> None:
    assert verdict(results(tuned=0.9, ci95=(0.25, 0.35), bm25=0.8)) == (
        "On 168 held-out questions the tuned model finds the right passage better than the base model: NDCG@10 went "
        "from 0.600 to 0.900, +0.300 (95 % interval +0.250 to +0.350)."
    )


def test_an_interval_that_includes_0_claims_nothing() -> None:
    sentence = verdict(results(tuned=0.61, ci95=(-0.01, 0.03), p_value=0.3))
    assert "no difference between the tuned and the base model can be shown" in sentence
    assert "(95 % interval -0.010 to +0.030)" in sentence
    assert "better" not in sentence


def test_a_loss_is_called_one() -> None:
    sentence = verdict(results(tuned=0.5, ci95=(-0.15, -0.05)))
    assert "finds the right passage worse than the base model" in sentence
    assert "-0.100 (95 % interval -0.150 to -0.050)" in sentence


@pytest.mark.parametrize(
    ("tuned", "ci95", "than"), [(0.9, (0.25, 0.35), "both"), (0.3, (-0.4, -0.2), "the tuned model")]
)
def test_bm25_ahead_of_the_tuned_model_is_not_kept_quiet(tuned: float, ci95: tuple[float, float], than: str) -> None:
    sentence = verdict(results(tuned=tuned, ci95=ci95, bm25=0.95 if tuned > 0.6 else 0.4))
    assert f"; plain word search (BM25) scores higher than {than}: " in sentence


def test_bm25_behind_the_tuned_model_is_left_to_the_table() -> None:
    assert "BM25" not in verdict(results(tuned=0.9, ci95=(0.25, 0.35), bm25=0.9))


def test_a_single_question_proves_nothing() -> None:
    """Its bootstrap interval has no width, so the p-value has to tell."""
    sentence = verdict(results(tuned=1.0, ci95=(0.4, 0.4), p_value=1.0, questions=1))
    assert sentence.startswith("On 1 held-out question no difference")
    assert sentence.endswith("(95 % interval +0.400 to +0.400, but p = 1.00).")


def test_the_words_agree_with_the_numbers_as_shown() -> None:
    assert outcome({"mean": 0.01, "ci95": [1e-17, 0.02], "p_value": 0.01}) == "open"
    assert outcome({"mean": 0.01, "ci95": [0.0002, 0.02], "p_value": 0.01}) == "better"
    assert [signed(value) for value in (1e-17, 0.0002, -0.0002, 0.25)] == ["0.000", "+0.0002", "-0.0002", "+0.250"]


def test_any_terminal_can_print_it() -> None:
    assert verdict(results(tuned=0.5, ci95=(-0.15, -0.05), bm25=0.7)).isascii()
