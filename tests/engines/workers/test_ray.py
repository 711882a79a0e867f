import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest

from bertjax.engines.workers.pool import WorkerPool
from bertjax.engines.workers.ray import LOCAL, Place, RayWorker, close_ray, host_and_port, open_ray, plan_places
from bertjax.errors import UserError, WorkFailed
from tests.engines.workers import pools

HERE = str(Path(__file__).resolve().parents[3])


def node(name, *, cpus=8, gpus=0, alive=True):
    return {"NodeID": name, "Alive": alive, "Resources": {"CPU": cpus} | ({"GPU": gpus} if gpus else {})}


def test_workers_are_spread_over_the_nodes():
    places = plan_places([node("a"), node("b", cpus=4), node("dead", alive=False)], 3)
    assert [(place.node, place.number, place.count, place.cpus) for place in places] == [
        ("a", 0, 2, 4.0),
        ("b", 0, 1, 4.0),
        ("a", 1, 2, 4.0),
    ]
    assert len(plan_places([node("a"), node("b")], None)) == 2  # one a node
    assert plan_places([node("a", cpus=2)], 3)[0].cpus == 0.6666


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("ray://[fe80::1]:10001", ("fe80::1", 10001)),
        ("local", None),
        ("auto", None),
    ],
)
def test_addresses_are_read_in_all_their_forms(address, place):
    assert host_and_port(address) == place


@pytest.mark.parametrize("address", ["[::1]:1", "ray://127.0.0.1:1"])
def test_an_address_without_a_cluster_is_told_at_once(address):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="no cluster there"):
        open_ray(pools.open_echo, address, 1, streams=None, threads=1)


def test_a_ray_worker_compiles_shapes_and_its_errors_are_the_callers(echo_pool):
    pool = open_one(pools.open_picky)
    ids = np.zeros((1, 8), np.int64)
    with pytest.raises(WorkFailed, match="MemoryError: out of memory"):
        pool.infer(ids, ids, ids)
    pool.compile_shapes([(1, 8)])
    assert pool.compiles_shapes and pool.infer(ids, ids, ids)[0].tolist() == [[1.0] * 8]
    assert pool.resident_bytes() > 1 << 20
    pool.close()


def test_a_ray_worker_that_stops_is_replaced(echo_pool, monkeypatch):
    monkeypatch.setattr("bertjax.engines.workers.pool.LEAST_SECONDS", 0.5)
    pool = open_one(pools.open_echo)
    ids = np.full((2, 8), 5)
    pool.infer(ids, ids, ids)
    os.kill(pools.pids(pool)[0], signal.SIGSTOP)
    assert (pool.infer(ids, ids, ids)[0] == 5).all()
    pool.close()


def test_each_gpu_gets_a_worker():
    cluster = [node("a", gpus=2), node("b"), node("c", gpus=1)]
    assert [(place.node, place.gpus) for place in plan_places(cluster, None)] == [("a", 1), ("c", 1), ("a", 1)]
    with pytest.raises(UserError, match="--workers 4: the Ray cluster has 3 GPUs"):
        plan_places(cluster, 4)


def test_a_missing_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install"):
        open_ray(pools.open_echo, LOCAL, 1, streams=None, threads=1)


@pytest.fixture(scope="module")
def echo_pool():
    pytest.importorskip("ray")
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", HERE)  # Ray's processes import the backends from here, as a session's process does
    pool = open_ray(pools.open_echo, LOCAL, 3, streams=3, threads=1)
    yield pool
    close_ray(pool)
    patch.undo()


def open_one(open_with):
    """A pool of one worker beside the others."""
    import ray

    place = Place(node=ray.nodes()[0]["NodeID"], number=0, count=1, cpus=0.0, gpus=0)
    return WorkerPool(lambda number: RayWorker(ray, place, open_with, 1, 1), 1)


def test_a_ray_worker_killed_in_mid_run_loses_no_answer_and_is_started_again(echo_pool, library, windows):
    pools.lose_one_and_get_it_back(echo_pool, library, windows)


def test_a_batch_that_kills_every_ray_worker_ends_with_the_cause(echo_pool):
    pool = open_one(pools.open_dying)
    ids = np.zeros((2, 8), np.int64)
    with pytest.raises(WorkFailed, match="3 workers in turn ended on a batch of 2 x 8 tokens; the last ended: Actor"):
        pool.infer(ids, ids, ids)
    pool.close()


def test_a_ray_worker_that_cannot_open_its_backend_says_where_and_why(echo_pool):
    with pytest.raises(UserError, match="on the Ray node .*nowhere/config.json: no such file"):
        open_one(pools.open_wrong)


def test_closing_leaves_no_process(echo_pool):
    """The last test of the module: it ends the cluster."""
    own = [int(path.name) for path in Path("/proc").glob("[0-9]*") if child_of(path, os.getpid()) and is_ray(path)]
    assert own, "no process of Ray found"
    workers = pools.pids(echo_pool)
    close_ray(echo_pool)
    assert all(pools.gone(pid) for pid in own + workers)


def child_of(path: Path, parent: int) -> bool:
    try:
        return int((path / "stat").read_text().rsplit(")", 1)[1].split()[1]) == parent
    except OSError:
        return False


def is_ray(path: Path) -> bool:
    return b"ray" in (path / "cmdline").read_bytes()
