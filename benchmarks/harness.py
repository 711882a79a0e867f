"""What the harness itself can carry, and what share of a run with a real model it takes.

    python benchmarks/harness.py --model runs/minilm/student-int8

First Offline and Server with the no-op backend, through LoadGen and the queues that serve a model: the rates that the
harness reaches where a model costs nothing. Then Offline and Server with the model: of the run, how long its threads
were busy outside `Backend.infer` (taking samples from LoadGen, making batches, gathering, handing answers back), as a
share of the run's time times the number of streams. Times are of the threads' CPU clocks, so that waiting is no work.
Server's rate is met where LoadGen calls the run valid; how far the issuing thread fell behind shows in the p99.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from bertjax import programs, rundir
from bertjax.engines.backend import Backend, Logits
from bertjax.engines.choose import open_backend
from bertjax.errors import WorkFailed
from bertjax.mlperf import session
from bertjax.mlperf.result import Result

OFFLINE_QPS, SERVER_QPS = 400_000.0, 50_000.0  # what the harness is to reach
REAL_SERVER_SHARE = 0.5  # of the model's Offline rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spent:
    """Seconds of one run outside the backend: of worker threads, and of the thread that LoadGen issues from."""

    workers: float
    issuing: float
    run: float
    streams: int

    @property
    def share(self) -> float:
        return (self.workers + self.issuing) / (self.run * self.streams)


def timed_backend(backend: Backend, inside: dict[int, float]) -> Backend:
    """The backend itself, whose `infer` adds its caller's CPU seconds to `inside`, by thread."""
    infer = backend.infer

    def timed_infer(*batch: np.ndarray) -> Logits:
        begin, thread = time.thread_time(), threading.get_ident()
        try:
            return infer(*batch)
        finally:
            inside[thread] = inside.get(thread, 0.0) + time.thread_time() - begin

    backend.infer = timed_infer  # in place, so that it stays what it is
    return backend


def watched_run(settings: session.SessionSettings, confs: session.Confs) -> tuple[Result, Spent]:
    """Make a run in this process, with the system's threads timed."""
    from bertjax.mlperf import session_process
    from bertjax.mlperf.sut import SystemUnderTest

    inside: dict[int, float] = {}  # CPU seconds in the backend, by thread
    spent = {"workers": 0.0, "issuing": 0.0, "run": 0.0}
    lock = threading.Lock()

    def open_with(*args: Any, **rest: Any) -> Backend:
        return timed_backend(open_backend(*args, **rest), inside)

    class Timed(SystemUnderTest):
        def _work(self, queue: Any) -> None:
            inside.pop(threading.get_ident(), None)  # of an earlier thread, before the run
            begin = time.thread_time()
            super()._work(queue)
            outside = time.thread_time() - begin - inside.get(threading.get_ident(), 0.0)
            with lock:
                spent["workers"] += outside

        def issue(self, ids: Any, indices: Any) -> None:
            begin = time.thread_time()
            super().issue(ids, indices)
            spent["issuing"] += time.thread_time() - begin

    session_process.SystemUnderTest = Timed
    run_test = session_process.loadgen.run_test

    @functools.wraps(run_test)
    def timed_test(*args: Any) -> None:
        begin = time.monotonic()
        run_test(*args)
        spent["run"] = time.monotonic() - begin

    session_process.loadgen.run_test = timed_test
    result = session_process.hold(settings, confs, open_with)
    return result, Spent(**spent, streams=result.layout.streams)


def run_apart(settings: session.SessionSettings) -> tuple[Result, Spent]:
    """`watched_run` in a process of its own, since LoadGen makes one run in the life of a process."""
    content = pickle.dumps((settings, session.check(settings)))
    done = subprocess.run([sys.executable, __file__, "--child"], input=content, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise WorkFailed(f"the {settings.scenario} run of {settings.model} failed; what it said is above")
    return pickle.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, required=True, help="model directory")
    add("--data", type=Path, help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--backend", default="auto", help="the model's backend (default: auto)")
    add("--streams", type=int, default=1, help="worker threads of the no-op backend (default 1)")
    add("--duration", type=float, default=5.0, help="least seconds of each run (default 5)")
    options = parser.parse_args()

    print("| run | asked for | samples/s | p99 ms | valid | outside the backend |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as logs:
        make = functools.partial(
            session.SessionSettings,
            model=options.model,
            data=options.data or rundir.default_data(options.model),
            mode="PerformanceOnly",
            log_root=Path(logs),
            windows=rundir.window_settings(options.model),
            duration_seconds=options.duration,
        )
        for scenario, qps in (("Offline", OFFLINE_QPS), ("Server", SERVER_QPS)):
            settings = make(scenario=scenario, backend="noop", streams=options.streams, target_qps=qps)
            _print_row(*run_apart(settings), qps)
        offline, spent = run_apart(make(scenario="Offline", backend=options.backend))
        _print_row(offline, spent, None)
        qps = REAL_SERVER_SHARE * offline.performance.samples_per_second
        _print_row(*run_apart(make(scenario="Server", backend=options.backend, target_qps=qps)), qps)


def _print_row(result: Result, spent: Spent, asked: float | None) -> None:
    found = result.performance
    wanted = "-" if asked is None else f"{asked:,.0f}"
    print(
        f"| {result.scenario}, {result.backend} | {wanted} | {found.samples_per_second:,.0f} |"
        f" {found.latency_ns['99.00'] / 1e6:,.1f} | {'yes' if found.valid else 'no'} | {spent.share:.2%} |",
        flush=True,
    )


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        sys.stdout.buffer.write(pickle.dumps(watched_run(*pickle.load(sys.stdin.buffer))))
        sys.stdout.flush()
        os._exit(0)
    programs.run(main)
