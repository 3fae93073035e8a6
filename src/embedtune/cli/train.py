"""`embedtune train TRAIN [OPTIONS]`"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from embedtune.cli.console import Console
from embedtune.cli.options import parse_train
from embedtune.config import TrainConfig
from embedtune.errors import TrainingInterrupted


def main(arguments: Sequence[str]) -> None:
    """Train, and print what came of it."""
    run(parse_train(arguments))


def run(config: TrainConfig) -> dict[str, Any]:
    """Train by this config with the terminal's reporter; also what `embedtune demo` does."""
    console = Console()
    console.note("loading libraries")
    from embedtune.pipeline import train

    try:
        results = train(config, console)
    except TrainingInterrupted as stopped:
        again = f"embedtune train --config {(config.output.out / 'config.toml').absolute()} --resume"
        raise TrainingInterrupted(f"{stopped}\nTo go on, type:  {again}") from stopped
    console.verdict(results, config.output.out)
    return results
