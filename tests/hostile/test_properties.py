"""Whatever the bytes are: a result, or one error of embedtune's own with a message that a terminal can show.

Derandomised: the same inputs every time. `tests/hostile/fuzz_atheris.py` looks further.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.hostile.starts import starts
from tests.hostile.targets import TARGETS, check

SLOW = {"state", "checksums", "weights", "moments", "results"}
"""Tens of milliseconds an input."""
JSON_TARGETS = ("fingerprint", "results", "state", "document", "json", "adapter", "modules", "index")
SPLICES = (
    b"\0", b"\xff", b"\n", b"\r", b'"', b"\\", b"{", b"[" * 2_000,
    b'{"a":' * 2_000, b"\xed\xa0\x80", b'"\\ud800"',
    b"1e999", b"9" * 5_000, b"NaN", b"null", b"\x1b[2J", "\u202e\u200d🔑".encode(), "\u0300\u0316".encode() * 600,
)  # fmt: skip


def fuzzed(name: str, examples: int) -> settings:
    """The settings of a property of a target."""
    return settings(
        max_examples=examples // 5 if name in SLOW else examples,
        derandomize=True,
        database=None,
        deadline=None,  # of the clock on the wall; `check_in_time` has one of its own
        suppress_health_check=list(HealthCheck),
    )


def check_in_time(name: str, content: bytes, folder: Path) -> None:
    """The target's check, which may take two seconds of the processor."""
    started = time.process_time()
    check(TARGETS[name], content, folder / "input")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("name", TARGETS)
def test_arbitrary_bytes(name: str, tmp_path: Path) -> None:
    check(TARGETS[name], b"", tmp_path / "input")  # imports what it takes

    @fuzzed(name, 40)
    @given(st.binary(max_size=300))
    def holds(content: bytes) -> None:
        check_in_time(name, content, tmp_path)

    holds()


@pytest.mark.parametrize("name", TARGETS)
def test_valid_inputs_with_faults(name: str, tmp_path: Path) -> None:
    check(TARGETS[name], b"", tmp_path / "input")

    @fuzzed(name, 80)
    @given(faulty(starts()[name]))
    def holds(content: bytes) -> None:
        check_in_time(name, content, tmp_path)

    holds()


@pytest.mark.parametrize("name", JSON_TARGETS)
def test_json_of_another_form(name: str, tmp_path: Path) -> None:
    """One value of a valid document is replaced, by one of another type or beyond all bounds."""
    document = json.loads(starts()[name])
    places = list(_places(document))

    check(TARGETS[name], b"", tmp_path / "input")

    @fuzzed(name, 120)
    @given(st.sampled_from(places), odd_values())
    def holds(place: tuple[str | int, ...], value: Any) -> None:
        check_in_time(name, json.dumps(_replaced(document, place, value)).encode(), tmp_path)

    holds()


@st.composite
def faulty(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with up to three faults: bits flipped, a part cut off, left out, written twice or put in."""
    for _ in range(draw(st.integers(1, 3))):
        start, end = sorted((draw(st.integers(0, len(content))), draw(st.integers(0, len(content)))))
        kind = draw(st.sampled_from(("flip", "cut", "leave out", "repeat", "splice", "splice")))
        if kind == "flip" and start < len(content):
            flipped = content[start] ^ draw(st.integers(1, 255))
            content = content[:start] + bytes([flipped]) + content[start + 1 :]
        elif kind == "cut":
            content = content[:start]
        elif kind == "leave out":
            content = content[:start] + content[end:]
        elif kind == "repeat":
            content = content[:end] + content[start:]
        else:
            content = content[:start] + draw(st.sampled_from(SPLICES)) + content[start:]
    return content


def odd_values() -> st.SearchStrategy[Any]:
    """JSON values that are rarely the right ones."""
    numbers = (0, -1, 10**40, 1e308, float("nan"), float("inf"), True, None)
    texts = ("", "\0", "\ud800", "\x1b[31m", "x" * 100_000, "\u202etxt.exe", "../..", "NaN")
    fixed: tuple[Any, ...] = (*numbers, *texts, [], {}, [[]], [{}], {"": None}, [1, "a", None])
    leaves = st.sampled_from(fixed)
    return leaves | st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    )


def _places(value: Any, place: tuple[str | int, ...] = ()) -> Any:
    yield place
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*place, key))


def _replaced(value: Any, place: tuple[str | int, ...], by: Any) -> Any:
    if not place:
        return by
    copy: Any = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = _replaced(value[place[0]], place[1:], by)
    return copy
