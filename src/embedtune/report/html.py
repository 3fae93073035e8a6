"""The report of a run: one HTML file that asks the network for nothing.

Here results become texts, rows and charts; how they look is in `report.html.j2`.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from embedtune.report.charts import Bar, Interval, bar_chart, dev_chart, interval_chart, loss_chart
from embedtune.report.verdict import METRIC, Outcome, outcome, signed, verdict

SYSTEMS = {"base": "Base", "tuned": "Tuned", "bm25": "BM25"}
"""Key in the results to the name in the report, in the order of its columns."""
FAMILIES = {
    "ndcg": "1 when every right passage is at the top of the first K, less the further down it is",
    "mrr": "1 divided by the place of the first right passage, 0 if it is not among the first K",
    "map": "mean precision at the places of the right passages among the first K",
    "accuracy": "share of the questions with a right passage among the first K",
    "recall": "share of a question's right passages that are among the first K",
    "precision": "share of the first K that are right passages",
}
"""What the name of a metric starts with to what it means, in the order of the table."""
DROPPED = {
    "duplicate_pairs": "repeat the question and passage of another row",
    "leaked_pairs": "left out of training: their question or passage is in the test or dev set",
    "non_string": "are not text",
    "empty_anchor": "have no question",
    "empty_positive": "have no passage",
    "anchor_equals_positive": "have one text as both question and passage",
    "empty_passages": "empty passages of the corpus",
    "non_string_negatives": "negatives that are not text",
    "empty_negatives": "empty negatives",
    "negatives_that_are_anchors": "negatives that repeat the question",
    "negatives_that_are_positives": "negatives that answer the question",
}
"""Why something was not used, in words."""
SHOWN_INTERVALS = ("ndcg@10", "mrr@10", "map@100", "accuracy@1", "recall@10")

Facts = list[tuple[str, str]]
"""(what, how much) in the order shown."""


@dataclass(frozen=True)
class Row:
    """One metric in the comparison table."""

    name: str
    values: list[str]
    difference: str
    interval: str
    p_value: str
    outcome: Outcome
    starts_group: bool


def build_html(results: Mapping[str, Any], folder: Path) -> str:
    """The report of a run as one self-contained page.

    Args:
        results: the content of `results.json`. Parts that a run may lack ("bm25", "dev", "loss", single facts) are
            left out of the page.
        folder: the run's folder, as it is to appear in the commands shown.
    """
    data, train = results.get("data", {}), results.get("train", {})
    return _template().render(
        metric=METRIC.upper(),
        verdict=_typeset(verdict(results)),
        base_model=results["base_model"],
        setup=_setup(results),
        systems=[SYSTEMS[key] for key in _systems(results)],
        rows=_rows(results),
        families=[(_name(family) + "@K", meaning) for family, meaning in FAMILIES.items()],
        few_questions=data["test_queries"] < 50,
        four_bit=_four_bit(results),
        result_charts=_result_charts(results),
        training_charts=_training_charts(train),
        checkpoint=_checkpoint(train),
        data=_data_facts(data),
        dropped=_dropped(data.get("dropped")),
        speed=_speed_facts(train, results.get("environment", {})),
        environment=[(key.replace("_", " "), str(value)) for key, value in results.get("environment", {}).items()],
        usage=_usage(folder),
        reproduce=f"embedtune train --config {shlex.quote(str(folder / 'config.toml'))} --out ANOTHER_FOLDER",
    )


def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("embedtune.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def _setup(results: Mapping[str, Any]) -> Facts:
    names = {"method": "method", "seed": "seed", "embedtune": "embedtune"}
    return [(name, str(results[key])) for key, name in names.items() if key in results]


def _systems(results: Mapping[str, Any]) -> list[str]:
    return [key for key in SYSTEMS if key in results]


def _rows(results: Mapping[str, Any]) -> list[Row]:
    """Every metric that there is, family by family, in the order of the results within one."""
    families = list(FAMILIES)

    def place(metric: str) -> int:
        family = metric.partition("@")[0]
        return families.index(family) if family in families else len(families)

    rows, previous = [], None
    for metric in sorted(results["delta"], key=place):
        difference, family = results["delta"][metric], place(metric)
        low, high = difference["ci95"]
        rows.append(
            Row(
                name=_name(metric),
                values=[f"{results[key][metric]:.3f}" for key in _systems(results)],
                difference=_typeset(signed(difference["mean"])),
                interval=_typeset(f"{signed(low)} to {signed(high)}"),
                p_value=_p_value(difference["p_value"]),
                outcome=outcome(difference),
                # NDCG, MRR and MAP have one row each and stand together.
                starts_group=previous is not None and family != previous and family >= families.index("accuracy"),
            )
        )
        previous = family
    return rows


def _result_charts(results: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """(caption, chart): the ways of ranking beside each other, and the differences with their intervals."""
    bars = [Bar(SYSTEMS[key], results[key][METRIC], key) for key in _systems(results)]
    bar_caption = f"{METRIC.upper()} on the test questions"
    intervals = [
        Interval(_name(metric), results["delta"][metric]["mean"], *results["delta"][metric]["ci95"])
        for metric in SHOWN_INTERVALS
        if metric in results["delta"]
    ]
    interval_caption = "Tuned minus base, with 95\N{NO-BREAK SPACE}% intervals"
    return [
        (bar_caption, bar_chart("bars", bar_caption, bars)),
        (interval_caption, interval_chart("intervals", interval_caption, intervals)),
    ]


def _training_charts(train: Mapping[str, Any]) -> list[tuple[str, Markup]]:
    """(caption, chart) of what the run recorded; none if it recorded nothing."""
    losses, evaluations = train.get("loss") or [], train.get("dev") or []
    charts = []
    if losses:
        caption = "Loss of each step and its moving mean"
        charts.append((caption, loss_chart("loss", caption, losses)))
    metric = train.get("metric", METRIC)
    points = [(evaluation["step"], evaluation[metric]) for evaluation in evaluations if metric in evaluation]
    if points:
        caption = f"{_name(metric)} on the dev set"
        steps = train.get("steps", points[-1][0])
        charts.append((caption, dev_chart("dev", caption, points, steps=steps, best_step=train.get("best_step"))))
    return charts


def _checkpoint(train: Mapping[str, Any]) -> str:
    """Which checkpoint became the model, and what that says about the settings."""
    best, steps, evaluations = train.get("best_step"), train.get("steps"), len(train.get("dev") or [])
    if best is None or not evaluations:
        return ""
    if best == 0:
        return (
            "No evaluation on the dev set was better than the base model's, so the saved model ranks as the base model "
            "does. Another learning rate, more pairs or more epochs may change that."
        )
    hint = " It is the last one: more epochs may gain more." if best == steps else ""
    return f"The model of step {best:,} was kept, the best of {evaluations} evaluations on the dev set.{hint}"


def _four_bit(results: Mapping[str, Any]) -> list[str]:
    """What became of weights that were held in 4 bits, a paragraph each."""
    if "quantization" not in results:
        return []
    quantization, merge = results["quantization"], results.get("merge")
    paragraphs = [f"The adapter was trained on {quantization['what']}."]
    if quantization["base_measured_in_4_bits"]:
        paragraphs.append("The base model too was measured in 4 bits, to save memory (--memory low).")
    if merge is None:
        paragraphs.append("The saved model is the adapter merged into the dequantised weights that it was trained on.")
    else:
        trained, cosine = merge["trained"][METRIC], merge["cosine"]
        paragraphs.append(
            "The saved model is the adapter merged into the original weights, as asked. That changed "
            f"{METRIC.upper()} from {trained:.3f} as trained to {results['tuned'][METRIC]:.3f} as saved; the cosine "
            f"similarity of the two embeddings of a passage is {cosine['mean']:.3f} on average, {cosine['min']:.3f} at "
            "least."
        )
    return paragraphs


def _data_facts(data: Mapping[str, Any]) -> Facts:
    return _present(
        data,
        ("pairs to train on", "train_pairs", _count),
        ("pairs to choose the checkpoint on (dev)", "dev_pairs", _count),
        ("pairs to test on", "test_pairs", _count),
        ("distinct test questions", "test_queries", _count),
        ("distinct passages to search in", "corpus_passages", _count),
    )


def _dropped(dropped: Mapping[str, int] | None) -> Facts | None:
    """(number, reason in words) of what was not used; None if that is not known."""
    if dropped is None:
        return None
    return [
        (_count(count), DROPPED.get(reason, reason.replace("_", " "))) for reason, count in dropped.items() if count
    ]


def _speed_facts(train: Mapping[str, Any], environment: Mapping[str, Any]) -> Facts:
    where = "peak GPU memory" if environment.get("device") == "cuda" else "peak memory of the process"
    facts = _present(
        train,
        ("training time", "seconds", _duration),
        ("steps", "steps", _count),
        ("pairs in a batch", "batch_size", _count),
        ("pairs seen", "pairs", _count),
        ("tokens seen", "tokens", _count),
        ("pairs a second", "pairs_per_second", _rate),
        ("tokens a second", "tokens_per_second", _rate),
        (where, "peak_memory_bytes", _gibibytes),
    )
    trainable, total = train.get("trainable_parameters"), train.get("total_parameters")
    if trainable and total:
        facts.append(("trained parameters", f"{trainable:,} of {total:,} ({trainable / total:.2%})"))
    return facts


def _usage(folder: Path) -> str:
    # A JSON string is a Python string, and quotes what a path may hold.
    path = json.dumps(str(folder / "model"), ensure_ascii=False)
    return (
        "from sentence_transformers import SentenceTransformer\n"
        f"model = SentenceTransformer({path})\n"
        'queries = model.encode_query(["How do I ...?"])\n'
        'passages = model.encode_document(["To do that, ..."])'
    )


def _present(values: Mapping[str, Any], *facts: tuple[str, str, Callable[[Any], str]]) -> Facts:
    """(label, key, format) of those keys that there are."""
    return [(label, form(values[key])) for label, key, form in facts if values.get(key) is not None]


def _name(metric: str) -> str:
    """NDCG@10, but Recall@10."""
    return metric.upper() if metric.partition("@")[0] in ("ndcg", "mrr", "map") else metric.capitalize()


def _p_value(value: float) -> str:
    return "<\N{NARROW NO-BREAK SPACE}0.001" if value < 0.001 else f"{value:.3f}"


def _typeset(text: str) -> str:
    """With minus signs in front of numbers, and a per cent sign that stays with its number."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text).replace(" %", "\N{NO-BREAK SPACE}%")


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _gibibytes(value: float) -> str:
    return f"{value / 2**30:.1f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
