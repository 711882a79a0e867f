import json
import os
import pickle
import signal
import subprocess
import sys

import numpy as np
import pytest

from bertjax import machine
from bertjax.data.windows import WindowSettings
from bertjax.engines.samples import read_dataset
from bertjax.engines.workers.local import open_local
from bertjax.engines.workers.pool import RESTARTS
from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf import session
from bertjax.mlperf.session import SessionSettings
from tests.engines.workers import pools

if not os.path.isdir("/proc/self"):
    pytest.skip("processes are looked up in /proc", allow_module_level=True)


@pytest.fixture
def echo_pool():
    pool = open_local(pools.open_echo, 3, streams=3, threads=1)
    yield pool
    pool.close()


def test_a_worker_killed_in_mid_run_loses_no_answer_and_is_started_again(echo_pool, library, windows):
    killed, after = pools.lose_one_and_get_it_back(echo_pool, library, windows)
    assert pools.gone(killed)
    echo_pool.close()
    assert all(pools.gone(pid) for pid in after)


def test_several_streams_of_a_worker_answer_at_once():
    pool = open_local(pools.open_echo, 1, streams=4, threads=1)
    try:
        assert pool.streams == 4 and pool.name == "echo"
    finally:
        pool.close()


def test_a_batch_that_kills_every_worker_ends_with_the_cause():
    pool = open_local(pools.open_dying, 2, streams=2, threads=1)
    ids = np.zeros((2, 8), np.int64)
    with pytest.raises(WorkFailed, match="3 workers in turn ended on a batch of 2 x 8 tokens.*exit code 7"):
        pool.infer(ids, ids, ids)
    pool.close()
    with pytest.raises(WorkFailed, match="closed"):
        pool.infer(ids, ids, ids)


def test_a_worker_that_stops_is_replaced_and_its_batch_sent_again(monkeypatch, capsys):
    monkeypatch.setattr("bertjax.engines.workers.pool.LEAST_SECONDS", 0.5)
    pool = open_local(pools.open_echo, 1, streams=1, threads=1)
    ids = np.full((2, 8), 5)
    try:
        pool.infer(ids, ids, ids)
        os.kill(pools.pids(pool)[0], signal.SIGSTOP)
        starts, _ = pool.infer(ids, ids, ids)
        assert (starts == 5).all() and "did not answer within" in capsys.readouterr().err
    finally:
        pool.close()


def test_batches_of_any_size_travel(echo_pool):
    for rows, length in ((1, 8), (64, 384), (3, 40)):
        ids = np.arange(rows * length).reshape(rows, length)
        starts, ends = echo_pool.infer(ids, ids, 2 * ids)
        np.testing.assert_array_equal(starts, ids)
        np.testing.assert_array_equal(ends, -2 * ids)


def test_a_workers_error_is_the_callers():
    pool = open_local(pools.open_picky, 1, streams=1, threads=1)
    ids = np.zeros((1, 8), np.int64)
    try:
        for _ in range(2):
            with pytest.raises(WorkFailed, match="MemoryError: out of memory"):
                pool.infer(ids, ids, ids)
        pool.compile_shapes([(1, 8)])
        assert pool.infer(ids, ids, ids)[0].tolist() == [[1.0] * 8]
        assert pool.resident_bytes() > 1 << 20
    finally:
        pool.close()


def test_restarts_have_an_end():
    """Each batch is answered by the next worker, which dies on the one after it."""
    pool = open_local(pools.open_fickle, 1, streams=1, threads=1)
    ids, answered = np.ones((1, 8), np.int64), 0
    try:
        with pytest.raises(WorkFailed, match="no worker is left: .*ended with exit code 9"):
            while answered < 10:
                pool.infer(ids, ids, ids)
                answered += 1
    finally:
        pool.close()
    assert answered == 1 + RESTARTS


def test_a_worker_that_cannot_open_its_backend_says_why():
    with pytest.raises(UserError, match="nowhere/config.json: no such file"):
        open_local(pools.open_wrong, 2, streams=2, threads=1)


def test_cores_are_shared_out():
    own = os.sched_getaffinity(0)
    shares = [machine.share(number, len(own)) for number in range(len(own))]
    assert set().union(*shares) == own and all(len(share) == 1 for share in shares)
    assert machine.share(0, 1) == own and len(machine.share(2, len(own) + 2)) == 1


KILLING = """
import os, pickle, signal, sys, threading, time
from bertjax.engines.workers import local
from bertjax.mlperf import prepare, session_process
from tests.engines.workers import pools
opened = []
def open_local(*args, **rest):
    opened.append(local.open_local(*args, **rest))
    return opened[0]
prepare.open_local = open_local
started = pools.SystemUnderTest.issue
def issue(self, ids, indices):
    started(self, ids, indices)
    victim = opened[0].workers[1].pid
    threading.Timer(0.1, os.kill, (victim, signal.SIGKILL)).start()
    print("killed", victim, flush=True)
pools.SystemUnderTest.issue = issue
session_process.hold(*pickle.load(sys.stdin.buffer), pools.open_echo)
print("pids", *[worker.pid for worker in opened[0].workers.values()], flush=True)
os._exit(0)
"""


def test_loadgen_gets_every_answer_once_although_a_worker_is_killed(run_dir, tmp_path):
    """LoadGen's accuracy log has an entry for every completion: a second one would be there twice."""
    settings = SessionSettings(
        model=run_dir / "student-int8",
        data=run_dir / "eval.json",
        log_root=tmp_path,
        windows=WindowSettings(max_seq=128, doc_stride=64, max_query=32),
        scenario="Offline",
        mode="AccuracyOnly",
        workers=3,
        batch_tokens=256,
    )
    content = pickle.dumps((settings, session.check(settings)))
    done = subprocess.run([sys.executable, "-c", KILLING], input=content, capture_output=True, timeout=60, check=True)
    assert b"ended with signal 9; its batches are sent again" in done.stderr
    entries = json.loads((settings.log_dir / "mlperf_log_accuracy.json").read_text())
    dataset = read_dataset(settings.data, settings.model, settings.windows)
    assert sorted(entry["qsl_idx"] for entry in entries) == list(range(len(dataset.windows)))
    for entry in entries:
        answer = np.frombuffer(bytes.fromhex(entry["data"]), np.float32).reshape(-1, 2)
        np.testing.assert_array_equal(answer[:, 0], dataset.windows[entry["qsl_idx"]].input_ids)
    left = [int(word) for line in done.stdout.splitlines() if line.startswith(b"pids") for word in line.split()[1:]]
    assert left and all(pools.gone(pid) for pid in left)


def test_workers_end_with_a_process_that_is_killed():
    script = (
        "import time; from tests.engines.workers import pools; from bertjax.engines.workers.local import open_local\n"
        "pool = open_local(pools.open_echo, 2, streams=2, threads=1)\n"
        "print(*[worker.pid for worker in pool.workers.values()], flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    workers = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.wait()
    process.stdout.close()
    assert len(workers) == 2 and all(pools.gone(pid) for pid in workers)
