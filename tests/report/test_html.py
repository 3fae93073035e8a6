"""The report: complete, self-contained, and safe whatever the run was given."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from embedtune.config import METRICS
from embedtune.report.html import DROPPED, build_html
from embedtune.report.verdict import verdict

HOSTILE = "</title><script>alert('x')</script><img src=http://evil.example/a.png>\"'&"
VOID = {"meta", "link", "br", "img", "line", "rect", "circle", "polyline"}


class Page(HTMLParser):
    """The tags, attributes and text of a page; fails if its tags are not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += f"{data} "

    def says(self, words: str) -> bool:
        return words in " ".join(self.text.split())


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
    assert fetched == ["data:,"]
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
    rows = re.findall(r"<tr class=.*?</tr>", build_html(results, Path("run")), re.DOTALL)
    names = [re.findall(r'scope="row">(.*?)<', row)[0].lower() for row in rows]
    assert sorted(names) == sorted(METRICS)
    assert names[0] == "ndcg@10"
    row = Page(rows[names.index("precision@3")])
    assert row.text.split() == ["Precision@3", "0.600", "0.123", "0.800", "−0.047", "−0.051", "to", "−0.043", "0.012"]


def test_the_verdict_is_the_terminals(results: dict[str, Any]) -> None:
    heading = re.findall(r"<h1>(.*?)</h1>", build_html(results, Path("run")), re.DOTALL)[0]
    assert unescape(heading).replace("\N{NO-BREAK SPACE}", " ").replace("−", "-") == verdict(results)


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
        (10, "The model of step 10 was kept, the best of 3 evaluations on the dev set."),
        (20, "It is the last one: more epochs may gain more."),
        (0, "the saved model ranks as the base model does"),
    ],
)
def test_what_the_learning_curve_says_is_written_out(results: dict[str, Any], best_step: int, words: str) -> None:
    results["train"]["best_step"] = best_step
    assert Page(build_html(results, Path("run"))).says(words)


def test_few_questions_are_remarked_on(results: dict[str, Any]) -> None:
    remark = "the intervals are rough"
    assert not Page(build_html(results, Path("run"))).says(remark)
    results["data"]["test_queries"] = 49
    assert Page(build_html(results, Path("run"))).says(remark)


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
