"""The evidence for recipes: `python -m benchmarks quality`, see docs/quality.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NoReturn


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """The command line, or these arguments."""
    from benchmarks.quality.command import main as run  # the peer's process needs none of it

    run(arguments)
