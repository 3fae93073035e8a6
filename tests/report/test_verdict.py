"""The sentence that a run ends with: it claims what the interval allows, no more."""

from __future__ import annotations

from typing import Any

import pytest

from embedtune.report.verdict import outcome, signed, too_small, verdict


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


def test_a_run_that_could_not_improve_says_that_the_base_model_was_saved() -> None:
    known = {**results(tuned=0.6, ci95=(0.0, 0.0), p_value=1.0, bm25=0.8), "train": {"best_step": 0}}
    assert verdict(known) == (
        "On the dev set no training step did better than the base model, so the base model is what was saved: NDCG@10 "
        "on 168 held-out questions is 0.600, as it was; plain word search (BM25) scores higher than both: 0.800."
    )


def test_a_gain_within_noise_says_that_the_base_model_was_saved() -> None:
    blend = {"declined": True, "gain": {"mean": 0.012, "ci95": [-0.02, 0.05], "error": 0.02}}
    known = {**results(tuned=0.6, ci95=(0.0, 0.0), p_value=1.0), "train": {"best_step": 20}, "blend": blend}
    assert verdict(known) == (
        "What training gained on the dev set is within noise (NDCG@10 +0.012, standard error 0.020), so the base model "
        "is what was saved: NDCG@10 on 168 held-out questions is 0.600, as it was."
    )


def test_where_training_began_with_another_model_than_the_base_both_are_told() -> None:
    """With an adapter that was to be trained further, or where the base was measured in 4 bits."""
    known = {**results(tuned=0.58, ci95=(-0.05, 0.01), p_value=0.2), "train": {"best_step": 0}}
    assert verdict(known) == (
        "On the dev set no training step did better than what the training began with, so nothing of it was kept: "
        "NDCG@10 on 168 held-out questions is 0.580, the base model's 0.600, -0.020 (95 % interval -0.050 to +0.010)."
    )


@pytest.mark.parametrize(
    ("tuned", "ci95", "than"), [(0.9, (0.25, 0.35), "both"), (0.3, (-0.4, -0.2), "the tuned model")]
)
def test_bm25_ahead_of_the_tuned_model_is_not_kept_quiet(tuned: float, ci95: tuple[float, float], than: str) -> None:
    sentence = verdict(results(tuned=tuned, ci95=ci95, bm25=0.95 if tuned > 0.6 else 0.4))
    assert f"; plain word search (BM25) scores higher than {than}: " in sentence


def test_bm25_behind_the_tuned_model_is_left_to_the_table() -> None:
    assert "BM25" not in verdict(results(tuned=0.9, ci95=(0.25, 0.35), bm25=0.9))


def test_a_single_question_proves_nothing() -> None:
    """Its interval has no width, so the p-value has to tell."""
    sentence = verdict(results(tuned=1.0, ci95=(0.4, 0.4), p_value=1.0, questions=1))
    assert sentence.startswith("On 1 held-out question no difference")
    assert sentence.endswith("(95 % interval +0.400 to +0.400, but p = 1.00).")


def test_the_words_agree_with_the_numbers_as_shown() -> None:
    assert outcome({"mean": 0.01, "ci95": [1e-17, 0.02], "p_value": 0.01}) == "open"
    assert outcome({"mean": 0.01, "ci95": [0.0002, 0.02], "p_value": 0.01}) == "better"
    assert [signed(value) for value in (1e-17, 0.0002, -0.0002, 0.25)] == ["0.000", "+0.0002", "-0.0002", "+0.250"]


def with_detectable(known: dict[str, Any], detectable: float, groups: int) -> dict[str, Any]:
    known["delta"]["ndcg@10"]["detectable"] = detectable
    return {**known, "test": {"groups": groups}}


def test_an_open_difference_comes_with_what_could_have_been_shown() -> None:
    unclear = with_detectable(results(tuned=0.61, ci95=(-0.03, 0.05), p_value=0.6), 0.0567, 168)
    assert verdict(unclear).endswith(
        "(95 % interval -0.030 to +0.050); 168 questions like these could only have shown a difference of about 0.057 "
        "or more."
    )
    clear = with_detectable(results(tuned=0.9, ci95=(0.2, 0.4)), 0.0567, 168)
    assert "could only" not in verdict(clear)


def test_a_test_set_too_small_to_tell_is_told_with_what_it_would_take() -> None:
    unclear = results(tuned=0.61, ci95=(-0.05, 0.07), p_value=0.6)
    assert too_small(with_detectable(unclear, 0.1, 168)) == (
        "the test set is small: 168 questions. It shows NDCG@10 differences from about 0.10 on; for 0.05 it would take "
        "about 680 questions."
    )
    warning = too_small(with_detectable(unclear, 0.1, 60))
    assert warning is not None
    assert "168 questions in 60 groups that share no right passage" in warning
    assert "about 240 groups" in warning
    assert too_small(with_detectable(unclear, 0.05, 60)) is None


def test_a_shown_difference_needs_no_larger_test_set_unless_it_stands_for_too_little() -> None:
    shown = results(tuned=0.9, ci95=(0.2, 0.4))
    assert too_small(with_detectable(shown, 0.1, 50)) is None
    warning = too_small(with_detectable(shown, 0.03, 49))
    assert warning is not None
    assert "may not stand for others; 50 or more would" in warning
    assert warning.isascii()


def test_results_of_before_and_of_one_model_get_no_warning_they_cannot_back() -> None:
    assert too_small(results(tuned=0.61, ci95=(-0.03, 0.05), p_value=0.6)) is None
    assert too_small({"data": {"test_queries": 400}, "delta": {}, "test": {"groups": 390}}) is None
    assert too_small({"data": {"test_queries": 1}, "test": {"groups": 1}}) is not None


@pytest.mark.parametrize(("ci95", "p_value", "told"), [((-0.06, -0.02), 0.001, True), ((-0.06, 0.01), 0.2, False)])
def test_a_hybrid_is_told_of_only_if_it_is_shown_to_be_ahead(
    ci95: tuple[float, float], p_value: float, told: bool
) -> None:
    known = results(tuned=0.9, ci95=(0.25, 0.35))
    known["hybrid"] = {"ndcg@10": 0.94}
    known["delta_to"] = {"hybrid": {"ndcg@10": {"mean": -0.04, "ci95": list(ci95), "p_value": p_value}}}
    assert ("; together with word search it reaches 0.940" in verdict(known)) == told


def test_any_terminal_can_print_it() -> None:
    assert verdict(results(tuned=0.5, ci95=(-0.15, -0.05), bm25=0.7)).isascii()
