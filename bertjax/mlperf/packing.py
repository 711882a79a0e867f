"""Which waiting samples run together: what a batch costs, and the cheapest way to cut samples into batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

# How many samples a batch may hold. Few counts, so that all shapes can be met before a run: the first time that an
# engine meets one takes several times as long, and under load one such batch makes a queue late for seconds.
BATCH_ROWS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32, 48, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchCost:
    """Seconds of a batch of `rows` samples, each padded to `length` tokens, on one stream while all of them are busy.

    `batch + rows * (token * length + pair * length ** 2)`: what a call costs however small it is, what the dense
    layers cost a token, and what attention costs a pair of tokens.
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


def cheapest_batches(lengths: Sequence[int], *, tokens: int, cost: BatchCost) -> list[tuple[int, int]]:
    """Cut samples in order of length into the batches that take the least time in all.

    Dynamic programming over the cuts: the best way to run the first n samples ends with a batch of the last few of
    them. For samples in order of length no batch need leave out one between two that it holds.

    Args:
      lengths: padded lengths in ascending order.
      tokens: most padded tokens in a batch of several samples; it holds as many as BATCH_ROWS has.

    Returns:
      Ranges (begin, end) that cover all samples.
    """
    best, cuts, overhead = [0.0], [0], cost.batch
    for end, length in enumerate(lengths, start=1):
        row = cost.row(length)
        least, cut = best[end - 1] + overhead + row, end - 1
        most = min(end, tokens // length)
        for rows in BATCH_ROWS[1:]:
            if rows > most:
                break
            total = best[end - rows] + overhead + rows * row
            if total < least:
                least, cut = total, end - rows
        best.append(least)
        cuts.append(cut)
    ranges, end = [], len(lengths)
    while end:
        ranges.append((cuts[end], end))
        end = cuts[end]
    return ranges
