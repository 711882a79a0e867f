"""The process that holds one LoadGen session: settings in on stdin, a result or an error out on a pipe."""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

import mlperf_loadgen
import numpy as np
import tqdm

from bertjax.engines.backend import Backend
from bertjax.engines.choose import open_backend
from bertjax.engines.samples import SampleLibrary, open_library
from bertjax.engines.timing import warmup
from bertjax.engines.workers import processes
from bertjax.errors import UserError, WorkFailed
from bertjax.identity import digest_file
from bertjax.machine import package_versions, resident_bytes
from bertjax.mlperf import loadgen, prepare
from bertjax.mlperf.conf import SCORED
from bertjax.mlperf.logs import read_accuracy, read_effective, read_peak_rate, read_performance
from bertjax.mlperf.output import keep_result
from bertjax.mlperf.result import Result
from bertjax.mlperf.session import Confs, SessionSettings, check_counts
from bertjax.mlperf.sut import SystemUnderTest
from bertjax.mlperf.timeline import Timeline
from bertjax.modeldir import store
from bertjax.rundir import run_folder
from bertjax.version import __version__

TIMED = ("SubmissionRun", "PerformanceOnly")  # modes of which a picture is drawn: one phase of performance


def main() -> None:
    """Hold the session that `session.run` asks for. The pipe's file descriptor is the only argument."""
    settings, confs = pickle.load(sys.stdin.buffer)
    threading.Thread(target=processes.end_with_parent, daemon=True).start()
    try:
        outcome: object = hold(settings, confs)
    except (UserError, WorkFailed) as error:
        outcome = type(error)(*error.args)
    except Exception as error:
        traceback.print_exc()
        outcome = WorkFailed(f"serving {settings.model} met a bug: {type(error).__name__}: {error}")
    with open(int(sys.argv[1]), "wb") as answer:
        pickle.dump(outcome, answer)
    sys.stderr.flush()
    os._exit(0)  # after a failure LoadGen's thread still waits in C++, and Python's own way out would abort


def hold(settings: SessionSettings, confs: Confs, open_with: Callable[..., Backend] = open_backend) -> Result:
    """Hold one session in this process, which can hold no second one.

    Args:
      settings, confs: checked ones, as `session.check` takes and gives them.
      open_with: opens a model directory; arguments as `open_backend`.

    Raises:
      UserError: a file is wrong, or the backend cannot run here.
      WorkFailed: the backend failed, or LoadGen gave no result.
    """
    with contextlib.ExitStack() as ending:
        return _hold(settings, confs, prepare.with_workers(settings, open_with, ending))


def _hold(settings: SessionSettings, confs: Confs, open_with: Callable[..., Backend]) -> Result:
    dataset, library = open_library(settings.data, settings.model, settings.windows)
    check_counts(settings, confs, len(dataset.windows))
    library.load(range(len(library.lengths)))
    try:
        backend, layout = prepare.open_fastest(settings, confs, open_with, library)
        plan = prepare.plan_test(settings, confs, backend, library, layout.batch_tokens)
        test_settings = loadgen.make_settings(plan, confs, len(dataset.windows))
        if settings.mode != "AccuracyOnly":
            loadgen.check_plan(test_settings, confs.audit)
        bound = confs.audit.get("target_latency", test_settings.server_target_latency_ns / 1e6) / 1e3
        queue = prepare.make_queue(settings.scenario, backend, library, layout.batch_tokens, bound)
    except (UserError, WorkFailed):
        raise
    except Exception as error:
        raise WorkFailed(f"the backend failed on its first batches: {type(error).__name__}: {error}") from error
    timeline = Timeline(one_query=settings.scenario == "Offline")

    def complete(ids: Sequence[int], logits: np.ndarray, lengths: Sequence[int]) -> None:
        timeline.complete(ids)
        loadgen.complete(ids, logits, lengths)

    multiple, ahead = warmup.single_multiple(backend), settings.scenario == "Offline"
    system = SystemUnderTest(backend, library, complete, queue, multiple=multiple, ahead=ahead)
    seconds = confs.audit.get("min_duration", test_settings.min_duration_ms) / 1000
    memory = _run_test(settings, seconds, system, library, timeline, test_settings)
    effective = read_effective(settings.log_dir)
    result = Result(
        scenario=effective["scenario"],
        mode=effective["test_mode"],
        run=folder.name if (folder := run_folder(settings.model)) else None,
        model=settings.model.resolve().name,
        model_digest=store.digest(settings.model),
        data=settings.data,
        versions=package_versions() | {"bertjax": __version__},  # of a checkout too, which is not installed
        data_digest=digest_file(settings.data),
        backend=backend.name,
        description=backend.description,
        layout=layout,
        log_dir=settings.log_dir,
        questions=len(dataset.examples),
        windows=len(dataset.windows),
        non_finite=system.non_finite,
        duration_seconds=effective["min_duration_ms"] / 1000,
        target_qps=_issued_rate(settings, effective["target_qps"]),
        effective=effective,
        audit_conf=settings.audit_conf,
        notes=confs.notes,
        resident_bytes=memory,
        performance=None if settings.mode == "AccuracyOnly" else read_performance(settings.log_dir),
        accuracy=read_accuracy(settings.log_dir, dataset) if settings.mode in SCORED else None,
    )
    return keep_result(result, timeline.timing() if settings.mode in TIMED else None)


def _run_test(
    settings: SessionSettings,
    seconds: float,
    system: SystemUnderTest,
    library: SampleLibrary,
    timeline: Timeline,
    test_settings: mlperf_loadgen.TestSettings,
) -> dict[str, int] | None:
    """Run LoadGen's test behind a progress bar; returns `Result.resident_bytes`."""
    start: list[int | None] = []
    with _progress_bar(settings, seconds, len(library.lengths)) as bar:

        def tick() -> None:
            if not start:
                start.append(resident_bytes())  # LoadGen has made its queries by now
            done = system.completed if settings.mode == "AccuracyOnly" else bar.format_dict["elapsed"]
            bar.update(min(done, bar.total or done) - bar.n)

        loadgen.run_test(system, library, timeline, test_settings, settings.log_dir, settings.audit_conf, tick)
    before, after = start[0] if start else None, resident_bytes()
    return None if before is None or after is None else {"start": before, "end": after}


def _issued_rate(settings: SessionSettings, issued: float) -> float | None:
    if settings.scenario != "Server":
        return None
    if settings.mode == "FindPeakPerformance":
        return read_peak_rate(settings.log_dir)
    return float(issued)


def _progress_bar(settings: SessionSettings, seconds: float, count: int) -> tqdm.tqdm[NoReturn]:
    title = f"{settings.scenario} {settings.mode}"
    if settings.mode == "AccuracyOnly":
        return tqdm.tqdm(desc=title, total=count, unit="window", leave=False, disable=None)
    if settings.mode == "FindPeakPerformance":  # nobody knows how many tests it will take
        return tqdm.tqdm(desc=title, bar_format="{desc}: {n:.0f} s", leave=False, disable=None)
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s"
    return tqdm.tqdm(desc=title, total=seconds, bar_format=form, leave=False, disable=None)


if __name__ == "__main__":
    main()
