"""MLPerf's own form of asking for LoadGen runs, for auditors; `make run RUN_ARGS="..."` calls this.

    python serve/audit.py --benchmarks=bert --scenarios=Offline,Server --config_ver=default --test_mode=PerformanceOnly
    python serve/audit.py --benchmarks=bert-99 --scenarios=offline,singlestream --audit_test=TEST01

Names may be spelled in any case, with or without hyphens and underscores. --config_ver `default` (bert-99) gates
AccuracyOnly and SubmissionRun at 99 % of the FP32 reference's F1, `high_accuracy` (bert-99.9) at 99.9 %; a missed gate
exits with 1. Runs take 10 seconds each by default; --duration 600 is the official length.

--audit_test=TEST01 is MLCommons' compliance test: an accuracy run, a timed run and a timed run that logs 4,096 of its
answers, which are compared with those of the accuracy run; if they differ in their last bits, both runs' F1 of these
windows are. --logs keeps and reuses the first two. Exits with 1 if a scenario fails.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from bertjax import programs
from bertjax.errors import WorkFailed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--benchmarks", default="bert", metavar="NAME,NAME", help="bert, bert-99, bert-99.9 (default: bert)")
    add("--scenarios", default="Offline,Server,SingleStream", metavar="NAME,NAME", help="default: %(default)s")
    add("--config_ver", metavar="NAME,NAME", help="default (99 %%), high_accuracy (99.9 %%), or both")
    add(
        "--test_mode",
        default="PerformanceOnly",
        metavar="NAME",
        help="PerformanceOnly (default), AccuracyOnly, SubmissionRun or FindPeakPerformance",
    )
    add("--audit_test", metavar="NAME", help="TEST01, instead of --test_mode")
    add("--logs", type=Path, metavar="DIR", help="log folder (default: a new one in build/logs)")
    add("--model", type=Path, metavar="DIR", help="model directory (default: the newest run's INT8 student)")
    add("--data", type=Path, metavar="FILE", help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--backend", default="auto", help="auto (default), openvino, onnxruntime, tensorrt or jax")
    add("--duration", type=float, metavar="N", help="least seconds of a timed run (default 10; official: 600)")
    add("--user-conf", type=Path, metavar="FILE", help="LoadGen user.conf for all scenarios")
    add(
        "--audit-conf",
        type=Path,
        metavar="FILE",
        help="LoadGen audit.conf for all scenarios (default: ./audit.config if there); with --audit_test its test's",
    )
    add("--reference-f1", type=float, metavar="N", help="F1 that the gate is a share of (default: the teacher's)")
    return parser.parse_args()


def main() -> None:
    options = parse()

    from bertjax import rundir
    from bertjax.mlperf import conf, gates, session
    from bertjax.mlperf.logs import new_log_root
    from bertjax.mlperf.output import format_result
    from bertjax.mlperf.result import Result, try_record
    from bertjax.mlperf.submission import compliance

    asked = gates.read_gates(options.benchmarks, options.config_ver)
    scenarios = gates.read_names("--scenarios", options.scenarios, conf.SCENARIOS)
    mode = gates.read_name("--test_mode", options.test_mode, conf.MODES)
    if options.audit_test:
        compliance.check_test(options.audit_test)
    model = options.model or rundir.newest_student()

    def judge(f1: float, gate: str, questions: int) -> gates.Verdict:
        return gates.judge(f1, gate, model=model, questions=questions, reference=options.reference_f1)

    for gate in asked if mode in conf.SCORED and not options.audit_test else ():
        judge(0.0, gate, 0)  # a gate that cannot be judged is told before the sessions
    log_root = options.logs or new_log_root(f"{rundir.full_name(model)}-{'-'.join(asked)}")

    def show(result: Result) -> None:
        print(format_result(result), flush=True)
        if not (options.audit_test and result.audit_conf):  # the submission's figures are those without a test
            print(try_record(model, result), flush=True)

    settings = session.SessionSettings(
        model=model,
        data=options.data or rundir.default_data(model),
        scenario=scenarios[0],
        mode=mode,
        log_root=log_root,
        windows=rundir.window_settings(model),
        backend=options.backend,
        duration_seconds=options.duration,
        user_conf=options.user_conf,
        audit_conf=options.audit_conf if options.audit_test else conf.find_audit_conf(options.audit_conf),
    )
    missed = []
    if options.audit_test:
        for verification in compliance.run_test01(settings, scenarios, asked, show):
            print(verification, flush=True)
            missed += [] if verification.passed else [f"TEST01 failed in {verification.scenario}"]
    else:
        sessions = [dataclasses.replace(settings, scenario=scenario) for scenario in scenarios]
        for each in sessions:  # a fault of the last one is told before the first one runs
            session.check(each)
        for each in sessions:
            result = session.run(each)
            show(result)
            verdicts = [judge(result.accuracy.f1, gate, result.questions) for gate in asked] if result.accuracy else []
            print(*verdicts, sep="\n", end="\n" if verdicts else "")
            missed += [f"accuracy gate {one.gate} missed in {result.scenario}" for one in verdicts if not one.passed]
    if missed:
        raise WorkFailed("; ".join(missed))


if __name__ == "__main__":
    programs.run(main)
