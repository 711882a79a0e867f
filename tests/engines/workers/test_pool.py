"""The pool itself, over stand-in workers of this process."""

import threading

import numpy as np
import pytest

from bertjax.engines.workers import pool as pools
from bertjax.engines.workers.pool import AHEAD, RESTARTS, About, CallLimit, WorkerLost, WorkerPool
from bertjax.errors import WorkFailed

ONES = np.ones((2, 8), np.int64)


class Stub:
    """A worker that answers with its own number, or is lost as often as it is told to."""

    pid = 0

    def __init__(self, number, *, streams=1, losses=None):
        self.number, self.losses, self.gate = number, losses if losses is not None else [], threading.Event()
        self.compiled, self.closed, self.lanes, self.limits = [], False, [], []
        self.gate.set()
        self.about = About(
            name="stub",
            description="stub",
            streams=streams,
            batch_tokens=64,
            shares_cores=True,
            compiles_shapes=True,
            node=f"node-{number % 2}",
        )

    def infer(self, lane, batch, seconds):
        self.lanes.append(lane)
        self.limits.append(seconds)
        self.gate.wait(10)
        if self.losses:
            raise self.losses.pop()
        return np.full((2, 8), self.number, np.float32), np.zeros((2, 8), np.float32)

    def compile_shapes(self, shapes):
        self.compiled += shapes

    def resident_bytes(self):
        return 10 * (1 + self.number)

    def close(self):
        self.closed = True


def lost(how):
    return WorkerLost(f"(process 1) ended with {how}")


def test_a_pool_has_what_its_workers_have():
    made = [Stub(number, streams=2) for number in range(3)]
    pool = WorkerPool(lambda number: made[number], 3)
    assert (pool.streams, pool.calls, pool.batch_tokens) == (6, 6 + 3 * AHEAD, 64)
    assert pool.shares_cores and pool.compiles_shapes
    pool.compile_shapes([(1, 8), (2, 8)])
    assert [worker.compiled for worker in made] == [[(1, 8), (2, 8)]] * 3
    assert pool.resident_bytes() == 10 + 30  # of the two on one node, which is more than on the other


def test_calls_go_to_the_worker_with_most_room():
    made = [Stub(number) for number in range(2)]
    pool = WorkerPool(lambda number: made[number], 2)
    for worker in made:
        worker.gate.clear()
    threads = [threading.Thread(target=pool.infer, args=(ONES, ONES, ONES)) for _ in range(2)]
    for thread in threads:
        thread.start()
    while sum(len(worker.lanes) for worker in made) < 2:
        pass
    assert [len(worker.lanes) for worker in made] == [1, 1]
    for worker in made:
        worker.gate.set()
    for thread in threads:
        thread.join()


def test_a_worker_that_comes_back_compiles_what_the_others_have():
    made = []

    def start(number):
        made.append(Stub(number, losses=[] if made else [lost("signal 9")]))
        return made[-1]

    pool = WorkerPool(start, 1)
    pool.compile_shapes([(1, 8)])
    assert pool.infer(ONES, ONES, ONES)[0].shape == (2, 8)
    wait_for(lambda: len(made) == 2 and made[1].compiled == [(1, 8)])
    assert made[0].closed


@pytest.mark.parametrize(("deaths", "starts"), [(RESTARTS, True), (RESTARTS + 1, False)])
def test_a_worker_that_ends_while_it_starts_is_started_again(capsys, deaths, starts):
    left = [lost("exit code 7")] * deaths

    def start(number):
        if left:
            raise left.pop()
        return Stub(number)

    if starts:
        assert WorkerPool(start, 1).streams == 1
        assert capsys.readouterr().err.count("ended with exit code 7; it is started again") == RESTARTS
    else:
        with pytest.raises(WorkFailed, match="exit code 7 before it was ready"):
            WorkerPool(start, 1)


def test_a_worker_that_ends_while_it_starts_again_is_started_once_more():
    deaths = [lost("signal 9"), lost("signal 9")]
    made = []

    def start(number):
        if made and deaths:
            raise deaths.pop()
        made.append(Stub(number, losses=[] if made else [lost("signal 9")]))
        return made[-1]

    pool = WorkerPool(start, 1)
    assert pool.infer(ONES, ONES, ONES)[0].shape == (2, 8) and not deaths


def test_a_calls_limit_follows_what_calls_took():
    limit = CallLimit()
    assert limit.seconds(1000) == pools.FIRST_SECONDS
    limit.note(1000, 0.5)
    limit.note(3000, 1.5)
    assert limit.seconds(2000) == pytest.approx(pools.PATIENCE * 1.0)
    assert limit.seconds(10) == pools.LEAST_SECONDS


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited in vain")
