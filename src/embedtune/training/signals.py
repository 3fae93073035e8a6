"""Ctrl-C, a polite kill and the end of the time given: a run ends where it may, with everything saved.

Most of a run may end anywhere: what it has read or measured is read or measured again. A step and a checkpoint may not,
so while these are under way a request waits (`StopRequest.held`).
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from embedtune.errors import TrainingInterrupted

EXIT_SECONDS = 1.0
"""Kept of the time given, for the process to end."""


class Stopped(KeyboardInterrupt):
    """Raised where a run is to end, out of whatever runs there."""


class StopRequest:
    """Whether and why the run is to end."""

    def __init__(self, seconds: float | None = None) -> None:
        self.deadline = None if seconds is None else time.monotonic() + seconds
        self.exit_code: int | None = None
        """Of the process, once somebody asked."""
        self._held, self._raised = True, False  # until somebody says where a request ends what runs

    @property
    def asked(self) -> bool:
        return self.exit_code is not None

    @property
    def seconds_left(self) -> float:
        """Until the time given is over; infinite if none was."""
        return float("inf") if self.deadline is None else self.deadline - time.monotonic()

    def ask(self, exit_code: int) -> None:
        """Ask; the first reason counts.

        Raises:
            Stopped: unless requests are held.
        """
        self.exit_code = self.exit_code or exit_code
        if not self._held and not self._raised:
            self._stop()

    @contextmanager
    def held(self) -> Iterator[None]:
        """While open, a request is only noted, in `asked`.

        Raises:
            Stopped: at the end, if somebody asked and nothing else was raised.
        """
        before, self._held = self._held, True
        try:
            yield
        finally:
            self._held = before
        if self.asked and not self._held:
            self._stop()

    @contextmanager
    def at_once(self, *, reserve: float) -> Iterator[None]:
        """While open, a request ends what runs, and so does the end of the time given, less `reserve` seconds.

        Raises:
            Stopped: somebody asked, or did before.
        """
        before, self._held = self._held, False
        try:
            if self.asked:
                self._stop()
            with self._timer(reserve):
                yield
        finally:
            self._held = before

    @contextmanager
    def _timer(self, reserve: float) -> Iterator[None]:
        """Asks, as a signal would, when only the reserve is left."""
        if self.deadline is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        timer = threading.Timer(max(0.0, self.seconds_left - reserve), self._time_is_up)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _stop(self) -> NoReturn:
        self._raised = True
        raise Stopped

    def _time_is_up(self) -> None:
        if not self.asked:
            self.exit_code = TrainingInterrupted.TIME_IS_UP
            if sys.platform == "win32":
                _thread.interrupt_main(signal.SIGINT)
            else:  # a real one also wakes a thread that waits
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextmanager
def stop_requests(seconds: float | None = None) -> Iterator[StopRequest]:
    """While open, the first SIGINT or SIGTERM is a request to stop; a second one acts as it always did.

    It is held until the block opens `at_once`.

    Args:
        seconds: the time given; a request comes when it is over.
    """
    request = StopRequest(seconds)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def put_back() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def ask(number: int, frame: FrameType | None) -> None:
        put_back()
        request.ask(128 + number)

    for number in previous:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        put_back()
