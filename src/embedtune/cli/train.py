"""`embedtune train TRAIN [OPTIONS]`"""

from __future__ import annotations

import shlex
import time
from collections.abc import Sequence
from typing import Any

from embedtune.cli.console import Console
from embedtune.cli.network import named_sources, use_cache_without_network
from embedtune.cli.options import parse_train
from embedtune.config import TrainConfig
from embedtune.errors import TrainingInterrupted

UNLOADING = 1 / 3
"""What the process takes to end, as a share of what its libraries took to load; on a busy machine both take longer."""


def main(arguments: Sequence[str]) -> None:
    """Train, and print what came of it."""
    run(parse_train(arguments))


def run(config: TrainConfig) -> dict[str, Any]:
    """Train by this config with the terminal's reporter; also what `embedtune demo` does."""
    started = time.monotonic()
    use_cache_without_network(*named_sources(config))
    console = Console()
    console.note("loading libraries")
    from embedtune.pipeline import train

    loading = time.monotonic() - started
    try:
        results = train(config, console, started=started - UNLOADING * loading)
    except TrainingInterrupted as stopped:
        raise TrainingInterrupted(f"{stopped}\n{_how_to_go_on(config)}", stopped.exit_code) from stopped
    console.verdict(results, config.output.out)
    return results


def _how_to_go_on(config: TrainConfig) -> str:
    file = (config.output.out / "config.toml").absolute()
    if not file.is_file():
        return "To start again, type the same command."
    return f"To go on, type:  embedtune train --config {shlex.quote(str(file))} --resume"
