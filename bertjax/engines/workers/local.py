"""Workers that are processes of this machine, each on its own share of the cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from bertjax import machine
from bertjax.engines.backend import Backend, Logits
from bertjax.engines.workers import processes
from bertjax.engines.workers.pool import About, WorkerLost, WorkerPool
from bertjax.errors import UserError, WorkFailed


def open_local(open_with: Callable[..., Backend], count: int, *, streams: int, threads: int) -> WorkerPool:
    """A pool of processes that share out the cores of this one.

    Args:
      open_with: what each of them calls with its `streams` and `threads`; pickled, so a function of a module, or a
        partial of one.
      streams: of all workers together; each has as many as the others, and at least one.

    Raises:
      UserError, WorkFailed: a worker cannot open its backend.
    """
    own = max(1, streams // count)
    return WorkerPool(lambda number: LocalWorker(open_with, own, threads, machine.share(number, count)), count)


class LocalWorker:
    """A process with a pipe for each stream. See `pool.Worker`."""

    about: About

    def __init__(self, open_with: Callable[..., Backend], streams: int, threads: int, cores: set[int]):
        """Start the process and wait until its backend is open; arguments as `open_local`.

        Raises:
          WorkerLost: it ended before that.
          UserError, WorkFailed: its backend did not open.
        """
        pairs = [multiprocessing.Pipe() for _ in range(streams)]
        theirs = [theirs.fileno() for _, theirs in pairs]
        self._pipes = [ours for ours, _ in pairs]
        content = (open_with, streams, threads, cores)
        self._process = processes.start("bertjax.engines.workers.local", content, theirs)
        for _, end in pairs:
            end.close()
        try:
            self.about = self._answer(self._pipes[0])
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def infer(self, stream: int, batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Logits:
        pipe = self._pipes[stream]
        try:
            pipe.send(batch)
        except OSError:
            raise self._lost() from None
        return self._answer(pipe)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        processes.close_stdin(self._process)

    def _answer(self, pipe: Connection) -> object:
        try:
            answer = pipe.recv()
        except (EOFError, OSError):
            raise self._lost() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _lost(self) -> WorkerLost:
        self._process.kill()  # a broken pipe is the end of it, should the rest still run
        how = processes.how_it_ended(self._process.wait())
        return WorkerLost(f"(process {self.pid}) ended with {how}")


def main() -> None:
    """Be a worker: what to open in on stdin, then batches in and answers out on a pipe for each stream."""
    open_with, streams, threads, cores = pickle.load(sys.stdin.buffer)
    threading.Thread(target=processes.end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before the engine looks how many there are
    first, *rest = (Connection(int(number)) for number in sys.argv[1:])
    try:
        backend = open_with(streams=streams, threads=threads)
    except Exception as error:
        first.send(_sendable(error))
        return
    first.send(About.of(backend, streams))
    for pipe in rest:
        threading.Thread(target=_serve, args=(backend, pipe), daemon=True).start()
    _serve(backend, first)


def _serve(backend: Backend, pipe: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):  # the other end is gone
        while True:
            batch = pipe.recv()
            try:
                answer: object = backend.infer(*batch)
            except Exception as error:
                answer = _sendable(error)
            pipe.send(answer)


def _sendable(error: Exception) -> Exception:
    """An error that another process can read: not every library's class pickles."""
    if isinstance(error, UserError | WorkFailed):
        return type(error)(*error.args)
    return WorkFailed(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
