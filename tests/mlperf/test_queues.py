import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.engines.timing.cost import BatchCost
from bertjax.mlperf.plans import by_length
from bertjax.mlperf.queues import DynamicQueue, PlannedQueue

LENGTHS = np.array([20, 100, 101, 104, 384, 24, 90, 20], np.int32)


def drain(queue):
    batches = []
    while (batch := queue.take()) is not None:
        batches.append(batch)
    return batches


def test_planned_queue_hands_out_every_sample_once_and_padded_enough():
    queue = PlannedQueue(by_length(LENGTHS, tokens=256))
    indices = np.array([7, 4, 1, 2, 1, 0])  # a performance run repeats samples
    queue.put(100 + np.arange(6), indices)
    queue.close()
    batches = drain(queue)
    pairs = sorted((int(i), int(x)) for batch in batches for i, x in zip(batch.ids, batch.indices, strict=True))
    assert pairs == [(100 + n, int(x)) for n, x in enumerate(indices)]
    assert all((LENGTHS[batch.indices] <= batch.length).all() for batch in batches)
    assert all(len(batch.ids) * batch.length <= 256 or len(batch.ids) == 1 for batch in batches)
    assert queue.take() is None  # every worker is told of the end


# A batch costs as much as 100 tokens, whatever is in it.
COST = BatchCost(batch=0.01, token=1e-4, pair=0.0)


def dynamic(lengths, *, tokens=1024, cost=COST, budget=10.0, clock=lambda: 0.0):
    return DynamicQueue(np.asarray(lengths, np.int32), tokens=tokens, cost=cost, budget=budget, clock=clock)


def test_dynamic_queue_runs_the_oldest_with_what_is_cheaper_together():
    queue = dynamic(LENGTHS)
    queue.put(np.arange(7), np.array([2, 0, 1, 4, 3, 6, 5]))  # padded: 112, 32, 112, 384, 112, 96, 32
    first = queue.take()
    assert first.length == 112 and sorted(first.ids) == [0, 2, 4, 5]  # padding 96 to 112 is cheaper than a batch
    second = queue.take()
    assert second.ids == [1, 6] and second.length == 32
    assert queue.take().ids == [3]


def test_dynamic_queue_does_not_wait_for_a_batch_to_fill():
    queue = dynamic(LENGTHS)
    queue.put(np.array([7]), np.array([4]))
    assert queue.take().ids == [7]


def test_who_is_too_late_anyway_runs_after_those_who_can_be_in_time():
    now = 0.0
    queue = dynamic(LENGTHS, budget=1.0, clock=lambda: now)
    queue.put(np.array([0]), np.array([4]))  # takes 0.01 + 384 x 0.0001 s alone, so it must begin by 0.9516
    now = 0.5
    queue.put(np.array([1]), np.array([0]))
    now = 0.96
    assert [queue.take().ids, queue.take().ids] == [[1], [0]]
    queue.put(np.array([2]), np.array([4]))
    queue.put(np.array([3]), np.array([0]))
    now = 1.9
    assert [queue.take().ids, queue.take().ids] == [[2], [3]]  # both can


def test_dynamic_queue_wakes_a_waiting_worker():
    queue = dynamic(LENGTHS)
    taken = []
    workers = [threading.Thread(target=lambda: taken.extend(drain(queue))) for _ in range(3)]
    for worker in workers:
        worker.start()
    queue.put(np.array([5]), np.array([0]))
    queue.close()
    for worker in workers:
        worker.join(timeout=10)
    assert not any(worker.is_alive() for worker in workers) and [batch.ids for batch in taken] == [[5]]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 384), min_size=1, max_size=120),
    tokens=st.integers(64, 2048),
    batch=st.sampled_from([0.0, 1e-6, 1e-2]),  # without a cost many batches are planned at once
)
def test_dynamic_queue_loses_nothing_and_starves_nobody(lengths, tokens, batch):
    array = np.array(lengths, np.int32)
    queue = dynamic(array, tokens=tokens, cost=BatchCost(batch=batch, token=batch / 100, pair=0.0))
    queue.put(np.arange(len(array)), np.arange(len(array)))
    queue.close()
    waiting = set(range(len(array)))
    for batch in drain(queue):
        members = set(batch.ids)
        assert min(waiting) in members and members <= waiting
        assert (array[batch.indices] <= batch.length).all()
        assert len(members) * batch.length <= tokens or len(members) == 1
        waiting -= members
    assert not waiting
