"""Items made in the background are the same items, and the thread that makes them ends with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from embedtune.data.ahead import ahead


class Made:
    """Counts, and knows how many numbers were made."""

    def __init__(self, stop: int, error: BaseException | None = None) -> None:
        self.count, self._stop, self._error = 0, stop, error

    def __iter__(self) -> Iterator[int]:
        for number in range(self._stop):
            self.count += 1
            yield number
        if self._error is not None:
            raise self._error


def test_all_items_in_their_order() -> None:
    assert list(ahead(iter(range(100)), depth=3)) == list(range(100))
    assert list(ahead(iter(()))) == []


@pytest.mark.parametrize("depth", [1, 2])
def test_so_many_are_made_before_they_are_asked_for_and_no_more(depth: int) -> None:
    made = Made(10)
    with closing(ahead(iter(made), depth=depth)) as items:
        for number in items:
            deadline = time.monotonic() + 10
            while made.count < min(10, number + 1 + depth) and time.monotonic() < deadline:
                time.sleep(0.001)
            assert made.count == min(10, number + 1 + depth)


def test_an_exception_comes_as_it_is_after_the_items_before_it() -> None:
    error = KeyError("seven")
    before = threading.active_count()
    items = ahead(iter(Made(7, error)), depth=2)
    assert [next(items) for _ in range(7)] == list(range(7))
    with pytest.raises(KeyError) as caught:
        next(items)
    assert caught.value is error
    assert threading.active_count() == before


def test_closing_ends_the_thread() -> None:
    before = threading.active_count()
    with closing(ahead(iter(Made(1000)))) as items:
        next(items)
        assert threading.active_count() == before + 1
    assert threading.active_count() == before
