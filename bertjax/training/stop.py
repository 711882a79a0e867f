"""Ctrl-C and SIGTERM while a model trains: requests that the loop reads once a step."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from bertjax.programs import Terminated

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """A request to stop, if one has come.

    A step donates its state, so whatever is raised in its middle leaves nothing to save. Signals therefore only set a
    flag, which `check` raises from between two steps. A second one ends the process at once, with what is saved.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._is_raised_at_once = False

    def check(self) -> None:
        """Raise the request that has come.

        Raises:
          KeyboardInterrupt: SIGINT came.
          Terminated: SIGTERM came.
        """
        if self._signal is not None:
            raise Terminated if self._signal == signal.SIGTERM else KeyboardInterrupt

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise requests in the middle of the block, which loses nothing when it is cut off."""
        self._is_raised_at_once = True
        try:
            self.check()
            yield
        finally:
            self._is_raised_at_once = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal, as a handler of `signal.signal`."""
        is_second = self._signal is not None
        self._signal = number
        if self._is_raised_at_once:
            self.check()
        if is_second:
            os.write(2, b"\nstopped at once; the same command continues from what is saved\n")
            os._exit(128 + number)
        os.write(2, b"\nstopping after this step; once more to stop at once\n")


@contextlib.contextmanager
def stop_requests() -> Iterator[Stop]:
    """Take SIGINT and SIGTERM as requests within the block; outside the main thread, which gets no signals, nothing.

    A signal that is ignored, as SIGINT is in a shell's background jobs, stays so.
    """
    stop = Stop()
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.getsignal(number) for number in _SIGNALS}
    taken = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    for number in taken:
        signal.signal(number, stop.handle)
    try:
        yield stop
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
