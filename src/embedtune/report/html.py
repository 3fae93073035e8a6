"""The report of a run or an evaluation: one HTML file that asks the network for nothing.

Here the parts are put together; what they say is in the modules beside, how they look in `page/`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from embedtune.report.audit import audit
from embedtune.report.charts import dev_chart, loss_chart
from embedtune.report.comparison import (
    CORRELATIONS,
    FAMILIES,
    breakdowns,
    further_table,
    metric_tables,
    recall,
    result_charts,
)
from embedtune.report.cost import cost, sizes
from embedtune.report.findings import findings, headline, recommendation
from embedtune.report.goals import RETRIEVAL, Goal, goal
from embedtune.report.questions import questions, suspects
from embedtune.report.systems import lead, lead_phrase, reference
from embedtune.report.text import Facts, count, duration, gibibytes, metric_name, present, rate, shortened, typeset
from embedtune.report.trainings import kept_members, members_of
from embedtune.report.verdict import kept_nothing, too_small, why_nothing_kept

LONGEST_FACT = 300
"""Characters of a name or a path."""


def build_html(results: Mapping[str, Any], folder: Path) -> str:
    """The report as one self-contained page.

    Args:
        results: the content of `results.json`, or what `embedtune eval` writes. Needed are "base_model", the metrics
            of the model and the number of test questions; every part whose data are missing is left out of the page.
        folder: the run's folder, as it is to appear in the commands shown; of no account in an evaluation.
    """
    train, environment, trained = results.get("train") or {}, results.get("environment") or {}, lead(results) == "tuned"
    found, of = findings(results), goal(results)
    warning = too_small(results) or ""
    table, more = metric_tables(results)
    page = page_template("report.html.j2").render(
        metric=of.name,
        goal=of,
        trained=trained,
        title=shortened(results["base_model"], LONGEST_FACT),
        headline=typeset(headline(results)).partition(": "),
        warning=typeset(warning[:1].upper() + warning[1:]),
        recommendation=recommendation(results, found),
        findings=[(one.question, one.answer, typeset(one.evidence)) for one in found],
        intervals=bool(results.get("delta") or results.get("delta_to")),
        setup=_setup(results),
        phrase=lead_phrase(results),
        reference=reference(results),
        table=table,
        more=more,
        further=further_table(results),
        families=_meanings(of),
        four_bit=_four_bit(results),
        charts=result_charts(results),
        recall=recall(results),
        groups=results.get("test", {}).get("groups"),
        breakdowns=breakdowns(results),
        questions=questions(results),
        suspects=suspects(results),
        cost=cost(results),
        sizes=sizes(results),
        training=_training_charts(train, of),
        checkpoint=_checkpoint(results),
        audit=audit(results["data"], of),
        usage=_usage(str(folder / "model") if trained else results["base_model"], of),
        reproduce=f"embedtune train --config {shlex.quote(str(folder / 'config.toml'))} --out ANOTHER_FOLDER",
        rebuild=f"embedtune report {shlex.quote(str(folder))}",
        speed=_speed_facts(train, environment),
        environment=[
            (key.replace("_", " "), shortened(str(value), LONGEST_FACT)) for key, value in environment.items()
        ],
    )
    # A lone surrogate, which JSON may hold, has no UTF-8: the page can always be written.
    return page.encode("utf-8", "replace").decode("utf-8")


def page_template(name: str) -> Template:
    """A page of `page/`; everything put into it is escaped."""
    environment = Environment(
        loader=PackageLoader("embedtune.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def _setup(results: Mapping[str, Any]) -> Facts:
    first = ("base_model", "base model") if lead(results) == "tuned" else ("base_model", "model")
    names = (first, ("against_model", "against"), ("method", "method"), ("seed", "seed"), ("embedtune", "embedtune"))
    return [(name, shortened(str(results[key]), LONGEST_FACT)) for key, name in names if results.get(key) is not None]


def _training_charts(train: Mapping[str, Any], of: Goal) -> list[tuple[str, Markup]]:
    """(caption, chart) of what the run recorded; none if it recorded nothing."""
    losses, evaluations = train.get("loss") or [], train.get("dev") or []
    charts = []
    if losses:
        caption = "Loss of each step and its moving mean"
        charts.append((caption, loss_chart("loss", caption, losses)))
    metric = train.get("metric", of.metric)
    points = [(evaluation["step"], evaluation[metric]) for evaluation in evaluations if metric in evaluation]
    if points:
        members = members_of(train)
        of_each = f", {len(members)} trainings from the same start" if len(members) > 1 else ""
        caption = f"{metric_name(metric)} on the dev set{of_each}"
        steps = train.get("steps", points[-1][0])
        best = [] if train.get("best_step") is None else [train["best_step"]]
        kept = [member.best_step for member in kept_members(train)] or best
        starts = [member.first_step for member in members] or [0]
        charts.append((caption, dev_chart("dev", caption, points, steps=steps, kept=kept, starts=starts)))
    return charts


def _checkpoint(results: Mapping[str, Any]) -> str:
    """Which checkpoint became the model, and what that says about the settings."""
    train = results.get("train", {})
    best, steps, evaluations = train.get("best_step"), train.get("steps"), len(train.get("dev") or [])
    if best is None or not evaluations:
        return ""
    if best == 0:
        return (
            "No evaluation on the dev set was better than that before the first step, so nothing of the training "
            "was kept. Another learning rate, more pairs or more epochs may change that."
        )
    if kept_nothing(results):
        return (
            f"Of {evaluations} evaluations on the dev set that of step {best:,} counts, but its gain is "
            "within noise, so nothing of the training was kept. More dev pairs tell smaller gains; --accept any keeps "
            "all."
        )
    if len(kept := kept_members(train)) > 1:
        reached = ", ".join(f"{member.best_metric:.3f} (step {member.best_step:,})" for member in kept)
        return (
            f"The mean of {len(kept)} trainings' weights was kept, each at its best on the dev set: {reached}. They "
            "began with the same weights and saw the pairs in other orders."
        )
    last: list[Any] = [member.last_step for member in members_of(train)] or [steps]
    values = {entry["step"]: entry.get(train.get("metric"), 0.0) for entry in train["dev"]}
    highest = best in values and values[best] == max(values.values())
    hint = " It is the last one, and the best: more epochs may gain more." if highest and best in last else ""
    return (
        f"The model of step {best:,} was kept: of {evaluations} evaluations on the dev set none is better by more than "
        f"noise, and no later one is as good.{hint}"
    )


def _four_bit(results: Mapping[str, Any]) -> list[str]:
    """What became of weights that were held in 4 bits, a paragraph each."""
    if "quantization" not in results:
        return []
    quantization, merge = results["quantization"], results.get("merge")
    paragraphs = [f"The adapter was trained on {quantization['what']}."]
    if quantization["base_measured_in_4_bits"]:
        paragraphs.append("The base model too was measured in 4 bits, to save memory (--memory low).")
    if merge is None and kept_nothing(results):
        paragraphs.append(f"Nothing of the training was kept, as {why_nothing_kept(results)}.")
    elif merge is None:
        paragraphs.append("The saved model is the adapter merged into the dequantised weights that it was trained on.")
    else:
        of = goal(results)
        trained, cosine = merge["trained"][of.metric], merge["cosine"]
        paragraphs.append(
            "The saved model is the adapter merged into the original weights, as asked. That changed "
            f"{of.name} from {trained:.3f} as trained to {results['tuned'][of.metric]:.3f} as saved; the cosine "
            f"similarity of the two embeddings of a text is {cosine['mean']:.3f} on average, {cosine['min']:.3f} at "
            "least."
        )
    return paragraphs


def _speed_facts(train: Mapping[str, Any], environment: Mapping[str, Any]) -> Facts:
    where = "peak GPU memory" if environment.get("device") == "cuda" else "peak memory of the process"
    facts = present(
        train,
        ("training time", "seconds", duration),
        ("steps", "steps", count),
        ("pairs in a batch", "batch_size", count),
        ("pairs seen", "pairs", count),
        ("tokens seen", "tokens", count),
        ("pairs a second", "pairs_per_second", rate),
        ("tokens a second", "tokens_per_second", rate),
        (where, "peak_memory_bytes", gibibytes),
    )
    trainable, total = train.get("trainable_parameters"), train.get("total_parameters")
    if trainable and total:
        facts.append(("trained parameters", f"{trainable:,} of {total:,} ({trainable / total:.2%})"))
    return facts


def _meanings(of: Goal) -> Facts:
    """What the metrics say."""
    if of is RETRIEVAL:
        return [(metric_name(family) + "@K", meaning) for family, meaning in FAMILIES.items()]
    return [(metric_name(metric), meaning) for metric, meaning in CORRELATIONS.items()]


def _usage(model: str, of: Goal) -> str:
    # A JSON string is a Python string, and quotes what a path may hold.
    path = json.dumps(model, ensure_ascii=False)
    loading = ("from sentence_transformers import SentenceTransformer", f"model = SentenceTransformer({path})")
    return "\n".join((*loading, *of.usage))
