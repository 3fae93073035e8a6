"""What a search for better settings came to: in a sentence, as rows of a table, and as a page without scripts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from embedtune.report.charts import Bar, Dot, bar_chart, dial_chart, trials_chart
from embedtune.report.goals import goal
from embedtune.report.html import LONGEST_FACT, page_template
from embedtune.report.text import counted, duration, metric_name, shortened, typeset

SHOWN_TRIALS = 5
ENOUGH_TRIALS = 20
"""Trained to their end; what mattered among fewer is a hint."""


def headline(summary: Mapping[str, Any]) -> str:
    """Whether another recipe did better than the default one on the dev split, and by how much."""
    metric, count = metric_name(summary["metric"]), counted(len(summary["trials"]), "trial")
    default, best, gain = summary["default"], summary["best"], summary["gain"]
    if best["number"] == default["number"]:
        return f"The default recipe is the best of {count}: dev {metric} {default['metric']:.4f}."
    return (
        f"The best of {count} has dev {metric} {best['metric']:.4f}, {gain:.4f} more than the default recipe "
        f"({default['metric']:.4f})."
    )


def cautions(summary: Mapping[str, Any]) -> list[str]:
    """What to keep in mind with that number."""
    noise, gain, repeats = summary["noise"], summary["gain"], len(summary["repeats"])
    found = []
    if noise is not None:
        trained = (
            "The default recipe, trained with another seed, moved"
            if repeats == 1
            else (f"The default recipe, trained with {repeats} other seeds, moved")
        )
        within = " The gain is no larger than that: it may be chance." if 0 < gain <= noise else ""
        found.append(f"{trained} by {noise:.4f}.{within}")
    if gain > 0:
        found.append(
            f"It was selected by the {goal(summary).counted(summary['dev_items'])} of the dev split, so the figure is "
            "optimistic: the best of several always has some luck in it. The test split had no part in the search; "
            "train with best.toml to see what holds there."
        )
    return found


def trial_rows(summary: Mapping[str, Any], trials: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row a trial: its number, its dev metric, its dials, its steps and its time."""
    return [
        [
            _number(trial, summary),
            _metric(trial),
            *(f"{trial['values'][dial['name']]:.4g}" for dial in summary["dials"]),
            f"{trial['best_step']:,} of {trial['steps']:,}" if trial["steps"] else "",
            duration(trial["seconds"]),
        ]
        for trial in trials
    ]


def trial_columns(summary: Mapping[str, Any]) -> list[str]:
    """The heads of these rows."""
    names = [dial["name"] for dial in summary["dials"]]
    return ["trial", f"dev {summary['metric']}", *names, "best step", "time"]


def best_trials(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Those trained to their end, the best first, the first few."""
    finished = [trial for trial in summary["trials"] if trial["metric"] is not None]
    return sorted(finished, key=lambda trial: -float(trial["metric"]))[:SHOWN_TRIALS]


def importance_caution(summary: Mapping[str, Any]) -> str:
    """Whether there are enough trials to believe the importances."""
    finished = sum(trial["metric"] is not None for trial in summary["trials"])
    if not summary["importances"]:
        return (
            f"{counted(finished, 'trial')} to their end are too few, or too much alike, to say which setting mattered."
        )
    if finished < ENOUGH_TRIALS:
        return f"From {counted(finished, 'trial')} to their end this is a hint, no more."
    return ""


def build_page(summary: Mapping[str, Any], folder: Path) -> str:
    """The search as one self-contained page.

    Args:
        summary: what came of the search.
        folder: the search's, as it is to appear in the commands shown.
    """
    facts = {
        "base model": shortened(summary["base_model"], LONGEST_FACT),
        "metric": metric_name(summary["metric"]),
        "trials": f"{len(summary['trials'])} of {summary['planned']}",
        "seed": str(summary["seed"]),
    }
    page = page_template("tune.html.j2").render(
        title=shortened(summary["base_model"], LONGEST_FACT),
        headline=headline(summary),
        cautions=[typeset(caution) for caution in cautions(summary)],
        setup=list(facts.items()),
        columns=trial_columns(summary),
        best=trial_rows(summary, best_trials(summary)),
        all=trial_rows(summary, [*summary["trials"], *summary["repeats"]]),
        failed=[(_number(trial, summary), trial["reason"]) for trial in summary["trials"] if trial["reason"]],
        overview=_overview(summary),
        importances=_importances(summary),
        importance_caution=importance_caution(summary),
        scatters=[_scatter(place, dial, summary) for place, dial in enumerate(summary["dials"])],
        train=f"embedtune train --config {shlex.quote(str(folder / 'best.toml'))} --out ANOTHER_FOLDER",
        go_on=f"embedtune tune --config {shlex.quote(str(folder / 'config.toml'))} --resume --trials MORE",
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def _number(trial: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    if trial["number"] is None:
        return f"default, seed {trial['seed']}"
    default = ", default" if trial["number"] == summary["default"]["number"] else ""
    return f"{trial['number'] + 1}{default}"


def _metric(trial: Mapping[str, Any]) -> str:
    if trial["state"] == "pruned":
        return f"{max(trial['dev']):.4f}, stopped"
    return "failed" if trial["metric"] is None else f"{trial['metric']:.4f}"


def _dots(summary: Mapping[str, Any], x: str | None) -> list[Dot]:
    """The trials that were evaluated; `x` is the dial across, or None for their numbers."""
    best = summary["best"]["number"]
    return [
        Dot(
            x=trial["number"] + 1 if x is None else trial["values"][x],
            value=max(trial["dev"]) if trial["metric"] is None else trial["metric"],
            kept=trial["number"] == best,
            partial=trial["metric"] is None,
        )
        for trial in summary["trials"]
        if trial["dev"]
    ]


def _overview(summary: Mapping[str, Any]) -> tuple[str, Markup]:
    caption = f"Dev {metric_name(summary['metric'])} of each trial, and the best so far"
    return caption, trials_chart("trials", caption, _dots(summary, None), default=summary["default"]["metric"])


def _importances(summary: Mapping[str, Any]) -> tuple[str, Markup] | None:
    if not summary["importances"]:
        return None
    caption = "Share of what tells the best quarter of the trials from all"
    bars = [Bar(name, value, "tuned") for name, value in summary["importances"].items()]
    return caption, bar_chart("importances", caption, bars)


def _scatter(place: int, dial: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[str, Markup]:
    caption = f"Dev {metric_name(summary['metric'])} by {dial['name']}"
    labelled = dial["choices"] or sorted({dial["low"], dial["default"], dial["high"]})
    return caption, dial_chart(f"dial-{place}", caption, _dots(summary, dial["name"]), labelled=labelled)
