"""Serve teacher and student of a run under LoadGen, in turn, and print everything that the run has measured.

    python serve/measure.py --run runs/demo

First the student's accuracy through LoadGen's accuracy log, then Offline, SingleStream and Server of both models.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bertjax import programs
from bertjax.errors import UserError, WorkFailed

SCENARIOS = ("Offline", "SingleStream", "Server")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="run directory (default: the newest finished one)")
    parser.add_argument("--backend", default="auto", help="auto (default), openvino, onnxruntime, tensorrt or jax")
    parser.add_argument("--duration", type=float, default=5.0, help="least seconds of each run (default: 5)")
    options = parser.parse_args()

    from bertjax import rundir
    from bertjax.mlperf import result, session
    from bertjax.mlperf.logs import new_log_root
    from bertjax.mlperf.output import format_result, non_finite_lines
    from bertjax.pipeline import report
    from bertjax.rundir import newest_student

    run = options.run or newest_student().parent
    student, teacher = run / rundir.STUDENT, run / "teacher"
    logs = new_log_root(run.resolve().name)
    sessions = [(student, "Offline", "AccuracyOnly")]
    not_kept: list[str] = []
    sessions += [(model, scenario, "PerformanceOnly") for scenario in SCENARIOS for model in (teacher, student)]
    for model, scenario, mode in sessions:
        settings = session.SessionSettings(
            model=model,
            data=rundir.default_data(model),
            scenario=scenario,
            mode=mode,
            log_root=logs / model.name,
            windows=rundir.window_settings(model),
            backend=options.backend,
            duration_seconds=options.duration if mode == "PerformanceOnly" else None,
        )
        print(f"{model.name}: {scenario} {mode}", flush=True)
        found = session.run(settings)
        for line in (*non_finite_lines(found), *(f"Not kept : {what}" for what in found.not_kept)):
            print(line, flush=True)
        try:
            result.record_result(model, found)
        except (UserError, WorkFailed) as error:
            not_kept.append(f"Not recorded in the run: {error}")
            print(format_result(found), flush=True)
    print(f"LoadGen's logs are in {logs}")
    if not_kept:  # the tables of the run would be those of earlier sessions
        print(*dict.fromkeys(not_kept), sep="\n")
        return
    print(f"\n{report.stage_table(run)}\n\n{report.loadgen_table(run)}\n")
    try:
        print(f"{report.write_report(run)}: the same with pictures")
    except (UserError, WorkFailed) as error:
        print(f"No page with pictures: {error}")


if __name__ == "__main__":
    programs.run(main)
