"""Make a small INT8 student from a large QA teacher: prune, distill, calibrate, train on the INT8 grid, evaluate.

Without flags it runs the `demo` preset: the embedded corpus, a small teacher trained from nothing, and a student
with 5.6x fewer multiply-accumulates, in runs/demo. Run the same command again to continue an interrupted run.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from bertjax.pipeline.flags import parse_run
from bertjax.pipeline.settings import RunSettings, check_goal
from bertjax.programs import run


def parse(arguments: list[str]) -> RunSettings:
    """The preset's settings with the flags given on top."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    settings, _ = parse_run(parser, arguments)
    check_goal(settings)
    return settings


def main() -> None:
    settings = parse(sys.argv[1:])
    from bertjax.pipeline import report, stages  # JAX is imported only once the flags are right

    done = stages.run_pipeline(settings, shlex.join(["python", *sys.argv]))
    print()
    print(report.stage_table(done.folder))
    print(f"\n{report.write_report(done.folder)}: the same with pictures")


if __name__ == "__main__":
    run(main)
