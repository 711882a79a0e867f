"""A backend that is many: calls go to free workers, processes here or anywhere, and outlive those that die."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import queue
import sys
import threading
from collections.abc import Callable
from typing import Protocol

import numpy as np

from bertjax.engines.backend import Backend, Logits
from bertjax.errors import WorkFailed

ATTEMPTS = 3  # workers that may die on one batch before the batch is what is wrong
RESTARTS = 3  # of each worker on average before it is the machine or the engine that is wrong


class WorkerLost(Exception):
    """A worker is gone, with the call that it had. The message says how it ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """A worker's backend, as `backend.Backend` has it."""

    name: str
    description: str
    streams: int
    batch_tokens: int

    @staticmethod
    def of(backend: Backend, streams: int) -> About:
        """Of a backend that was opened for so many streams; where it allows fewer calls at once, those."""
        return About(
            name=backend.name,
            description=backend.description,
            streams=min(streams, backend.streams),
            batch_tokens=backend.batch_tokens,
        )


class Worker(Protocol):
    """A backend somewhere else, ready to answer."""

    about: About

    def infer(self, stream: int, batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Logits:
        """As `backend.Backend.infer`; called by one thread at a time for each of `about.streams` streams.

        Raises:
          WorkerLost: the worker ended before it answered.
          Exception: what its backend raised.
        """
        ...

    def close(self) -> None:
        """End the worker, whatever it is doing, or a lost one."""
        ...


class WorkerPool:
    """Workers as one backend. See `backend.Backend`.

    A call that loses its worker is sent to another one, and a new worker takes the lost one's place in the background;
    so whoever calls gets one answer, however many workers began on it.
    """

    def __init__(self, start: Callable[[int], Worker], count: int):
        """Start `count` workers, the first one before the others.

        Args:
          start: starts the worker of a number from 0 on and waits until it is ready.

        Raises:
          UserError, WorkFailed: a worker cannot start; the others have been ended.
        """
        self._start, self._lock = start, threading.Lock()
        self._workers: dict[int, Worker] = {}
        self._starting: set[int] = set(range(count))
        self._closed = False
        self._restarts = RESTARTS * count
        # Streams that wait for a call, as (worker's number, worker, stream); None once there is no worker any more.
        self._free: queue.SimpleQueue[tuple[int, Worker, int] | None] = queue.SimpleQueue()
        self._end: Exception | None = None
        try:
            self._add(0)  # alone: it leaves the graph and the compiled model that the others find
            with concurrent.futures.ThreadPoolExecutor(count) as pool:
                list(pool.map(self._add, range(1, count)))
        except BaseException as error:
            self.close()
            if isinstance(error, WorkerLost):
                raise WorkFailed(f"a worker {error} before it was ready") from None
            raise
        found = [worker.about for worker in self._workers.values()]
        self.name, self.batch_tokens = found[0].name, found[0].batch_tokens
        self.streams = sum(about.streams for about in found)
        self.description = f"{count} workers, each {found[0].description}"

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        cause = None
        for _ in range(ATTEMPTS):
            number, worker, stream = self._take()
            try:
                logits = worker.infer(stream, (input_ids, attention_mask, token_type_ids))
            except WorkerLost as error:
                cause = error
                self._replace(number, worker, error)
                continue
            except Exception:
                self._free.put((number, worker, stream))
                raise
            self._free.put((number, worker, stream))
            return logits
        rows, length = input_ids.shape
        raise WorkFailed(f"{ATTEMPTS} workers in turn ended on a batch of {rows} x {length} tokens; the last {cause}")

    def close(self) -> None:
        """End all workers; calls still waiting raise. Closing again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            workers = list(self._workers.values())
        self._give_up(WorkFailed("the workers have been closed"))
        for worker in workers:
            worker.close()

    def _take(self) -> tuple[int, Worker, int]:
        while (free := self._free.get()) is not None:
            number, worker, _ = free
            if self._workers.get(number) is worker:  # else it is a stream of a lost one
                return free
        self._free.put(None)  # for the next call
        raise WorkFailed(f"no worker is left: {self._end}") from self._end

    def _replace(self, number: int, lost: Worker, error: WorkerLost) -> None:
        """Start a new worker in place of a lost one, in the background; every stream of that may come and say so."""
        with self._lock:
            if self._closed or self._workers.get(number) is not lost:
                return
            del self._workers[number]
            self._restarts -= 1
            exhausted = self._restarts < 0
            if not exhausted:
                self._starting.add(number)
        lost.close()
        if exhausted:
            self._give_up(error)
            return
        print(f"worker {number} {error}; its batches are sent again, and it is started anew", file=sys.stderr)
        threading.Thread(target=self._restart, args=(number,), daemon=True).start()

    def _restart(self, number: int) -> None:
        try:
            self._add(number)
        except Exception as error:
            with self._lock:
                alone = not self._workers and not self._starting
            if self._closed:
                return
            print(f"worker {number} did not start again: {error}", file=sys.stderr)
            if alone:
                self._give_up(error)

    def _add(self, number: int) -> None:
        try:
            worker = self._start(number)
        except BaseException:
            with self._lock:
                self._starting.discard(number)
            raise
        with self._lock:
            self._starting.discard(number)
            self._workers[number] = worker
            closed = self._closed
        if closed:
            worker.close()
            return
        for stream in range(worker.about.streams):
            self._free.put((number, worker, stream))

    def _give_up(self, error: Exception) -> None:
        self._end = self._end or error
        self._free.put(None)
