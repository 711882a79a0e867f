import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.engines.timing.cost import BATCH_ROWS, BatchCost
from bertjax.mlperf.queues import cheapest_batches


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
