"""The rates that the harness reaches without a model, and its share of a run with one.

    python benchmarks/harness.py --model runs/minilm/student-int8

First Offline and Server with the no-op backend, through LoadGen and the queues that serve a model. Then Offline and
Server with the model: how long the run's threads were busy outside `Backend.infer` (taking samples from LoadGen, making
batches, gathering, handing answers back), as a share of the run's time multiplied by the number of streams. Times are
those of the threads' CPU clocks, so waiting does not count. Server has reached its target where LoadGen calls the run
valid; the p99 shows how far the issuing thread fell behind.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import tqdm

import bench
from bertjax import programs, rundir
from bertjax.engines.backend import Backend, Logits
from bertjax.engines.choose import open_backend
from bertjax.errors import WorkFailed
from bertjax.mlperf import session
from bertjax.mlperf.result import Performance, Result

OFFLINE_QPS, SERVER_QPS = 400_000.0, 50_000.0  # targets without a model
REAL_SERVER_SHARE = 0.5  # of the model's Offline rate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spent:
    """CPU seconds of a run outside the backend, of worker threads and of LoadGen's issuing thread; wall time `run`."""

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

    def timed_infer(input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        begin, thread = time.thread_time(), threading.get_ident()
        try:
            return infer(input_ids, attention_mask, token_type_ids)
        finally:
            inside[thread] = inside.get(thread, 0.0) + time.thread_time() - begin

    backend.infer = timed_infer  # type: ignore[method-assign]  # a wrapper would hide the engine's other methods
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

    run_test = session_process.loadgen.run_test

    def timed_test(*args: Any) -> None:
        begin = time.monotonic()
        run_test(*args)
        spent["run"] = time.monotonic() - begin

    with (
        mock.patch.object(session_process, "SystemUnderTest", Timed),
        mock.patch.object(session_process.loadgen, "run_test", timed_test),
    ):
        result = session_process.hold(settings, confs, open_with)
    return result, Spent(**spent, streams=result.layout.streams)


def run_apart(settings: session.SessionSettings) -> tuple[Result, Spent]:
    """`watched_run` in a process of its own, since LoadGen makes one run in the life of a process."""
    content = pickle.dumps((settings, session.check(settings)))
    done = subprocess.run([sys.executable, __file__, "--child"], input=content, stdout=subprocess.PIPE, check=False)
    if done.returncode != 0:
        raise WorkFailed(f"the {settings.scenario} run of {settings.model} failed; its message is above")
    result, spent = pickle.loads(done.stdout)
    return result, Spent(**spent)


def performance_of(result: Result) -> Performance:
    assert result.performance is not None, "the run was PerformanceOnly"
    return result.performance


def row_of(result: Result, spent: Spent, asked: float | None) -> bench.Row:
    found = performance_of(result)
    return {
        "scenario": result.scenario,
        "backend": result.backend,
        "target_samples_per_second": asked,
        "samples_per_second": found.samples_per_second,
        "p99_seconds": found.latency_ns["99.00"] / 1e9,
        "valid": found.valid,
        "outside_share": spent.share,
    }


def measure(options: argparse.Namespace, logs: Path) -> Iterator[bench.Row]:
    """Offline and Server without a model, then both with it."""
    make = functools.partial(
        session.SessionSettings,
        model=options.model,
        data=options.data or rundir.default_data(options.model),
        mode="PerformanceOnly",
        log_root=logs,
        windows=rundir.window_settings(options.model),
        duration_seconds=options.duration,
    )
    targets = {"Offline": OFFLINE_QPS} if options.offline_only else {"Offline": OFFLINE_QPS, "Server": SERVER_QPS}
    for scenario, qps in targets.items():
        settings = make(scenario=scenario, backend="noop", streams=options.streams, target_qps=qps)
        yield row_of(*run_apart(settings), qps)
    offline, spent = run_apart(make(scenario="Offline", backend=options.backend))
    yield row_of(offline, spent, None)
    if options.offline_only:
        return
    qps = REAL_SERVER_SHARE * performance_of(offline).samples_per_second
    yield row_of(*run_apart(make(scenario="Server", backend=options.backend, target_qps=qps)), qps)


def main() -> None:
    parser = bench.flags("harness", __doc__)
    add = parser.add_argument
    add("--model", type=Path, required=True, metavar="DIR", help="model directory")
    add("--data", type=Path, metavar="FILE", help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--backend", default="auto", help="the model's backend (default: auto)")
    add("--streams", type=int, default=1, metavar="N", help="worker threads of the no-op backend (default 1)")
    add("--duration", type=float, default=5.0, metavar="N", help="least seconds of each run (default 5)")
    add("--offline-only", action="store_true", help="leave out Server")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as logs:
        rows = list(tqdm.tqdm(measure(options, Path(logs)), desc="runs", leave=False, disable=None))
    columns: dict[str, bench.Cell] = {
        "run": "{scenario}, {backend}",
        "target": "{target_samples_per_second:,.0f}",
        "samples/s": "{samples_per_second:,.0f}",
        "p99, ms": lambda row: f"{1e3 * row['p99_seconds']:,.1f}",
        "valid": lambda row: "yes" if row["valid"] else "no",
        "outside the backend": "{outside_share:.2%}",
    }
    bench.report(options, bench.Table(name="harness", columns=columns, rows=rows))


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        result, spent = watched_run(*pickle.load(sys.stdin.buffer))
        sys.stdout.buffer.write(pickle.dumps((result, dataclasses.asdict(spent))))
        sys.stdout.flush()
        os._exit(0)
    programs.run(main)
