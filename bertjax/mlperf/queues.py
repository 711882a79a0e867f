"""The two ways in which issued samples become batches: planned at once, or as they arrive."""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from bertjax.data.batching import padded_length, plan_inference

LENGTH_MULTIPLE = 8  # batches are padded to multiples of this many tokens
NEAREST = 0.75  # a sample joins a batch of longer ones if it is at least this share of their length


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples that run together, padded to `length`: LoadGen's `ids` and the dataset's `indices`, int64 [rows]."""

    ids: np.ndarray
    indices: np.ndarray
    length: int


class BatchQueue(Protocol):
    """Samples go in from LoadGen's thread, batches come out to workers."""

    def put(self, ids: Sequence[int], indices: Sequence[int]) -> None: ...

    def take(self) -> Batch | None:
        """Wait for the next batch; None once the queue is closed and empty."""
        ...

    def close(self) -> None: ...


class PlannedQueue:
    """For queries of many samples (Offline, MultiStream): sorted by length, about `tokens` padded tokens a batch."""

    def __init__(self, lengths: np.ndarray, *, tokens: int):
        self._lengths, self._tokens, self._longest = lengths, tokens, int(lengths.max())
        self._queue: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()

    def put(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        ids, indices = np.array(ids, np.int64), np.array(indices, np.int64)
        plans = plan_inference(
            self._lengths[indices], tokens=self._tokens, multiple=LENGTH_MULTIPLE, longest=self._longest
        )
        for plan in reversed(plans):  # the long ones first, so that workers end at about the same time
            self._queue.put(Batch(ids=ids[plan.rows], indices=indices[plan.rows], length=plan.length))

    def take(self) -> Batch | None:
        batch = self._queue.get()
        if batch is None:
            self._queue.put(None)  # for the next worker
        return batch

    def close(self) -> None:
        self._queue.put(None)


class DynamicQueue:
    """For queries that come one by one (Server): nobody waits for a batch to fill.

    A batch holds the oldest waiting sample and, up to `tokens` padded tokens, waiting samples of about its length
    or a little shorter, so that nothing is padded by much and the oldest is never padded. Waiting samples are shared
    out evenly over the workers, since two small batches at once beat one large batch beside an idle worker.
    """

    def __init__(self, lengths: np.ndarray, *, tokens: int, workers: int):
        self._tokens, self._workers = tokens, workers
        longest = int(lengths.max())
        self._padded = [padded_length(length, LENGTH_MULTIPLE, longest) for length in lengths.tolist()]
        self._changed = threading.Condition()
        # Waiting samples by padded length, each with its number of arrival.
        self._waiting: dict[int, collections.deque[tuple[int, int, int]]] = {}
        self._arrived = self._count = 0
        self._closed = False

    def put(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        with self._changed:
            for sample, index in zip(ids, indices, strict=True):
                length = self._padded[index]
                if length not in self._waiting:
                    self._waiting[length] = collections.deque()
                self._waiting[length].append((self._arrived, sample, index))
                self._arrived += 1
            self._count += len(ids)
            self._changed.notify(len(ids))

    def take(self) -> Batch | None:
        with self._changed:
            self._changed.wait_for(lambda: self._count or self._closed)
            if not self._count:
                return None
            oldest = min(self._waiting, key=lambda length: self._waiting[length][0][0])
            share = -(-self._count // self._workers)
            room = max(1, min(share, self._tokens // oldest))
            taken: list[tuple[int, int, int]] = []
            for length in sorted((n for n in self._waiting if NEAREST * oldest <= n <= oldest), reverse=True):
                bucket = self._waiting[length]
                while bucket and len(taken) < room:
                    taken.append(bucket.popleft())
                if not bucket:
                    del self._waiting[length]
            self._count -= len(taken)
        _, ids, indices = zip(*taken, strict=True)
        return Batch(ids=np.array(ids, np.int64), indices=np.array(indices, np.int64), length=oldest)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
