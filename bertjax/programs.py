"""What programs share: exit codes, the one line that tells what went wrong, and flags from settings."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import typing
from collections.abc import Callable, Sequence

from bertjax.errors import UserError, WorkFailed
from bertjax.settings import RunSettings


def run(main: Callable[[], None]) -> None:
    """Run a program's `main` and end the process: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    try:
        main()
        code = 0
    except UserError as error:
        code = _tell(error, 2)
    except WorkFailed as error:
        code = _tell(error, 1)
    except KeyboardInterrupt:
        code = _tell("interrupted; the same command continues where it stopped", 130)
    sys.stdout.flush()
    sys.exit(code)


def _tell(message: object, code: int) -> int:
    print(f"error: {message}" if code != 130 else f"\n{message}", file=sys.stderr)
    return code


def add_setting_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each of these fields of `RunSettings`; one that is not given parses as None."""
    kinds = typing.get_type_hints(RunSettings)
    for field in dataclasses.fields(RunSettings):
        if field.name not in names:
            continue
        rest = {key: value for key, value in field.metadata.items() if key != "help"}
        if "nargs" not in rest and kinds[field.name] in (int, float):
            rest.setdefault("type", kinds[field.name])
        shown = "" if field.default in (None, ()) else f" (default: {field.default}; presets differ)"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", default=None, help=f"{field.metadata['help']}{shown}", **rest
        )
