"""Queues between LoadGen, which issues samples, and the workers, which take batches of them."""

from __future__ import annotations

import collections
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from bertjax.data.batching import padded_lengths
from bertjax.engines.samples import SERVER_MULTIPLE
from bertjax.engines.timing.cost import BatchCost
from bertjax.mlperf.plans import Planner, SampleBatch, cheapest_batches

CANDIDATES = 48  # waiting samples that DynamicQueue looks at; more would not make batches cheaper by 1 %
PLAN_AHEAD = 0.002  # seconds of work that is planned at once; planning takes about 0.1 ms

_Waiting = tuple[float, int, int]  # when it arrived, LoadGen's id, the dataset's index


class BatchQueue(Protocol):
    """Samples go in from LoadGen's thread, batches come out to workers."""

    def put(self, ids: Sequence[int], indices: Sequence[int]) -> None: ...

    def take(self) -> SampleBatch | None:
        """Wait for the next batch; None once the queue is closed and empty."""
        ...

    def close(self) -> None: ...


class PlannedQueue:
    """For queries of several samples (Offline, MultiStream): each query is planned when its batches are asked for."""

    def __init__(self, plan: Planner):
        self._plan = plan
        self._queries: queue.SimpleQueue[Iterator[SampleBatch] | None] = queue.SimpleQueue()
        self._taking = threading.Lock()  # guards the line below
        self._current: Iterator[SampleBatch] = iter(())

    def put(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        self._queries.put(self._plan(np.array(ids, np.int64), np.array(indices, np.int32)))

    def take(self) -> SampleBatch | None:
        with self._taking:
            while (batch := next(self._current, None)) is None:
                query = self._queries.get()
                if query is None:
                    self._queries.put(None)  # for the next worker
                    return None
                self._current = query
            return batch

    def close(self) -> None:
        self._queries.put(None)


class DynamicQueue:
    """For queries that come one by one (Server), each of which has a latency to keep to.

    A free worker never waits for more to come. It looks at the CANDIDATES oldest waiting samples, cuts them into the
    batches that take the least time in all (`plans.cheapest_batches`) and runs the one with the oldest sample: under
    little load that is the sample alone, and the more wait, the fuller and the less padded batches are.

    A sample that would come too late even if it ran at once has lost its race, and would take others down with it: it
    runs when nobody waits who can still be in time. So where more comes than can be served, part of it is in time
    instead of nothing.

    `put` never waits for a worker that is planning.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        *,
        tokens: int,
        cost: BatchCost,
        budget: float,
        clock: Callable[[], float] = time.perf_counter,
    ):
        """
        Args:
          lengths: int32 [windows], those of the library.
          tokens: most padded tokens in a batch of several samples.
          budget: seconds that a sample may take from its arrival to its answer.
          clock: seconds; a simulation brings its own.
        """
        longest = int(lengths.max())
        self._padded = padded_lengths(lengths, SERVER_MULTIPLE, longest).tolist()
        self._tokens, self._cost, self._budget, self._clock = tokens, cost, budget, clock
        self._alone = {length: cost.seconds(1, length) for length in set(self._padded)}
        self._arrivals: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._taking = threading.Lock()  # guards all below
        self._waiting: collections.deque[_Waiting] = collections.deque()  # in order of arrival
        self._late: collections.deque[_Waiting] = collections.deque()
        self._planned: collections.deque[SampleBatch] = collections.deque()
        self._closed = False

    def put(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        now, put = self._clock(), self._arrivals.put
        for sample, index in zip(ids, indices, strict=True):
            put((now, sample, index))

    def take(self) -> SampleBatch | None:
        with self._taking:
            idle = not (self._waiting or self._late or self._planned)
            if idle and not self._closed:
                self._receive(self._arrivals.get())
            while not self._arrivals.empty():
                self._receive(self._arrivals.get())
            if not self._planned:
                self._plan()
            return self._planned.popleft() if self._planned else None

    def close(self) -> None:
        self._arrivals.put(None)

    def _receive(self, arrived: _Waiting | None) -> None:
        if arrived is None:
            self._closed = True
        else:
            self._waiting.append(arrived)

    def _plan(self) -> None:
        """Plan a batch; of very short ones as many as pay for the planning."""
        in_time = self._clock() - self._budget
        while self._waiting and self._waiting[0][0] < in_time + self._alone[self._padded[self._waiting[0][2]]]:
            self._late.append(self._waiting.popleft())
        source = self._waiting or self._late
        if len(source) == 1:  # as most of the time where there is little to do
            self._planned.append(self._batch([source.popleft()]))
            return
        oldest = [source.popleft() for _ in range(min(len(source), CANDIDATES))]
        padded = self._padded
        oldest.sort(key=lambda one: padded[one[2]])
        ranges = cheapest_batches([padded[one[2]] for one in oldest], tokens=self._tokens, cost=self._cost)
        batches = collections.deque(sorted((oldest[begin:end] for begin, end in ranges), key=min))
        seconds = 0.0
        while batches and seconds < PLAN_AHEAD:
            batch = self._batch(batches.popleft())
            seconds += self._cost.seconds(len(batch.ids), batch.length)
            self._planned.append(batch)
        source.extendleft(sorted((one for samples in batches for one in samples), reverse=True))

    def _batch(self, samples: Sequence[_Waiting]) -> SampleBatch:
        _, ids, indices = zip(*samples, strict=True)
        return SampleBatch(ids=list(ids), indices=list(indices), length=self._padded[indices[-1]])
