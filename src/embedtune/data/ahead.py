"""Items made in the background, before they are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T], *, depth: int = 1) -> Generator[T, None, None]:
    """The items, `depth` of them made in a thread while the one before is in use.

    What making an item raises is raised here, as it is, in its turn. Close the generator when you are done
    (`contextlib.closing`): it waits for the item that is being made, and its thread has ended then.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as thread:
        coming = deque(thread.submit(next, items, None) for _ in range(depth))
        try:
            while (item := coming.popleft().result()) is not None:
                coming.append(thread.submit(next, items, None))
                yield item
        finally:
            for future in coming:
                future.cancel()
