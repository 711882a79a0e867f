"""Serve a model directory under MLPerf LoadGen.

    python serve/loadgen.py --scenario Offline
    python serve/loadgen.py --scenario Server --find-peak --duration 600
    python serve/loadgen.py --scenario Server --mode AccuracyOnly --model runs/demo/student-int8 --backend onnxruntime

A run takes 10 seconds if nothing else is said; --duration 600 is the official length. --find-peak looks for Server's
highest rate at which a run is VALID. docs/serving.md tells about scenarios, modes and what is written.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bertjax import programs
from bertjax.errors import UserError, WorkFailed

if TYPE_CHECKING:
    from bertjax.mlperf.result import Result
    from bertjax.mlperf.session import SessionSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--scenario", default="Offline", help="Offline (default), SingleStream, Server or MultiStream")
    add(
        "--mode",
        default="PerformanceOnly",
        help="PerformanceOnly (default), AccuracyOnly, SubmissionRun, FindPeakPerformance",
    )
    add("--find-peak", action="store_true", help="Server: bisect for the highest VALID rate, and confirm it")
    add("--model", type=Path, help="model directory (default: the newest run's INT8 student)")
    add("--data", type=Path, help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--backend", default="auto", help="auto (default), openvino, onnxruntime, tensorrt, jax or noop")
    add("--duration", type=float, help="least seconds of a PerformanceOnly run (default 10; official: 600)")
    add("--target-qps", type=float, help="queries per second: Server's rate, or what Offline is to expect")
    add("--streams", type=int, help="batches at once (default: SingleStream one; else measured, or one per core)")
    add("--threads", type=int, help="threads of each stream (default: the cores shared out)")
    add("--batch-tokens", type=int, help="padded tokens in a batch (default: measured, or what suits the backend)")
    add("--workers", type=int, help="processes that share the streams, each on its own cores (default: none but this)")
    add(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="workers on the Ray cluster there, or on one started here",
    )
    add("--user-conf", type=Path, help="LoadGen user.conf; flags are stronger")
    add("--audit-conf", type=Path, help="LoadGen audit.conf, stronger than all else (default: ./audit.config if there)")
    add("--max-seq", type=int, help="longest window in tokens (default: as in the model's run, else 384)")
    add("--doc-stride", type=int, help="tokens between two windows of a paragraph (default: likewise, else 128)")
    add("--max-query", type=int, help="tokens of a question that are kept (default: likewise, else 64)")
    add("--logs", type=Path, help="folder for LoadGen's logs (default: a new one under build/logs)")
    options = parser.parse_args()

    from bertjax import rundir
    from bertjax.mlperf import session
    from bertjax.mlperf.conf import find_audit_conf
    from bertjax.mlperf.logs import new_log_root
    from bertjax.mlperf.output import format_result
    from bertjax.mlperf.result import try_record
    from bertjax.rundir import newest_student

    model = options.model or newest_student()
    windows = rundir.window_settings(
        model, max_seq=options.max_seq, doc_stride=options.doc_stride, max_query=options.max_query
    )
    settings = session.SessionSettings(
        model=model,
        data=options.data or rundir.default_data(model),
        scenario=options.scenario,
        mode=options.mode,
        log_root=options.logs or new_log_root(rundir.full_name(model)),
        windows=windows,
        backend=options.backend,
        streams=options.streams,
        threads=options.threads,
        batch_tokens=options.batch_tokens,
        workers=options.workers,
        ray=options.ray,
        duration_seconds=options.duration,
        target_qps=options.target_qps,
        user_conf=options.user_conf,
        audit_conf=find_audit_conf(options.audit_conf),
    )
    result = _find_peak(settings) if options.find_peak else session.run(settings)
    print(format_result(result))
    print(try_record(model, result))


def _find_peak(settings: SessionSettings) -> Result:
    """The run at the highest VALID rate; prints each run on the way and draws them."""
    from bertjax.mlperf import peak
    from bertjax.mlperf.output import PROBE_HEADER, draw_peak, format_probe

    peak.check(settings)
    print(PROBE_HEADER, flush=True)
    found = peak.server_peak(settings, lambda probe, offline: print(format_probe(probe, offline), flush=True))
    offline = found.offline.measured.samples_per_second
    try:
        picture = f"Picture of the search: {draw_peak(settings.log_root, found.probes, found.bound_seconds, offline)}"
    except (UserError, WorkFailed) as error:
        picture = f"Not kept : the picture of the search: {error}"
    print(
        f"Highest VALID rate: {found.probes[-1].rate:.2f} queries/s, {found.probes[-1].rate / offline:.1%} of Offline's"
    )
    print(picture)
    return found.confirmed


if __name__ == "__main__":
    programs.run(main)
