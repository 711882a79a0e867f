"""A backend that is many: calls go to free workers, processes here or anywhere, and outlive those that die."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from bertjax.engines.backend import Backend, Logits, Shape
from bertjax.errors import WorkFailed

Feed = tuple[np.ndarray, np.ndarray, np.ndarray]  # the arguments of `Backend.infer`

ATTEMPTS = 3  # workers that may be lost on one batch before the batch is what is wrong
RESTARTS = 3  # of each worker before it is the machine or the engine that is wrong
START_SECONDS = 600.0  # to find a place and open a backend, which may have to compile
# Calls that a worker takes beyond its streams: a batch waits in the worker while the answer of another one travels, and
# no stream is idle. A waiting core takes longer to wake than a batch of a small model takes to travel.
AHEAD = 1
FIRST_SECONDS = 300.0  # that a call may take while no call has been measured
LEAST_SECONDS = 5.0  # that a call may take at least
PATIENCE = 20.0  # times its usual seconds that a call may take


class WorkerLost(Exception):
    """A worker is gone, with the call that it had. The message says how it ended."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """A worker's backend, as `backend.Backend` has it, and the machine that it is on."""

    name: str
    description: str
    streams: int
    batch_tokens: int
    shares_cores: bool
    compiles_shapes: bool
    node: str

    @staticmethod
    def of(backend: Backend, streams: int) -> About:
        """Of a backend that was opened for so many streams; where it allows fewer calls at once, those."""
        return About(
            name=backend.name,
            description=backend.description,
            streams=min(streams, backend.streams),
            batch_tokens=backend.batch_tokens,
            shares_cores=backend.shares_cores,
            compiles_shapes=backend.compiles_shapes,
            node=platform.node(),
        )


class Worker(Protocol):
    """A backend somewhere else, ready to answer. Every method raises WorkerLost if the worker ends meanwhile."""

    about: About
    pid: int  # on its machine

    def infer(self, lane: int, batch: Feed, seconds: float) -> Logits:
        """As `backend.Backend.infer`; called by one thread at a time for each of `about.streams` + AHEAD lanes.

        Raises:
          WorkerLost: the worker ended before it answered, or did not answer within `seconds`, and is ended then.
          Exception: what its backend raised.
        """
        ...

    def compile_shapes(self, shapes: Sequence[Shape]) -> None:
        """As `backend.Backend.compile_shapes`; any thread may call it at any time."""
        ...

    def resident_bytes(self) -> int:
        """As `backend.Backend.resident_bytes`; any thread may call it at any time."""
        ...

    def close(self) -> None:
        """End the worker, whatever it is doing, or a lost one."""
        ...


class CallLimit:
    """Seconds that a call may take before its worker counts as lost, from what calls have taken so far."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds, self._tokens = 0.0, 0

    def note(self, tokens: int, seconds: float) -> None:
        """A call of so many padded tokens was answered."""
        with self._lock:
            self._seconds, self._tokens = self._seconds + seconds, self._tokens + tokens

    def seconds(self, tokens: int) -> float:
        """PATIENCE times the seconds that so many padded tokens take on average, and LEAST_SECONDS at least."""
        with self._lock:
            if not self._tokens:
                return FIRST_SECONDS
            return max(LEAST_SECONDS, PATIENCE * tokens * self._seconds / self._tokens)


@dataclasses.dataclass(kw_only=True)
class _Member:
    """A worker that answers, its lanes without a call, and when it was taken last."""

    worker: Worker
    free: list[int]
    turn: int = 0


class WorkerPool(Backend):
    """Workers as one backend, with what each of them can. See `backend.Backend`.

    A call that loses its worker is sent to another one, and a new worker takes the lost one's place in the background;
    so the caller gets one answer, however many workers began on it.
    """

    def __init__(self, start: Callable[[int], Worker], count: int):
        """Start `count` workers, the first one before the others.

        Args:
          start: starts the worker of a number below `count` and waits until it is ready; from any thread, and again
            where one was lost.

        Raises:
          WorkFailed: a worker ended while it started, and RESTARTS times again.
          Exception: `start` raised it.
        """
        self._start, self._count = start, count
        self._lock = threading.Lock()  # guards all below
        self._change = threading.Condition(self._lock)  # a lane has become free, or the end has come
        self._members: dict[int, _Member] = {}
        self._turns = 0
        self._starting: set[int] = set()  # workers that are being started again
        self._restarts: collections.Counter[int] = collections.Counter()
        self._shapes: list[Shape] = []  # that every worker has compiled
        self._end: Exception | None = None
        self._closed = False
        self._limit = CallLimit()
        try:
            self._add(0)  # alone, so that what it writes to the disk, a graph or a compiled model, is there for all
            with concurrent.futures.ThreadPoolExecutor(max(1, count - 1)) as threads:
                list(threads.map(self._add, range(1, count)))
        except BaseException as error:
            self.close()
            if isinstance(error, WorkerLost):
                raise WorkFailed(f"a worker {error} before it was ready") from None
            raise
        found = [worker.about for worker in self.workers.values()]
        self.name, self.batch_tokens = found[0].name, found[0].batch_tokens
        self.shares_cores, self.compiles_shapes = found[0].shares_cores, found[0].compiles_shapes
        self.streams = sum(about.streams for about in found)
        self.description = f"{count} workers, each {found[0].description}"

    @property
    def workers(self) -> dict[int, Worker]:
        """Those that answer now, by number."""
        with self._lock:
            return {number: member.worker for number, member in self._members.items()}

    @property
    def calls(self) -> int:
        return self.streams + AHEAD * self._count

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        cause: WorkerLost | None = None
        rows, length = input_ids.shape
        for _ in range(ATTEMPTS):
            number, worker, lane = self._take()
            begin = time.monotonic()
            try:
                batch = input_ids, attention_mask, token_type_ids
                logits = worker.infer(lane, batch, self._limit.seconds(rows * length))
            except WorkerLost as error:
                cause = error
                self._replace(number, worker, error)
                continue
            except Exception:
                self._release(number, worker, lane)
                raise
            self._release(number, worker, lane)
            self._limit.note(rows * length, time.monotonic() - begin)
            return logits
        raise WorkFailed(f"{ATTEMPTS} workers in turn ended on a batch of {rows} x {length} tokens; the last {cause}")

    def compile_shapes(self, shapes: Sequence[Shape]) -> None:
        with self._lock:
            self._shapes += [shape for shape in shapes if shape not in self._shapes]
            workers = {number: member.worker for number, member in self._members.items()}
        with concurrent.futures.ThreadPoolExecutor(self._count) as threads:
            list(threads.map(lambda number: self._compile(number, workers[number], shapes), workers))

    def resident_bytes(self) -> int:
        found: collections.Counter[str] = collections.Counter()
        for number, worker in self.workers.items():
            try:
                found[worker.about.node] += worker.resident_bytes()
            except WorkerLost as error:
                self._replace(number, worker, error)
        return max(found.values(), default=0)

    def close(self) -> None:
        """End all workers; calls still waiting raise. Closing again does nothing."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        self._give_up(WorkFailed("the workers have been closed"))
        for worker in self.workers.values():
            worker.close()

    def _take(self) -> tuple[int, Worker, int]:
        """A free lane, of the worker that has most of them; of equals the one that was taken longest ago."""
        with self._change:
            while self._end is None:
                free = [(number, member) for number, member in self._members.items() if member.free]
                if free:
                    number, member = max(free, key=lambda pair: (len(pair[1].free), -pair[1].turn))
                    self._turns += 1
                    member.turn = self._turns
                    return number, member.worker, member.free.pop(0)
                self._change.wait()
            raise WorkFailed(f"no worker is left: {self._end}") from self._end

    def _release(self, number: int, worker: Worker, lane: int) -> None:
        with self._change:
            member = self._members.get(number)
            if member is not None and member.worker is worker:  # else it is a lane of a lost one
                member.free.append(lane)
                self._change.notify()

    def _replace(self, number: int, lost: Worker, error: WorkerLost) -> None:
        """Start a new worker in place of a lost one, in the background; each of its lanes may report the loss."""
        with self._lock:
            if self._closed or number not in self._members or self._members[number].worker is not lost:
                return
            del self._members[number]
            self._starting.add(number)
        lost.close()
        if not self._may_restart(number, error, "its batches are sent again, and it is started anew"):
            self._give_up(error)
            return
        threading.Thread(target=self._restart, args=(number,), daemon=True).start()

    def _restart(self, number: int) -> None:
        try:
            worker = self._add(number)
        except Exception as error:
            with self._lock:
                alone = not self._members and not self._starting
            if self._closed:
                return
            print(f"worker {number} did not start again: {error}", file=sys.stderr)
            if alone or isinstance(error, WorkerLost):
                self._give_up(error)
            return
        with self._lock:
            shapes = list(self._shapes)
        if shapes:
            self._compile(number, worker, shapes)  # while it answers already

    def _add(self, number: int) -> Worker:
        """Start a worker, again where it ends meanwhile, and put it to work.

        Raises:
          WorkerLost: it ended and may not be started again.
          Exception: as `start`.
        """
        try:
            worker = self._start_until_ready(number)
        except BaseException:
            with self._lock:
                self._starting.discard(number)
            raise
        with self._change:
            self._starting.discard(number)
            if not self._closed:
                lanes = range(worker.about.streams + AHEAD)
                self._members[number] = _Member(worker=worker, free=list(lanes))
                self._change.notify(len(lanes))
                return worker
        worker.close()
        return worker

    def _start_until_ready(self, number: int) -> Worker:
        while True:
            try:
                return self._start(number)
            except WorkerLost as error:
                if self._closed or not self._may_restart(number, error, "it is started again"):
                    raise

    def _may_restart(self, number: int, error: WorkerLost, then: str) -> bool:
        """Count a restart, and say so if it is allowed."""
        with self._lock:
            self._restarts[number] += 1
            allowed = self._restarts[number] <= RESTARTS
        if allowed:
            print(f"worker {number} {error}; {then}", file=sys.stderr)
        return allowed

    def _compile(self, number: int, worker: Worker, shapes: Sequence[Shape]) -> None:
        try:
            worker.compile_shapes(shapes)
        except WorkerLost as error:
            self._replace(number, worker, error)

    def _give_up(self, error: Exception) -> None:
        with self._change:
            self._end = self._end or error
            self._change.notify_all()
