"""Lengths of time as people type them: 90s, 25m, 2h, 1h30m."""

from __future__ import annotations

import re

from embedtune.errors import ConfigError

_FORM = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_seconds(text: str, *, option: str) -> int:
    """The seconds of a length of time.

    Raises:
        ConfigError: it is not of that form, or nothing.
    """
    found = _FORM.fullmatch(text.strip().lower())
    hours, minutes, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = 3600 * hours + 60 * minutes + seconds
    if total == 0:
        raise ConfigError(f"--{option} is {text!r}, expected a length of time such as 90s, 25m, 2h or 1h30m.")
    return total


def in_words(seconds: float) -> str:
    """As it would be typed, rounded to a second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [f"{count}{unit}" for count, unit in ((hours, "h"), (minutes, "m"), (rest, "s")) if count]
    return "".join(parts) or "0s"
