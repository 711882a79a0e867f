"""The moments at which samples came and were answered, which LoadGen's logs tell only with its slow tracing."""

from __future__ import annotations

import array
import dataclasses
import threading
import time
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Of one run, in seconds since its first query; queries in the order in which they were issued."""

    issued: np.ndarray  # float64 [queries]
    latencies: np.ndarray  # float64 [queries]: until the last of a query's samples was answered
    answered: np.ndarray  # float64 [samples], ascending
    samples: np.ndarray  # int64 [queries]: how many each has

    def samples_per_second(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """The middle of each of `steps` equal stretches of the run, and the rate of answers in it, float64 [steps]."""
        counts, edges = np.histogram(self.answered, bins=steps, range=(0.0, self.answered[-1]))
        return (edges[1:] + edges[:-1]) / 2, counts / np.diff(edges)

    def samples_inside(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        """`steps` times, and how many samples had then been issued and not answered, float64 and int64 [steps]."""
        times = np.linspace(0.0, self.answered[-1], steps)
        come = np.concatenate([[0], np.cumsum(self.samples)])[np.searchsorted(self.issued, times, side="right")]
        return times, come - np.searchsorted(self.answered, times, side="right")


class Timeline:
    """Notes a moment per query and per batch; `issue` in one thread, `complete` in any.

    Queries are told apart by their samples' ids, 16 bytes a sample. One query alone, with any number of samples, needs
    none.
    """

    def __init__(self, *, one_query: bool = False) -> None:
        """`one_query`: a phase of the test has only one (Offline)."""
        self._lock, self._one_query = threading.Lock(), one_query
        self.begin()

    def begin(self) -> None:
        """Forget everything: a new phase of a test begins."""
        # Of queries: when, how many samples, and their ids. Of batches the same.
        self._issued, self._sizes, self._ids = array.array("d"), array.array("q"), array.array("q")
        self._answered, self._answered_sizes, self._answered_ids = array.array("d"), array.array("q"), array.array("q")

    def issue(self, ids: Sequence[int]) -> None:
        self._issued.append(time.perf_counter())
        self._sizes.append(len(ids))
        if not self._one_query:
            self._ids.extend(ids)

    def complete(self, ids: Sequence[int]) -> None:
        now = time.perf_counter()
        with self._lock:
            self._answered.append(now)
            self._answered_sizes.append(len(ids))
            if not self._one_query:
                self._answered_ids.extend(ids)

    def timing(self) -> Timing | None:
        """The run's timing, once every sample is answered; None where nothing was issued."""
        if not self._issued:
            return None
        issued, sizes = np.array(self._issued), np.array(self._sizes)
        answered = np.repeat(np.array(self._answered), np.array(self._answered_sizes))
        of_query = answered.max(keepdims=True) if self._one_query else self._last_answers(answered, sizes)
        begin = issued[0]
        return Timing(
            issued=issued - begin, latencies=of_query - issued, answered=np.sort(answered) - begin, samples=sizes
        )

    def _last_answers(self, answered: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """When the last sample of each query was answered, float64 [queries]."""
        ids, answered_ids = np.array(self._ids), np.array(self._answered_ids)
        order = np.argsort(answered_ids, kind="stable")
        of_sample = answered[order][np.searchsorted(answered_ids, ids, sorter=order)]
        return np.maximum.reduceat(of_sample, np.cumsum(sizes) - sizes)
