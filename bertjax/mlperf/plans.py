"""Plans: which samples run together in a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bertjax.data.batching import padded_lengths, plan_inference
from bertjax.engines.samples import LENGTH_MULTIPLE, SERVER_MULTIPLE
from bertjax.engines.timing.cost import BATCH_ROWS, BatchCost

BLOCK = 1 << 18  # samples of a query that are planned at once: some 30 MB

# Batches of a query, made as they are asked for: LoadGen's ids int64 [samples], the dataset's indices int32 [samples].
Planner = Callable[[np.ndarray, np.ndarray], Iterator["SampleBatch"]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """Samples that run together, padded to `length`: LoadGen's `ids` and the dataset's `indices`, one a row.

    Plain integers: for the few of a batch they cost less than arrays do.
    """

    ids: list[int]
    indices: list[int]
    length: int


def by_length(lengths: np.ndarray, *, tokens: int) -> Planner:
    """Plan for the highest rate: batches of one padded length, as many samples as `tokens` padded tokens hold.

    Queries are planned in blocks of BLOCK samples, each with its long ones first, so that workers end at about the same
    time. What is left of a block and fills no batch goes into the next one.

    Args:
      lengths: int32 [windows], those of the library.
    """
    longest = int(lengths.max())

    def plan(ids: np.ndarray, indices: np.ndarray) -> Iterator[SampleBatch]:
        left = np.empty(0, np.int64)
        for begin in range(0, len(ids), BLOCK):
            end = min(begin + BLOCK, len(ids))
            block = np.concatenate([left, np.arange(begin, end)])
            plans = plan_inference(lengths[indices[block]], tokens=tokens, multiple=LENGTH_MULTIPLE, longest=longest)
            partial = []
            for one in reversed(plans):
                rows = block[one.rows]
                if len(rows) < tokens // one.length and end < len(ids):
                    partial.append(rows)
                else:
                    yield SampleBatch(ids=ids[rows].tolist(), indices=indices[rows].tolist(), length=one.length)
            left = np.concatenate(partial) if partial else np.empty(0, np.int64)

    return plan


def by_latency(lengths: np.ndarray, *, tokens: int, cost: BatchCost, streams: int) -> Planner:
    """Plan for the least time until the last sample of a query is answered (`quickest_batches`), for queries of a few.

    Args:
      lengths: int32 [windows], those of the library.
      tokens: most padded tokens in a batch of several samples.
      streams: how many batches run at once.
    """
    padded = padded_lengths(lengths, SERVER_MULTIPLE, int(lengths.max()))

    def plan(ids: np.ndarray, indices: np.ndarray) -> Iterator[SampleBatch]:
        order = np.argsort(padded[indices], kind="stable")
        sorted_lengths = padded[indices[order]].tolist()
        for begin, end in quickest_batches(sorted_lengths, tokens=tokens, cost=cost, streams=streams):
            rows = order[begin:end]
            yield SampleBatch(ids=ids[rows].tolist(), indices=indices[rows].tolist(), length=sorted_lengths[end - 1])

    return plan


def quickest_batches(lengths: Sequence[int], *, tokens: int, cost: BatchCost, streams: int) -> list[tuple[int, int]]:
    """Cut samples in order of length into batches so that all are answered soonest.

    One large batch leaves streams idle, many small ones each pay for a call: batches are made for every number of them
    that could be best, and each stream that becomes free takes the longest one that is left.

    Args:
      lengths: padded lengths in ascending order.
      tokens: most padded tokens in a batch of several samples.

    Returns:
      Ranges (begin, end) that cover all samples, in the order in which they are to be begun.
    """
    best: tuple[float, list[tuple[int, int]]] | None = None
    for parts in range(1, min(len(lengths), 4 * streams) + 1):
        room = -(-len(lengths) // parts) * lengths[-1]
        ranges = cheapest_batches(lengths, tokens=min(tokens, room), cost=cost)
        seconds = {(begin, end): cost.seconds(end - begin, lengths[end - 1]) for begin, end in ranges}
        ranges.sort(key=seconds.__getitem__, reverse=True)
        free = [0.0] * streams
        for one in ranges:
            free[free.index(min(free))] += seconds[one]
        if best is None or max(free) < best[0]:
            best = max(free), ranges
    return best[1] if best else []


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
