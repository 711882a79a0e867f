import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.engines.timing.cost import BATCH_ROWS, BatchCost
from bertjax.mlperf import plans
from bertjax.mlperf.plans import by_length, cheapest_batches, quickest_batches


def test_batches_are_joined_while_padding_costs_less_than_a_batch():
    cost = BatchCost(batch=10.0, token=1.0, pair=0.0)
    # 2 x 16 + 10 = 42 against 8 + 10 + 16 + 10 = 44; a third of 64 would pad the two by 96 to save 10.
    assert cheapest_batches([8, 16, 64], tokens=1024, cost=cost) == [(2, 3), (0, 2)]
    assert cheapest_batches([8, 16, 64], tokens=24, cost=cost) == [(2, 3), (1, 2), (0, 1)]


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 48).map(lambda n: 8 * n), min_size=1, max_size=8).map(sorted),
    tokens=st.integers(64, 1024),
    batch=st.floats(0.0, 1e-2),
)
def test_no_other_cut_is_cheaper(lengths, tokens, batch):
    cost = BatchCost(batch=batch, token=2e-5, pair=3e-8)

    def total(ranges):
        return sum(cost.seconds(end - begin, lengths[end - 1]) for begin, end in ranges)

    count, every = len(lengths), []
    for size in range(count):
        for places in itertools.combinations(range(1, count), size):
            ranges = list(itertools.pairwise((0, *places, count)))
            sizes = [(end - begin, lengths[end - 1]) for begin, end in ranges]
            if all(rows == 1 or (rows in BATCH_ROWS and rows * length <= tokens) for rows, length in sizes):
                every.append(total(ranges))
    found = cheapest_batches(lengths, tokens=tokens, cost=cost)
    assert sorted(found) == list(itertools.pairwise(sorted({0, *(end for _, end in found)})))
    assert total(found) == pytest.approx(min(every))


@pytest.mark.parametrize("block", [16, 1 << 18])
def test_a_long_query_is_planned_in_blocks_whose_batches_are_full(monkeypatch, block):
    """Every sample once; only the last block, of at most a block's samples and what was left, has batches to fill."""
    monkeypatch.setattr(plans, "BLOCK", block)
    random = np.random.default_rng(0)
    lengths = random.integers(10, 60, 50).astype(np.int32)
    ids, indices = np.arange(1000, 1100), random.integers(0, 50, 100).astype(np.int32)
    batches = list(by_length(lengths, tokens=128)(ids, indices))
    pairs = [pair for batch in batches for pair in zip(batch.ids, batch.indices, strict=True)]
    assert sorted(pairs) == list(zip(ids.tolist(), indices.tolist(), strict=True))
    assert all(lengths[batch.indices].max() <= batch.length < lengths[batch.indices].min() + 8 for batch in batches)
    full = [len(batch.ids) == 128 // batch.length for batch in batches]
    assert len(full) - full.count(True) <= len({batch.length for batch in batches})
    assert all(len(batch.ids) * batch.length <= 128 for batch in batches)


def test_a_long_query_is_not_planned_before_its_batches_are_asked_for(monkeypatch):
    monkeypatch.setattr(plans, "BLOCK", 16)
    planned = []
    plan_inference = plans.plan_inference
    monkeypatch.setattr(
        plans, "plan_inference", lambda lengths, **rest: planned.append(len(lengths)) or plan_inference(lengths, **rest)
    )
    batches = by_length(np.full(4, 32, np.int32), tokens=128)(np.arange(64), np.zeros(64, np.int32))
    assert planned == []
    next(batches)
    assert planned == [16]


def slowest_stream(ranges, lengths, cost, streams):
    """Seconds until all batches are done, each begun in its turn by the stream that is free first."""
    free = [0.0] * streams
    for begin, end in ranges:
        stream = free.index(min(free))
        free[stream] += cost.seconds(end - begin, lengths[end - 1])
    return max(free)


@pytest.mark.parametrize(
    ("overhead", "streams", "sizes"),
    [
        (10.0, 2, [4, 4]),
        (1e-6, 2, [4, 4]),  # more would be as quick, and not quicker
        (1e-6, 1, [8]),  # nothing runs beside
        (1e-6, 8, [1] * 8),
    ],
)
def test_a_query_of_equal_samples_fills_the_streams_with_as_few_batches_as_pay(overhead, streams, sizes):
    cost = BatchCost(batch=overhead, token=1e-3, pair=0.0)
    ranges = quickest_batches([64] * 8, tokens=1024, cost=cost, streams=streams)
    assert sorted(end - begin for begin, end in ranges) == sizes


@given(
    lengths=st.lists(st.sampled_from([32, 64, 128, 384]), min_size=1, max_size=6).map(sorted),
    overhead=st.sampled_from([1e-4, 1e-2, 1.0]),
    streams=st.integers(1, 3),
)
def test_a_querys_batches_are_nearly_the_quickest(lengths, overhead, streams):
    """Against every way to cut the samples: never more than a third slower, which is what taking the longest first may
    cost (Graham 1969)."""
    cost, count = BatchCost(batch=overhead, token=1e-3, pair=0.0), len(lengths)
    found = quickest_batches(lengths, tokens=4096, cost=cost, streams=streams)
    assert sorted(index for begin, end in found for index in range(begin, end)) == list(range(count))
    best = math.inf
    for cuts in itertools.product([False, True], repeat=count - 1):
        edges = [0, *(place + 1 for place, cut in enumerate(cuts) if cut), count]
        ranges = list(itertools.pairwise(edges))
        for order in itertools.permutations(ranges) if len(ranges) <= 4 else [ranges]:
            best = min(best, slowest_stream(order, lengths, cost, streams))
    assert slowest_stream(found, lengths, cost, streams) <= 4 / 3 * best + 1e-9
