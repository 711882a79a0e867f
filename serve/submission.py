"""Make an MLPerf submission of the open division, and check one.

    python serve/submission.py --example-system > system.json
    python serve/submission.py --model runs/NAME/student-int8 --system system.json --submitter NAME --output mlperf
    python serve/submission.py check mlperf

Runs performance and accuracy of every scenario (600 seconds each if nothing else is said) and writes
OUTPUT/open/SUBMITTER. The whole logs stay in OUTPUT/work: keep them, MLCommons may ask for them. The same command
continues where it stopped. `check` is stricter than MLCommons' own checker: exit code 1 if there is any fault.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bertjax import programs
from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf.result import Result

if TYPE_CHECKING:
    from bertjax.mlperf.submission.runs import ScenarioRuns


if TYPE_CHECKING:
    from bertjax.mlperf.submission.runs import ScenarioRuns

REFERENCE_HELP = "F1 in percent that the gates are shares of (default 90.874, the MLPerf reference's)"


def main() -> None:
    if sys.argv[1:2] == ["check"]:
        check(sys.argv[2:])
        return
    options = parse(sys.argv[1:])
    if options.example_system:
        print_example_system()
    else:
        make(options)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, help="model directory of a run (default: the newest run's INT8 student)")
    add("--system", type=Path, help="description of the machine, a JSON file; --example-system writes one")
    add("--submitter", help="your organization, as MLCommons knows it")
    add("--output", type=Path, help="folder of the submission")
    add("--scenarios", default="Offline,Server,SingleStream", help="one or several, with commas between them")
    add("--benchmarks", default="bert-99", help="bert-99 (default), bert-99.9, or both with a comma between them")
    add("--duration", type=float, default=600.0, help="least seconds of a performance run (default 600, official)")
    add("--data", type=Path, help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--backend", default="auto", help="auto (default), openvino, onnxruntime, tensorrt or jax")
    add("--target-qps", type=float, help="queries per second that Server issues (default: a share of what it measures)")
    add("--user-conf", type=Path, help="LoadGen user.conf for all scenarios; flags are stronger")
    add("--collect", type=Path, metavar="LOGS", help="take the runs that are in LOGS/SCENARIO/MODE and make none")
    add("--reference-f1", type=float, help=REFERENCE_HELP)
    add("--example-system", action="store_true", help="print a description of this machine to start from, and end")
    return parser.parse_args(arguments)


def make(options: argparse.Namespace) -> None:
    """Run or collect, write the tree, and check it."""
    from bertjax.mlperf.gates import check_percent
    from bertjax.mlperf.submission import measurements, rules, system, tree
    from bertjax.rundir import newest_student

    check_percent(options.reference_f1, "--reference-f1")
    for name in ("system", "submitter", "output"):
        if getattr(options, name) is None:
            raise UserError(f"--{name}: give one; see --help")
    if Path(options.submitter).name != options.submitter or options.submitter.startswith("."):
        raise UserError(f"--submitter {options.submitter}: it becomes the name of a folder; leave out slashes")
    benchmarks = tuple(options.benchmarks.split(","))
    for name in benchmarks:
        if name not in rules.BENCHMARKS:
            raise UserError(f"--benchmarks {name}: unknown; there are {', '.join(rules.BENCHMARKS)}")
    model = options.model or newest_student()
    description = system.read_system(options.system, options.submitter)
    measurements.measurements(model, None)  # what it cannot find is told before an hour of runs
    submission = tree.Submission(
        model=model,
        submitter=options.submitter,
        system=description,
        benchmarks=benchmarks,
        runs=make_or_collect(options, model),
    )
    print(f"Written: {tree.write_tree(options.output, submission)}")
    report(options.output, options.reference_f1)


def make_or_collect(options: argparse.Namespace, model: Path) -> list[ScenarioRuns]:
    """The runs, made or kept in the output's work area, or those that --collect names."""
    from bertjax import rundir
    from bertjax.mlperf import session
    from bertjax.mlperf.output import format_result
    from bertjax.mlperf.result import try_record
    from bertjax.mlperf.submission import runs

    scenarios = options.scenarios.split(",")
    data, windows = options.data or rundir.default_data(model), rundir.window_settings(model)
    if options.collect:
        return runs.collect_runs(options.collect, scenarios, model=model, data=data, windows=windows)

    def tell(result: Result) -> None:
        print(format_result(result), flush=True)
        print(try_record(model, result), flush=True)

    settings = session.SessionSettings(
        model=model,
        data=data,
        scenario=scenarios[0],
        mode=runs.PERFORMANCE,
        log_root=options.output / "work",
        windows=windows,
        backend=options.backend,
        duration_seconds=options.duration,
        target_qps=options.target_qps,
        user_conf=options.user_conf,
    )
    return runs.make_runs(settings, scenarios, tell)


def check(arguments: list[str]) -> None:
    """Check a tree that is there."""
    from bertjax.mlperf.gates import check_percent

    parser = argparse.ArgumentParser(prog="submission.py check", description="Check a submission; 1: it has faults.")
    parser.add_argument("directory", type=Path, help="the folder that holds open/")
    parser.add_argument("--reference-f1", type=float, help=REFERENCE_HELP)
    options = parser.parse_args(arguments)
    check_percent(options.reference_f1, "--reference-f1")
    report(options.directory, options.reference_f1)


def report(directory: Path, reference_f1: float | None) -> None:
    """Check a tree, and print every fault and the table of results."""
    from bertjax.display import text_table
    from bertjax.mlperf.gates import REFERENCE_F1
    from bertjax.mlperf.submission.check import check_submission
    from bertjax.mlperf.submission.rules import Bounds

    bounds = Bounds(reference_f1=reference_f1 or REFERENCE_F1)
    found = check_submission(directory, bounds)
    for fault in found.faults:
        print(f"fault: {fault}")
    print(text_table(("system", "benchmark", "scenario", "result", "unit", "F1"), found.results))
    if found.faults:
        raise WorkFailed(f"{directory}: {len(found.faults)} faults; not fit for submission")
    print(f"{directory}: no faults; F1 held to the gates of {bounds.reference_f1:g}")


def print_example_system() -> None:
    import json

    from bertjax.mlperf.submission import rules, system

    example = system.example_system()
    print(json.dumps(example, indent=2))
    problems = "\n".join(system.system_problems(example | {"submitter": "filled in"}, "filled in"))
    print(f"To do before it is used: {problems}", file=sys.stderr)
    print(f"status: {', '.join(rules.STATUSES)}; system_type: {', '.join(rules.SYSTEM_TYPES)}", file=sys.stderr)


if __name__ == "__main__":
    programs.run(main)
