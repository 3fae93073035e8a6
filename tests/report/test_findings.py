"""What the page says about shipping: every answer is what the intervals allow."""

from __future__ import annotations

from typing import Any

import pytest

from embedtune.report.findings import findings, headline, recommendation

GAIN = {"mean": 0.2, "ci95": [0.15, 0.25], "p_value": 0.0001}
LOSS = {"mean": -0.2, "ci95": [-0.25, -0.15], "p_value": 0.0001}
OPEN = {"mean": 0.01, "ci95": [-0.02, 0.04], "p_value": 0.4}


@pytest.fixture
def results(full_results: dict[str, Any]) -> dict[str, Any]:
    """A test set that is large enough."""
    full_results["test"]["groups"] = 400
    full_results["delta"]["ndcg@10"]["detectable"] = 0.03
    return full_results


def answers(results: dict[str, Any]) -> dict[str, str]:
    return {finding.question: finding.answer for finding in findings(results)}


@pytest.mark.parametrize(("difference", "answer"), [(GAIN, "yes"), (LOSS, "no"), (OPEN, "open")])
def test_an_answer_is_what_the_interval_allows(
    results: dict[str, Any], difference: dict[str, Any], answer: str
) -> None:
    results["delta"]["ndcg@10"] = results["delta_to"]["bm25"]["ndcg@10"] = difference
    results["delta_to"]["hybrid"]["ndcg@10"] = results["further"][0]["delta"]["ndcg@10"] = difference
    found = answers(results)
    for question in (
        "Better than the base model?",
        "Better than plain word search (BM25)?",
        "Better alone than fused with word search?",
        "Better than example/half-tuned-encoder?",
    ):
        assert found[question] == answer


def test_numbers_without_an_interval_prove_nothing(results: dict[str, Any]) -> None:
    del results["delta_to"]
    assert answers(results)["Better than plain word search (BM25)?"] == "higher"
    results["bm25"]["ndcg@10"] = 0.99
    assert answers(results)["Better than plain word search (BM25)?"] == "lower"
    assert recommendation(results, findings(results)).startswith("Yes, if")


def test_a_clear_gain_is_recommended(results: dict[str, Any]) -> None:
    assert recommendation(results, findings(results)) == "Yes, as far as this test set tells."


@pytest.mark.parametrize("difference", [OPEN, LOSS])
def test_a_training_of_which_nothing_was_kept_is_not_recommended(
    results: dict[str, Any], difference: dict[str, Any]
) -> None:
    results["delta"]["ndcg@10"], results["train"]["best_step"] = difference, 0
    expected = "No: nothing of the training was kept, as no step did better on the dev set."
    assert recommendation(results, findings(results)) == expected
    assert headline(results).startswith("On the dev set no training step did better than")


def test_a_loss_that_does_not_show_is_not_called_absent(results: dict[str, Any]) -> None:
    found = answers(results)
    assert found["Loss on general tasks?"] == "none"
    assert found["Any kind of question worse than with the base model?"] == "none"


def test_forgetting_stands_against_it_and_is_named(results: dict[str, Any]) -> None:
    results["forgetting"]["sets"][0]["delta"] = {"mean": -0.03, "ci95": [-0.04, -0.02]}
    found = findings(results)
    forgetting = next(finding for finding in found if finding.question.startswith("Loss on general"))
    assert forgetting.answer == "loss"
    assert "STS-B" in forgetting.evidence
    assert recommendation(results, found) == "Yes, if you can live with what speaks against it below."


def test_a_kind_of_question_that_got_worse_is_named(results: dict[str, Any]) -> None:
    results["breakdown"][0]["bins"][1]["delta"] = LOSS
    worse = next(finding for finding in findings(results) if finding.question.startswith("Any kind of question"))
    assert worse.answer == "loss"
    assert worse.evidence == "questions of 11 to 12 words: -0.200 (-0.250 to -0.150) (1 of 8 groups)"


@pytest.mark.parametrize(
    ("difference", "words"), [(LOSS, "No: it ranks worse"), (OPEN, "Not on this evidence: no gain")]
)
def test_without_a_gain_nothing_is_recommended(results: dict[str, Any], difference: dict[str, Any], words: str) -> None:
    results["delta"]["ndcg@10"] = difference
    assert recommendation(results, findings(results)).startswith(words)


def test_word_search_that_does_better_is_not_argued_away(results: dict[str, Any]) -> None:
    results["delta_to"]["bm25"]["ndcg@10"] = LOSS
    assert recommendation(results, findings(results)).startswith("Not alone: plain word search")


def test_a_small_test_set_makes_it_probable_only(results: dict[str, Any]) -> None:
    results["test"]["groups"] = 20
    assert recommendation(results, findings(results)).startswith("Probably")


def test_only_what_was_measured_is_asked(results: dict[str, Any]) -> None:
    few = {key: results[key] for key in ("base_model", "base", "tuned", "delta", "data")}
    assert list(answers(few)) == ["Better than the base model?"]


def test_an_evaluation_has_its_own_sentence(eval_results: dict[str, Any]) -> None:
    assert headline(eval_results) == (
        "On 168 questions run/model finds the right passage better than some/encoder: NDCG@10 is 0.918 against 0.607, "
        "+0.311 (95 % interval +0.254 to +0.371)."
    )
    assert recommendation(eval_results, findings(eval_results)) == ""
    eval_results["delta"]["ndcg@10"] = OPEN
    assert "no difference between run/model and some/encoder can be shown" in headline(eval_results)


def test_an_evaluation_of_one_model_compares_nothing(eval_results: dict[str, Any]) -> None:
    del eval_results["against"]
    eval_results["delta"] = {}
    assert headline(eval_results) == (
        "On 168 questions run/model reaches an NDCG@10 of 0.918; plain word search (BM25) reaches 0.824."
    )
