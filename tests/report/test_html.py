"""The report: complete, self-contained, and safe whatever the run was given."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from embedtune.config import METRICS
from embedtune.report.audit import DROPPED
from embedtune.report.html import build_html
from embedtune.report.verdict import verdict
from tests.report.conftest import MARKUP, TURNED
from tests.report.page import Page

HOSTILE = MARKUP


@pytest.fixture
def results() -> dict[str, Any]:
    base, tuned, bm25 = (dict.fromkeys(METRICS, value) for value in (0.6, 0.9, 0.8))
    delta = {metric: {"mean": 0.3, "ci95": [0.25, 0.35], "p_value": 0.0001} for metric in METRICS}
    return {
        "schema": 1,
        "embedtune": "0.1.0",
        "seed": 7,
        "base_model": "some/encoder",
        "method": "lora",
        "data": {
            "train_pairs": 1452,
            "dev_pairs": 52,
            "test_pairs": 170,
            "test_queries": 168,
            "corpus_passages": 2168,
            "dropped": {"duplicate_pairs": 3, "leaked_pairs": 0, "empty_anchor": 1, "something_new": 2},
        },
        "train": {
            "steps": 20,
            "best_step": 10,
            "batch_size": 16,
            "pairs": 320,
            "tokens": 32_000,
            "seconds": 77.0,
            "pairs_per_second": 4.2,
            "tokens_per_second": 416.0,
            "peak_memory_bytes": 2**31,
            "trainable_parameters": 1000,
            "total_parameters": 100_000,
            "loss": [1 / step for step in range(1, 21)],
            "dev": [{"step": step, "ndcg@10": 0.5 + step / 100} for step in (0, 10, 20)],
        },
        "environment": {"python": "3.12.1", "torch": "2.13.0", "device": "cpu", "device_name": "a chip"},
        "base": base,
        "tuned": tuned,
        "bm25": bm25,
        "delta": delta,
    }


def test_nothing_is_fetched(results: dict[str, Any]) -> None:
    html = build_html({**results, "base_model": HOSTILE}, Path("run"))
    page = Page(html)
    assert not {"script", "img", "iframe", "object", "embed", "base"} & set(page.tags)
    fetched = [value for name, value in page.attributes if name in ("src", "srcset", "href", "xlink:href", "data")]
    assert [value for value in fetched if not value.startswith("#")] == ["data:,"]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert any("default-src 'none'" in value for _, value in page.attributes)
    assert not any(name.startswith("on") for name, _ in page.attributes)


def test_what_the_user_gave_is_shown_and_never_run(results: dict[str, Any]) -> None:
    results["environment"]["device_name"] = HOSTILE
    results["data"]["dropped"][HOSTILE] = 5
    html = build_html({**results, "base_model": HOSTILE, "method": HOSTILE}, Path(HOSTILE))
    page = Page(html)
    assert "<script" not in html
    assert "<img" not in html
    assert page.text.count(HOSTILE) >= 4


def test_every_metric_is_there_with_its_numbers(results: dict[str, Any]) -> None:
    results["tuned"]["precision@3"] = 0.123
    results["delta"]["precision@3"] = {"mean": -0.047, "ci95": [-0.051, -0.043], "p_value": 0.0123}
    rows = re.findall(r'<tr role="row" class=.*?</tr>', build_html(results, Path("run")), re.DOTALL)
    names = [re.findall(r'role="rowheader">(.*?)<', row)[0].lower() for row in rows]
    assert sorted(names) == sorted(METRICS)
    assert names[0] == "ndcg@10"
    row = Page(rows[names.index("precision@3")])
    assert row.text.split() == ["Precision@3", "0.600", "0.123", "0.800", "−0.047", "−0.051", "to", "−0.043", "0.012"]


def test_the_verdict_is_the_terminals(results: dict[str, Any]) -> None:
    heading = re.findall(r"<h1>(.*?)</h1>", build_html(results, Path("run")), re.DOTALL)[0]
    assert unescape(re.sub("<.*?>", "", heading)).replace("\N{NO-BREAK SPACE}", " ").replace("−", "-") == verdict(
        results
    )


def test_every_chart_has_a_text_alternative_and_its_own_ids(results: dict[str, Any]) -> None:
    html = build_html(results, Path("run"))
    charts = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(charts) == 4
    assert all(re.search(r"<title id=.*?>.+</title><desc id=.*?>.+</desc>", chart) for chart in charts)
    ids = re.findall(r'\bid="(.*?)"', html)
    assert len(ids) == len(set(ids))


def test_what_was_dropped_is_said_in_words(results: dict[str, Any]) -> None:
    page = Page(build_html(results, Path("run")))
    assert page.says(f"3 {DROPPED['duplicate_pairs']} 1 {DROPPED['empty_anchor']} 2 something new")
    assert not page.says(DROPPED["leaked_pairs"])
    results["data"]["dropped"] = {"duplicate_pairs": 0, "leaked_pairs": 0}
    assert Page(build_html(results, Path("run"))).says("Every row was used")


def test_commands_can_be_pasted_whatever_the_folder_is_called(results: dict[str, Any]) -> None:
    page = Page(build_html(results, Path('my "best" run')))
    assert page.says('SentenceTransformer("my \\"best\\" run/model")')
    assert page.says("embedtune train --config 'my \"best\" run/config.toml' --out ANOTHER_FOLDER")


def test_speed_memory_and_environment_are_readable(results: dict[str, Any]) -> None:
    page = Page(build_html(results, Path("run")))
    for words in (
        "training time 1 min 17 s",
        "pairs a second 4.2",
        "peak memory of the process 2.0 GiB",
        "trained parameters 1,000 of 100,000 (1.00%)",
        "device name a chip",
        "seed 7",
    ):
        assert page.says(words)


@pytest.mark.parametrize(
    ("best_step", "words"),
    [
        (10, "The model of step 10 was kept: of 3 evaluations on the dev set none is better by more than noise"),
        (20, "It is the last one, and the best: more epochs may gain more."),
        (0, "nothing of the training was kept"),
    ],
)
def test_what_the_learning_curve_says_is_written_out(results: dict[str, Any], best_step: int, words: str) -> None:
    results["train"]["best_step"] = best_step
    assert Page(build_html(results, Path("run"))).says(words)


def test_a_mean_of_trainings_is_told_with_what_each_reached(results: dict[str, Any]) -> None:
    reached = {"steps": 10, "best_step": 10, "best_metric": 0.75, "kept": True}
    results["train"]["members"] = [reached, {**reached, "best_step": 5, "best_metric": 0.7}]
    page = Page(build_html(results, Path("run")))
    assert page.says("The mean of 2 trainings' weights was kept, each at its best on the dev set: 0.750 (step 10),")
    assert page.says("0.700 (step 15)")
    assert page.says("NDCG@10 on the dev set, 2 trainings from the same start")
    results["train"]["members"][1]["kept"] = False
    page = Page(build_html(results, Path("run")))
    assert page.says("The model of step 10 was kept")
    assert page.says("It is the last one"), "of the first of two trainings"


def test_a_small_test_set_is_warned_about(results: dict[str, Any]) -> None:
    warning = "Careful. The test set is small"
    assert not Page(build_html(results, Path("run"))).says(warning)
    results["test"] = {"groups": 49}
    assert Page(build_html(results, Path("run"))).says(warning)


def test_a_run_of_one_step_without_evaluations_has_a_report(results: dict[str, Any]) -> None:
    results["train"].update(steps=1, loss=[0.7], dev=[])
    page = Page(build_html(results, Path("run")))
    assert page.says("Learning curve")
    assert not page.says("on the dev set was")


def test_only_the_comparison_is_needed(results: dict[str, Any]) -> None:
    needed = {key: results[key] for key in ("base_model", "base", "tuned", "delta")}
    page = Page(build_html({**needed, "data": {"test_queries": 168}}, Path("run")))
    assert page.says("Recall@100")
    assert not page.says("Learning curve")
    assert not page.says("Speed and memory")
    assert not page.says("Every row was used")


SECTIONS = {
    "further": "Further models",
    "recall_curve": "Recall: share of the right passages",
    "breakdown": "Which questions",
    "queries": "Lost most",
    "suspects": "Labels to check",
    "forgetting": "Test of general use",
    "blend": "Between base and tuned",
    "sizes": "Smaller vectors",
    "train": "Learning curve",
    "environment": "Environment",
}


def test_everything_measured_is_shown(full_results: dict[str, Any]) -> None:
    page = Page(build_html(full_results, Path("run")))
    for words in (
        *SECTIONS.values(),
        "Ship it? Probably: the gain shows, but the test set is small.",
        "independent groups of questions",
        "Hybrid 0.922",
        "example/half-tuned-encoder",
        "87 better 5 worse 76 the same",
        "rank 1 → 4",
        "--labels suspects.jsonl",
        "on average 5.7 of a passage's 10 nearest neighbours are still the same",
        "384 × binary keeps 96.6 % of the full vectors' NDCG@10 in 3.1 % of the storage",
        "9 training rows left out; they share 3 test passages and 2 test questions; 4 more with a near-duplicate",
        "6 passages in 3 groups (at least 0.9 alike)",
        "3 passages are longer than the 256 tokens read",
        "embedtune report run",
    ):
        assert page.says(words), words


@pytest.mark.parametrize("key", [*SECTIONS, "hybrid", "delta_to", "test", "bm25"])
def test_what_was_not_measured_is_left_out(full_results: dict[str, Any], key: str) -> None:
    del full_results[key]
    page = Page(build_html(full_results, Path("run")))
    assert key not in SECTIONS or not page.says(SECTIONS[key])


def test_an_entry_of_the_contents_leads_somewhere(full_results: dict[str, Any], results: dict[str, Any]) -> None:
    for html in (build_html(full_results, Path("run")), build_html(results, Path("run"))):
        links = re.findall(r'href="#(.*?)"', html)
        assert links
        assert set(links) <= set(re.findall(r'\bid="(.*?)"', html))


def test_hostile_texts_are_shown_and_never_run(hostile_results: dict[str, Any]) -> None:
    html = build_html(hostile_results, Path("run"))
    page = Page(html)
    assert "<script" not in html
    assert "<img" not in html
    assert page.text.count(MARKUP) > 18
    assert TURNED.strip() in page.text
    # Names stand within sentences, which an override in them must not turn.
    assert "Better than מימין" in page.text
    assert len(html) < 600_000


def test_a_lone_surrogate_can_be_written(full_results: dict[str, Any]) -> None:
    full_results["queries"]["gains"][0]["query"] = "half of a pair: \ud83d"
    assert "half of a pair: ?" in build_html(full_results, Path("run"))


def test_a_long_text_can_be_read_on(full_results: dict[str, Any]) -> None:
    text = "word " * 200
    full_results["queries"]["regressions"][0]["positive"] = text
    page = Page(build_html(full_results, Path("run")))
    assert page.says("from its beginning, 1,000 characters")
    assert page.says(text.strip())


def test_an_evaluation_has_a_page(eval_results: dict[str, Any]) -> None:
    page = Page(build_html(eval_results, Path("anywhere")))
    for words in ("In short", "Against", "the model minus the one it is compared with", "Lost most", "rank 1 → 4"):
        assert page.says(words)
    assert page.says('SentenceTransformer("/home/somebody/run/model")')
    for words in ("Ship it?", "Learning curve", "Repeating the run", "Tuned", "tuned model"):
        assert not page.says(words), words


def test_the_model_compared_with_is_not_listed_twice(eval_results: dict[str, Any]) -> None:
    eval_results["further"].insert(0, {"model": "some/encoder", "metrics": eval_results["against"], "delta": {}})
    tables = build_html(eval_results, Path("anywhere")).partition("Further models</h3>")[2]
    assert "example/half-tuned-encoder" in tables
    assert "some/encoder" not in tables


def test_without_a_second_model_the_worst_questions_are_shown(eval_results: dict[str, Any]) -> None:
    worst = eval_results["queries"]["regressions"]
    one = {**eval_results, "delta": {}, "queries": {"worst": worst}}
    page = Page(build_html({key: one[key] for key in one if key != "against"}, Path("anywhere")))
    assert page.says("Answered worst")
    assert page.says(f"{worst[0]['query']} rank 4 First right passage Against 1 Model 4")


def test_an_evaluation_of_one_model_has_a_page(eval_results: dict[str, Any]) -> None:
    few = ("schema", "embedtune", "seed", "base_model", "model", "bm25", "data", "environment")
    page = Page(build_html({**{key: eval_results[key] for key in few}, "delta": {}}, Path("anywhere")))
    assert page.says("NDCG@10 0.918 against 0.824; no interval was computed")
    assert not page.says("p-value")
