"""MLPerf's own form of asking for LoadGen runs, for auditors; `make run RUN_ARGS="..."` calls this.

    python serve/audit.py --benchmarks=bert --scenarios=Offline,Server --config_ver=default --test_mode=PerformanceOnly

config_ver `default` gates AccuracyOnly and SubmissionRun at 99 % of the FP32 reference's F1, `high_accuracy` at 99.9 %;
a missed gate exits with 1. Runs take 10 seconds each if nothing else is said; --duration 600 is the official length.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bertjax import programs
from bertjax.errors import UserError, WorkFailed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--benchmarks", default="bert", help="bert, the only one here")
    add("--scenarios", default="Offline,Server,SingleStream", help="one or several, with commas between them")
    add("--config_ver", default="default", help="default (99 %%) or high_accuracy (99.9 %%)")
    add(
        "--test_mode",
        default="PerformanceOnly",
        help="PerformanceOnly, AccuracyOnly, SubmissionRun or FindPeakPerformance",
    )
    add("--model", type=Path, help="model directory (default: the newest run's INT8 student)")
    add("--data", type=Path, help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--backend", default="auto", help="auto (default), openvino, onnxruntime, tensorrt or jax")
    add("--duration", type=float, help="least seconds of a PerformanceOnly run (default 10; official: 600)")
    add("--user-conf", type=Path, help="LoadGen user.conf for all scenarios")
    add("--audit-conf", type=Path, help="LoadGen audit.conf for all scenarios (default: ./audit.config if there)")
    add("--reference-f1", type=float, help="F1 that the gate is a share of (default: the teacher's, of the run)")
    options = parser.parse_args()

    from bertjax import rundir
    from bertjax.mlperf import conf, gates, session
    from bertjax.mlperf.conf import find_audit_conf
    from bertjax.mlperf.logs import new_log_root
    from bertjax.mlperf.output import format_result
    from bertjax.mlperf.result import record_result
    from bertjax.rundir import newest_student

    if options.benchmarks != "bert":
        raise UserError(f"--benchmarks={options.benchmarks}: only bert is here")
    model = options.model or newest_student()

    def judge(f1: float, questions: int) -> gates.Verdict:
        return gates.judge(f1, options.config_ver, model=model, questions=questions, reference=options.reference_f1)

    if options.test_mode in conf.SCORED:
        judge(0.0, 0)  # a gate that cannot be judged is told before the sessions
    elif options.config_ver not in gates.GATES:
        raise UserError(f"--config_ver={options.config_ver}: unknown; choose one of {', '.join(gates.GATES)}")
    log_root = new_log_root(f"{model.resolve().name}-{options.config_ver}")
    sessions = [
        session.SessionSettings(
            model=model,
            data=options.data or rundir.default_data(model),
            scenario=scenario,
            mode=options.test_mode,
            log_root=log_root,
            windows=rundir.window_settings(model),
            backend=options.backend,
            duration_seconds=options.duration,
            user_conf=options.user_conf,
            audit_conf=find_audit_conf(options.audit_conf),
        )
        for scenario in options.scenarios.split(",")
    ]
    for settings in sessions:  # a misspelt last scenario is told before the first session
        session.check(settings)
    missed = []
    for settings in sessions:
        result = session.run(settings)
        print(format_result(result), flush=True)
        record_result(model, result)
        if result.accuracy is None:
            continue
        verdict = judge(result.accuracy.f1, result.questions)
        print(verdict)
        if not verdict.passed:
            missed.append(settings.scenario)
    if missed:
        raise WorkFailed(f"accuracy gate {options.config_ver} missed in {', '.join(missed)}")


if __name__ == "__main__":
    programs.run(main)
