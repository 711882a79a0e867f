"""A flag for every setting."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bertjax.errors import UserError

if TYPE_CHECKING:
    from bertjax.pipeline.settings import RunSettings


def add_setting_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each of these fields of `RunSettings`; one that is not given parses as None."""
    from bertjax.pipeline.settings import RunSettings

    kinds = typing.get_type_hints(RunSettings)
    for field in dataclasses.fields(RunSettings):
        if field.name not in names:
            continue
        rest = {key: value for key, value in field.metadata.items() if key != "help"}
        if "nargs" not in rest and kinds[field.name] in (int, float):
            rest.setdefault("type", kinds[field.name])
        silent = field.default in (None, ()) or field.default is False
        shown = "" if silent else f" (default: {field.default}; presets differ)"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", default=None, help=f"{field.metadata['help']}{shown}", **rest
        )


def parse_run(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, apart: Sequence[str] = ()
) -> tuple[RunSettings, dict[str, typing.Any]]:
    """Add `--preset` and every setting's flag, and parse.

    Args:
      apart: settings whose flags the program has added itself.

    Returns:
      The preset's settings with the flags given on top, and what was given of the program's own flags, by name.

    Raises:
      UserError: there is no such preset, or two goals are given.
    """
    from bertjax.pipeline import presets
    from bertjax.pipeline.settings import RunSettings

    names = ", ".join(presets.PRESETS)
    parser.add_argument(
        "--preset",
        default=None,
        help=f"complete settings by name: {names} (default: demo, or minilm if --encoder or --teacher is given)",
    )
    flags = [field.name for field in dataclasses.fields(RunSettings) if field.metadata and field.name not in apart]
    add_setting_flags(parser, flags)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    named = "minilm" if given.keys() & {"encoder", "teacher"} else "demo"
    preset = given.pop("preset", named)
    if preset not in presets.PRESETS:
        raise UserError(f"--preset {preset}: unknown; there are {names}")
    own = {name: given.pop(name) for name in list(given) if name not in flags}
    if given.keys() >= {"flops_reduction", "latency_reduction"}:
        raise UserError("--flops-reduction, --latency-reduction: give one of them")
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return dataclasses.replace(presets.PRESETS[preset](), **given), own
