"""Fewer of the built-in texts that tell what a model forgot: a run embeds them seven times, from the base to blends."""

from __future__ import annotations

from pathlib import Path

import pytest


def take_few(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Write a tenth of them to that folder, and have them read instead of all."""
    from embedtune.evaluation import general

    folder.mkdir(parents=True, exist_ok=True)
    for file in Path(general.__file__).parent.glob("*.jsonl"):
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        (folder / file.name).write_text("".join(lines[::10]), encoding="utf-8")
    patch.setattr(general, "_FOLDER", folder)
