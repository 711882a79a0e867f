"""Make students of several sizes from one teacher, and a picture to choose one by: F1 against cost and speed.

    python train/sweep.py --flops-reduction 1.5,2,3,4,5.6,8

Takes every flag of train/distill.py; without --preset or files it runs the embedded default, in runs/demo-sweep. Each
student is a run directory of its own (runs/demo-sweep/4x) as train/distill.py leaves it. sweep.svg and sweep.json are
written again after every student; at the end all students and the teacher are timed in turn. Run the same command
again to continue an interrupted sweep, or a command with more reductions to extend it.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys

from bertjax.errors import UserError
from bertjax.pipeline.flags import parse_run
from bertjax.pipeline.settings import RunSettings, check_goal
from bertjax.programs import run

REDUCTIONS = "1.5,2,3,4,5.6,8"


def parse(arguments: list[str]) -> tuple[RunSettings, list[RunSettings]]:
    """The settings that the students share, and each one's own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--output", metavar="DIR", help="the sweep's folder (default: the preset's run directory, ending in -sweep)")
    add("--flops-reduction", metavar="N,N", help=f"one student for each factor of fewer MACs (default: {REDUCTIONS})")
    add("--latency-reduction", metavar="N,N", help="one student for each factor of less time by --latency-table")
    settings, own = parse_run(parser, arguments, apart=("output", "flops_reduction", "latency_reduction"))
    for stage in settings.skip:
        if stage in ("prune", "calibrate", "evaluate"):
            raise UserError(f"--skip {stage}: a sweep compares the scores of pruned INT8 students")
    if settings.latency_table and "latency_reduction" not in own:
        check_goal(settings)  # raises the error for the missing one
    settings = dataclasses.replace(settings, output=own.get("output", f"{settings.output}-sweep"))
    base = dataclasses.replace(settings, latency_table=None)
    flops = own.get("flops_reduction", "" if "latency_reduction" in own else REDUCTIONS)
    wanted = [dataclasses.replace(base, flops_reduction=x) for x in _numbers(flops, "--flops-reduction")]
    latency = _numbers(own.get("latency_reduction", ""), "--latency-reduction")
    wanted += [dataclasses.replace(settings, latency_reduction=x) for x in latency]
    if not wanted:
        raise UserError("--flops-reduction: names no student")
    for one in wanted:
        check_goal(one)
    return base, wanted


def _numbers(text: str, flag: str) -> list[float]:
    try:
        return sorted({float(part) for part in text.split(",")}) if text else []
    except ValueError:
        raise UserError(f"{flag} {text}: must be numbers with commas between them, as in {REDUCTIONS}") from None


def main() -> None:
    base, wanted = parse(sys.argv[1:])
    from bertjax.pipeline import sweep, sweep_report  # JAX is imported only once the flags are right

    folder = sweep.run_sweep(base, wanted, shlex.join(["python", *sys.argv]))
    print(f"\n{sweep_report.sweep_table(folder)}\n\n{sweep_report.advice(folder)}")
    print(f"{folder}/sweep.svg: the same as a picture")


if __name__ == "__main__":
    run(main)
