"""Workers that are processes of this machine, each on its own share of the cores."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import numpy as np

from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf import cpu
from bertjax.mlperf.backend import Backend, Logits
from bertjax.mlperf.child import end_with_parent
from bertjax.mlperf.workers import About, WorkerLost, WorkerPool


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
    return WorkerPool(lambda number: LocalWorker(open_with, own, threads, cpu.share(number, count)), count)


class LocalWorker:
    """A process with a pipe for each stream. See `workers.Worker`."""

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
        # A session of its own, so that Ctrl-C does not reach it; the end of its stdin tells it that this process ended.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bertjax.mlperf.local_workers", *map(str, theirs)],
            stdin=subprocess.PIPE,
            pass_fds=theirs,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        for _, end in pairs:
            end.close()
        with contextlib.suppress(BrokenPipeError):  # it has died already, and the answer tells
            self._process.stdin.write(pickle.dumps((open_with, streams, threads, cores)))
            self._process.stdin.flush()
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
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

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
        code = self._process.wait()
        return WorkerLost(f"(process {self.pid}) ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}")


def main() -> None:
    """Be a worker: what to open in on stdin, then batches in and answers out on a pipe for each stream."""
    open_with, streams, threads, cores = pickle.load(sys.stdin.buffer)
    threading.Thread(target=end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)  # before the engine looks how many there are
    first, *rest = (Connection(int(number)) for number in sys.argv[1:])
    try:
        backend = open_with(streams=streams, threads=threads)
    except Exception as error:
        first.send(_sendable(error))
        return
    # A backend that allows fewer calls at once lets the others wait.
    about = About(
        name=backend.name,
        description=backend.description,
        streams=min(streams, backend.streams),
        batch_tokens=backend.batch_tokens,
    )
    first.send(about)
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
