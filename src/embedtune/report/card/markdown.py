"""Texts that come from outside, as GitHub's Markdown shows them: literally, whatever they hold."""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKUP = re.compile(r"([\\`*_\[\]<>|~&#$])")
_BACKTICKS = re.compile(r"`+")


def text(value: object) -> str:
    """One line of plain words, with every character that would be markup escaped."""
    return _MARKUP.sub(r"\\\1", _line(value))


def code(value: object) -> str:
    """One line as a code span; not for tables, whose cells end at a bar even there."""
    line = _line(value)
    fence = "`" * (_longest_run(line) + 1)
    # The spaces that the rules take away again, where the text would touch the fence or lose spaces of its own.
    pad = " " if line.startswith(("`", " ")) or line.endswith(("`", " ")) or not line else ""
    return f"{fence}{pad}{line}{pad}{fence}"


def block(lines: str, language: str) -> str:
    """Some lines as a fenced block of code that none of them can end."""
    fence = "`" * max(3, _longest_run(lines) + 1)
    return f"{fence}{language}\n{lines.rstrip()}\n{fence}"


def table(head: Sequence[str], rows: Sequence[Sequence[object]], *, numbers: bool = True) -> str:
    """A table whose cells are escaped; columns behind the first stand to the right if they hold numbers."""
    marks = ["---", *("---:" if numbers else "---" for _ in head[1:])]
    lines = [[text(cell) for cell in head], marks, *([text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _line(value: object) -> str:
    """Without line ends and other characters that are not printed; what a card shows, nobody need see through."""
    return "".join(character if character.isprintable() else " " for character in str(value))


def _longest_run(value: str) -> int:
    """Backticks that stand together at most."""
    return max((len(run) for run in _BACKTICKS.findall(value)), default=0)
