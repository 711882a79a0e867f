"""Workers that are processes of this machine, each on its own share of the cores."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from bertjax import machine
from bertjax.engines.backend import Backend, Logits, Shape
from bertjax.engines.workers import processes
from bertjax.engines.workers.exchange import Exchange
from bertjax.engines.workers.pool import START_SECONDS, About, Feed, WorkerLost, WorkerPool
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
    """A process with a pipe and an exchange for each stream, and a pipe for all else. See `pool.Worker`."""

    about: About

    def __init__(self, open_with: Callable[..., Backend], streams: int, threads: int, cores: set[int]):
        """Start the process and wait until its backend is open; arguments as `open_local`.

        Raises:
          WorkerLost: it ended before that.
          UserError, WorkFailed: its backend did not open.
        """
        pairs = [multiprocessing.Pipe() for _ in range(1 + streams)]
        self._control, *self._pipes = [ours for ours, _ in pairs]
        self._controlling = threading.Lock()
        self._exchanges = [Exchange() for _ in range(streams)]
        ends = [theirs.fileno() for _, theirs in pairs]
        exchanges = [exchange.descriptor for exchange in self._exchanges]
        task = _Task(
            open_with=open_with,
            streams=streams,
            threads=threads,
            cores=cores,
            control=ends[0],
            pipes=ends[1:],
            exchanges=exchanges,
        )
        self._process = processes.start("bertjax.engines.workers.local", task, ends + exchanges)
        self.pid = self._process.pid
        for _, end in pairs:
            end.close()
        try:
            self.about = self._answer(self._control, START_SECONDS)
        except BaseException:
            self.close()
            raise

    def infer(self, stream: int, batch: Feed, seconds: float) -> Logits:
        rows, length = batch[0].shape
        inputs, logits = self._exchanges[stream].views(rows, length)
        for mine, given in zip(inputs, batch, strict=True):
            mine[:] = given
        self._send(self._pipes[stream], (rows, length))
        self._answer(self._pipes[stream], seconds)
        return logits[0].copy(), logits[1].copy()

    def compile_shapes(self, shapes: Sequence[Shape]) -> None:
        self._call("compile_shapes", shapes)

    def resident_bytes(self) -> int:
        return self._call("resident_bytes")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        processes.close_stdin(self._process)

    def _call(self, method: str, *arguments: object) -> Any:
        with self._controlling:
            self._send(self._control, (method, arguments))
            return self._answer(self._control, None)

    def _send(self, pipe: Connection, message: object) -> None:
        try:
            pipe.send(message)
        except OSError:
            raise self._lost() from None

    def _answer(self, pipe: Connection, seconds: float | None) -> Any:
        try:
            if not pipe.poll(seconds):
                self._process.kill()
                raise WorkerLost(f"(process {self.pid}) did not answer within {seconds:.0f} s and was ended")
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """What a worker is started with; pipes and exchanges as file descriptors, those of the streams in their order."""

    open_with: Callable[..., Backend]
    streams: int
    threads: int
    cores: set[int]
    control: int
    pipes: list[int]
    exchanges: list[int]


def main() -> None:
    """Be a worker: its task comes on stdin, then batches and calls on their pipes."""
    task: _Task = pickle.load(sys.stdin.buffer)
    threading.Thread(target=processes.end_with_parent, daemon=True).start()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, task.cores)  # before the engine looks how many there are
    control = Connection(task.control)
    try:
        backend = task.open_with(streams=task.streams, threads=task.threads)
    except Exception as error:
        control.send(_sendable(error))
        return
    control.send(About.of(backend, task.streams))
    for pipe, exchange in zip(task.pipes, task.exchanges, strict=True):
        threading.Thread(
            target=_serve_stream, args=(backend, Connection(pipe), Exchange(exchange)), daemon=True
        ).start()
    _serve(control, lambda message: getattr(backend, message[0])(*message[1]))


def _serve_stream(backend: Backend, pipe: Connection, exchange: Exchange) -> None:
    def infer(shape: Shape) -> None:
        inputs, logits = exchange.views(*shape)
        logits[0], logits[1] = backend.infer(*inputs)

    _serve(pipe, infer)


def _serve(pipe: Connection, work: Callable[[Any], object]) -> None:
    """Answer each message with what `work` makes of it, or the error that it raises, until the other end is gone."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            message = pipe.recv()
            try:
                answer = work(message)
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
