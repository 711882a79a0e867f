"""Workers that are processes of this machine, each on its own share of the cores."""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import select
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from bertjax import machine
from bertjax.engines.backend import Backend, Logits, Shape
from bertjax.engines.workers import processes
from bertjax.engines.workers.exchange import Exchange
from bertjax.engines.workers.pool import AHEAD, START_SECONDS, About, Feed, WorkerLost, WorkerPool
from bertjax.errors import UserError, WorkFailed

_SHAPE = struct.Struct("qq")  # rows and length of a batch that lies in an exchange


def open_local(open_with: Callable[..., Backend], count: int, *, streams: int, threads: int) -> WorkerPool:
    """A pool of processes that share out the cores of this one.

    Args:
      open_with: each worker calls it with its `streams` and `threads`; it is pickled, so a function of a module, or a
        partial of one.
      streams: of all workers together; each has as many as the others, and at least one.

    Raises:
      UserError, WorkFailed: a worker cannot open its backend.
    """
    own = max(1, streams // count)
    return WorkerPool(lambda number: LocalWorker(open_with, own, threads, machine.share(number, count)), count)


class LocalWorker:
    """A process with a pipe and an exchange for each lane, and a pipe for all else. See `pool.Worker`."""

    about: About

    def __init__(self, open_with: Callable[..., Backend], streams: int, threads: int, cores: set[int]):
        """Start the process and wait until its backend is open; arguments as `open_local`.

        Raises:
          WorkerLost: it ended before that.
          UserError, WorkFailed: its backend did not open.
        """
        pairs = [multiprocessing.Pipe() for _ in range(1 + streams + AHEAD)]
        self._control, *self._pipes = [ours for ours, _ in pairs]
        self._controlling = threading.Lock()
        self._pollers = [_poller(pipe) for pipe in self._pipes]  # `Connection.poll` makes one anew each time, for 50 us
        self._exchanges = [Exchange() for _ in self._pipes]
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
            with self._ending_told():
                if not self._control.poll(START_SECONDS):
                    raise WorkerLost(f"(process {self.pid}) was not ready within {START_SECONDS:.0f} s")
                self.about = self._answer()
        except BaseException:
            self.close()
            raise

    def infer(self, lane: int, batch: Feed, seconds: float) -> Logits:
        rows, length = batch[0].shape
        inputs, logits = self._exchanges[lane].views(rows, length)
        for mine, given in zip(inputs, batch, strict=True):
            mine[:] = given
        pipe = self._pipes[lane]
        with self._ending_told():
            pipe.send_bytes(_SHAPE.pack(rows, length))
            if not self._pollers[lane].poll(1e3 * seconds):
                self._process.kill()
                raise WorkerLost(f"(process {self.pid}) did not answer within {seconds:.0f} s and was ended")
            error = pipe.recv_bytes()
        if error:
            raise pickle.loads(error)
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
        with self._controlling, self._ending_told():
            self._control.send((method, arguments))
            return self._answer()

    def _answer(self) -> Any:
        """The answer on the control pipe."""
        answer = self._control.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    @contextlib.contextmanager
    def _ending_told(self) -> Iterator[None]:
        """Turn the errors of a pipe whose other end is gone into WorkerLost."""
        try:
            yield
        except (EOFError, OSError):
            self._process.kill()  # a broken pipe is the end of it, should the rest still run
            how = processes.how_it_ended(self._process.wait())
            raise WorkerLost(f"(process {self.pid}) ended with {how}") from None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Task:
    """A worker's start: pipes and exchanges as file descriptors, those of the lanes in their order."""

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
        os._exit(1)
    control.send(About.of(backend, task.streams))
    for pipe, exchange in zip(task.pipes, task.exchanges, strict=True):
        threading.Thread(target=_serve_lane, args=(backend, Connection(pipe), Exchange(exchange)), daemon=True).start()
    _serve_control(backend, control)
    os._exit(0)  # other threads may be in the engine, and Python's own way out would wait for them or abort


def _serve_lane(backend: Backend, pipe: Connection, exchange: Exchange) -> None:
    """Run the batches of one lane until the other end is gone; an answer is empty, or a pickled error."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            inputs, logits = exchange.views(*_SHAPE.unpack(pipe.recv_bytes()))
            answer = b""
            try:
                logits[0], logits[1] = backend.infer(*inputs)
            except Exception as error:
                answer = pickle.dumps(_sendable(error))
            pipe.send_bytes(answer)


def _serve_control(backend: Backend, pipe: Connection) -> None:
    """Call the backend's methods by name until the other end is gone; an answer is a result or an error."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            method, arguments = pipe.recv()
            try:
                answer = getattr(backend, method)(*arguments)
            except Exception as error:
                answer = _sendable(error)
            pipe.send(answer)


def _poller(pipe: Connection) -> select.poll:
    poller = select.poll()
    poller.register(pipe.fileno(), select.POLLIN)
    return poller


def _sendable(error: Exception) -> Exception:
    """An error that another process can read: not every library's class pickles."""
    if isinstance(error, UserError | WorkFailed):
        return type(error)(*error.args)
    return WorkFailed(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
