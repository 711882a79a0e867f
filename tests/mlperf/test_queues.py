import threading

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.mlperf.queues import DynamicQueue, PlannedQueue

LENGTHS = np.array([20, 100, 101, 104, 384, 24, 90, 20], np.int32)


def drain(queue):
    batches = []
    while (batch := queue.take()) is not None:
        batches.append(batch)
    return batches


def test_planned_queue_hands_out_every_sample_once_and_padded_enough():
    queue = PlannedQueue(LENGTHS, tokens=256)
    indices = np.array([7, 4, 1, 2, 1, 0])  # a performance run repeats samples
    queue.put(100 + np.arange(6), indices)
    queue.close()
    batches = drain(queue)
    pairs = sorted((int(i), int(x)) for batch in batches for i, x in zip(batch.ids, batch.indices, strict=True))
    assert pairs == [(100 + n, int(x)) for n, x in enumerate(indices)]
    assert all((LENGTHS[batch.indices] <= batch.length).all() for batch in batches)
    assert all(len(batch.ids) * batch.length <= 256 or len(batch.ids) == 1 for batch in batches)
    assert queue.take() is None  # every worker is told of the end


def test_dynamic_queue_serves_the_oldest_with_its_like():
    queue = DynamicQueue(LENGTHS, tokens=1024, workers=1)
    queue.put(np.arange(7), np.array([2, 0, 1, 4, 3, 6, 5]))  # lengths 101, 20, 100, 384, 104, 90, 24
    first = queue.take()
    assert first.length == 104
    assert sorted(first.ids.tolist()) == [0, 2, 4, 5]  # 101, 100, 104, and 90: not the short ones, not the longer one
    second = queue.take()
    assert second.ids.tolist() == [1, 6] and second.length == 24  # 20 and 24 are both padded to 24
    queue.close()
    rest = drain(queue)
    assert sorted(i for batch in rest for i in batch.ids.tolist()) == [3]


def test_dynamic_queue_keeps_to_its_tokens_and_shares_out_over_workers():
    queue = DynamicQueue(np.full(40, 64, np.int32), tokens=256, workers=2)
    queue.put(np.arange(6), np.arange(6))
    assert queue.take().ids.tolist() == [0, 1, 2]  # half of six for each of two workers
    queue.put(np.arange(6, 40), np.arange(6, 40))
    assert queue.take().ids.tolist() == [3, 4, 5, 6]  # 256 tokens are four


def test_dynamic_queue_wakes_a_waiting_worker():
    queue = DynamicQueue(LENGTHS, tokens=256, workers=1)
    taken = []
    worker = threading.Thread(target=lambda: taken.extend(drain(queue)))
    worker.start()
    queue.put(np.array([5]), np.array([0]))
    queue.close()
    worker.join(timeout=10)
    assert not worker.is_alive() and [batch.ids.tolist() for batch in taken] == [[5]]


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(4, 384), min_size=1, max_size=60),
    tokens=st.integers(64, 2048),
    workers=st.integers(1, 4),
)
def test_dynamic_queue_loses_nothing_and_starves_nobody(lengths, tokens, workers):
    array = np.array(lengths, np.int32)
    queue = DynamicQueue(array, tokens=tokens, workers=workers)
    queue.put(np.arange(len(array)), np.arange(len(array)))
    queue.close()
    waiting = set(range(len(array)))
    for batch in drain(queue):
        members = set(batch.ids.tolist())
        assert min(waiting) in members and members <= waiting
        assert (array[batch.indices] <= batch.length).all()
        assert len(members) * batch.length <= tokens or len(members) == 1
        waiting -= members
    assert not waiting
