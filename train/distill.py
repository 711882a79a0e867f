"""Make a small INT8 student from a large QA teacher: prune, distill, calibrate, train on the INT8 grid, evaluate.

Without flags it runs the `demo` preset: the embedded corpus, a small teacher trained from nothing, and a student
with 5.6x fewer multiply-accumulates, in runs/demo. Run the same command again to continue an interrupted run.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys

from bertjax import presets
from bertjax.errors import UserError
from bertjax.programs import add_setting_flags, run
from bertjax.settings import RunSettings


def parse(arguments: list[str]) -> RunSettings:
    """The preset's settings with the flags given on top."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    names = ", ".join(presets.PRESETS)
    parser.add_argument(
        "--preset",
        default=None,
        help=f"complete settings by name: {names} (default: demo, or minilm if --encoder or --teacher is given)",
    )
    add_setting_flags(parser, [field.name for field in dataclasses.fields(RunSettings) if field.metadata])
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    named = "minilm" if given.keys() & {"encoder", "teacher"} else "demo"
    preset = given.pop("preset", named)
    if preset not in presets.PRESETS:
        raise UserError(f"--preset {preset}: unknown; there are {names}")
    if "skip" in given:
        given["skip"] = tuple(given["skip"])
    return dataclasses.replace(presets.PRESETS[preset](), **given)


def main() -> None:
    settings = parse(sys.argv[1:])
    from bertjax import pipeline, report  # JAX is imported only once the flags are right

    done = pipeline.run_pipeline(settings, shlex.join(["python", *sys.argv]))
    print()
    print(report.stage_table(done.folder))
    print(f"\n{report.write_report(done.folder)}: the same with pictures")


if __name__ == "__main__":
    run(main)
