"""The cost of a batch, fitted to measurements."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Sequence

import numpy as np

from bertjax.engines.backend import Backend
from bertjax.engines.samples import SampleLibrary
from bertjax.engines.timing.measure import ROUNDS
from bertjax.engines.timing.warmup import shapes_to_come

COST_LENGTHS = 4  # lengths at which batches are timed for `batch_cost`, each with few and with many rows

# How many samples a batch may hold. Few counts, so that all shapes can be met before a run: the first time that an
# engine meets one takes several times as long, and under load one such batch makes a queue late for seconds.
BATCH_ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)


def batch_cost(backend: Backend, library: SampleLibrary, *, tokens: int, multiple: int) -> BatchCost:
    """The cost of batches of up to `tokens` padded tokens, fitted to a dozen shapes, each the median of ROUNDS.

    Lengths are those of the library, padded to `multiple`. All streams run the same shape at once, as they are all busy
    when it matters.
    """
    index, counts = {}, collections.defaultdict(list)
    for plan in shapes_to_come(library, rows=BATCH_ROWS, tokens=tokens, multiple=multiple):
        index[plan.length] = int(plan.rows[0])
        counts[plan.length].append(len(plan.rows))
    lengths = [length for length in sorted(index) if length * 2 <= tokens] or [min(index)]
    chosen = sorted({lengths[round(place)] for place in np.linspace(0, len(lengths) - 1, COST_LENGTHS)})
    shapes = [(count, length) for length in chosen for count in sorted({*counts[length][:2], counts[length][-1]})]
    shapes += [(1, max(index))]
    times: list[list[float]] = [[] for _ in shapes]
    with concurrent.futures.ThreadPoolExecutor(backend.streams) as pool:
        for turn in range(1 + ROUNDS):  # the first is for warming up
            for (count, length), seconds in zip(shapes, times, strict=True):
                batch = library.gather(np.full(count, index[length]), length)
                found = list(pool.map(lambda _, batch=batch: _seconds(backend, batch), range(backend.streams)))
                if turn:
                    seconds.append(statistics.mean(found))
    rows, padded = zip(*shapes, strict=True)
    return fit_cost(rows, padded, [statistics.median(seconds) for seconds in times])


def _seconds(backend: Backend, batch: tuple[np.ndarray, ...]) -> float:
    begin = time.perf_counter()
    backend.infer(*batch)
    return time.perf_counter() - begin


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchCost:
    """Seconds of a batch of `rows` samples, each padded to `length` tokens, on one stream while all of them are busy.

    `batch + rows * (token * length + pair * length ** 2)`: a call's own cost, the dense layers' cost of a token, and
    attention's cost of a pair of tokens.
    """

    batch: float
    token: float
    pair: float

    def row(self, length: int) -> float:
        """Seconds that one sample of this length adds to a batch."""
        return length * (self.token + self.pair * length)

    def seconds(self, rows: int, length: int) -> float:
        return self.batch + rows * self.row(length)


def fit_cost(rows: Sequence[int], lengths: Sequence[int], seconds: Sequence[float]) -> BatchCost:
    """The cost whose relative errors on measured batches are smallest in the least-squares sense; no term is negative.

    Args:
      rows, lengths, seconds: one entry per measured batch; at least three different shapes.
    """
    count, length, time = (np.asarray(values, np.float64) for values in (rows, lengths, seconds))
    terms = np.stack([np.ones(len(time)), count * length, count * length**2], axis=1) / time[:, None]
    kept = [0, 1, 2]
    while True:
        found = np.linalg.lstsq(terms[:, kept], np.ones(len(time)), rcond=None)[0]
        if found.min() >= 0 or len(kept) == 1:
            break
        kept.pop(int(found.argmin()))
    batch, token, pair = (dict(zip(kept, np.abs(found).tolist(), strict=True)).get(term, 0.0) for term in range(3))
    return BatchCost(batch=batch, token=token, pair=pair)
