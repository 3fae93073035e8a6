"""`embedtune tune TRAIN [OPTIONS]`"""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embedtune.cli.console import Console
from embedtune.cli.network import named_sources, use_cache_without_network
from embedtune.cli.options import parse_with_file
from embedtune.config.tuning import TuneConfig
from embedtune.errors import TrainingInterrupted


def main(arguments: Sequence[str]) -> None:
    """Search, and print what came of it."""
    config = parse_with_file(TuneConfig, arguments, command="tune")
    started = time.monotonic()
    use_cache_without_network(*named_sources(config))
    console = Console()
    console.note("loading libraries")
    from embedtune.tuning.search import tune

    file = (config.output.out / "config.toml").absolute()
    try:
        summary = tune(config, console, started=started)
    except TrainingInterrupted as stopped:
        go_on = (
            f"To go on, type:  embedtune tune --config {shlex.quote(str(file))} --resume"
            if file.is_file()
            else "To start again, type the same command."
        )
        raise TrainingInterrupted(f"{stopped}\n{go_on}", stopped.exit_code) from stopped
    show(summary, config.output.out, console)


def show(summary: Mapping[str, Any], out: Path, console: Console) -> None:
    """The answer, the best trials, what mattered, and what to type."""
    from embedtune.report.search import (
        best_trials,
        cautions,
        headline,
        importance_caution,
        trial_columns,
        trial_rows,
    )

    console.stage("Result")
    console.note(headline(summary))
    for caution in cautions(summary):
        console.warn(caution)
    console.table("best trials", trial_columns(summary), trial_rows(summary, best_trials(summary)))
    if summary["importances"]:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in summary["importances"].items())
        console.note(f"what mattered: {shares}")
    if (caution := importance_caution(summary)) != "":
        console.note(caution)
    console.note(f"page: {out / 'tune.html'}    trials: {out / 'trials.jsonl'}")
    console.note(
        f"To train with the best, type:  embedtune train --config {shlex.quote(str(out / 'best.toml'))} --out run"
    )
    if len(summary["trials"]) < summary["planned"]:
        config = shlex.quote(str(out / "config.toml"))
        console.note(f"To go on with the search, type:  embedtune tune --config {config} --resume")
