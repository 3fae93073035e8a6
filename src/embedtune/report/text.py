"""Numbers and names as the report writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from embedtune.report.verdict import signed

Facts = list[tuple[str, str]]
"""(what, how much) in the order shown."""


def present(values: Mapping[str, Any], *facts: tuple[str, str, Callable[[Any], str]]) -> Facts:
    """(label, key, format) of those keys that there are."""
    return [(label, form(values[key])) for label, key, form in facts if values.get(key) is not None]


def metric_name(metric: str) -> str:
    """NDCG@10, but Recall@10."""
    return metric.upper() if metric.partition("@")[0] in ("ndcg", "mrr", "map") else metric.capitalize()


def typeset(text: str) -> str:
    """With minus signs in front of numbers, and a per cent sign that stays with its number."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", text).replace(" %", "\N{NO-BREAK SPACE}%")


def breakable(name: str) -> str:
    """A metric's name that may break before its cutoff."""
    return name.replace("@", "@\N{ZERO WIDTH SPACE}")


def difference(value: float) -> str:
    return typeset(signed(value))


def interval(ends: tuple[float, float] | list[float]) -> str:
    return typeset(f"{signed(ends[0])} to {signed(ends[1])}")


def p_value(value: float) -> str:
    return "<\N{NARROW NO-BREAK SPACE}0.001" if value < 0.001 else f"{value:.3f}"


def count(value: float) -> str:
    return f"{value:,.0f}"


def counted(number: int, noun: str) -> str:
    """1 question, 2 questions."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def gibibytes(value: float) -> str:
    return f"{value / 2**30:.1f} GiB"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def cut(words: str, most: int) -> str:
    """Words that have to fit a line, their end left out."""
    return words if len(words) <= most else words[: most - 1].rstrip() + "…"


def shortened(name: str, most: int) -> str:
    """A name that has to fit a line, its middle left out: both ends of a path or hub id tell more."""
    if len(name) <= most:
        return name
    end = (most - 1) * 2 // 3
    return f"{name[: most - 1 - end]}…{name[-end:]}"
