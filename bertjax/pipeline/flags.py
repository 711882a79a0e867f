"""A flag for every setting of a run, grouped by stage."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from collections.abc import Sequence
from typing import Any

from bertjax.errors import UserError
from bertjax.pipeline import presets
from bertjax.pipeline.settings import RunSettings


def add_setting_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each of these fields of `RunSettings`, in the fields' groups.

    A flag that is not given parses as None.
    """
    kinds, groups = typing.get_type_hints(RunSettings), {}
    for field in dataclasses.fields(RunSettings):
        if field.name not in names:
            continue
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        rest = {key: value for key, value in field.metadata.items() if key not in ("group", "help")}
        if number := _number(kinds[field.name]):
            rest |= {"type": number, "metavar": "N"}
        silent = field.default in (None, ()) or field.default is False
        shown = "" if silent else f" (default: {field.default}; presets differ)"
        groups[title].add_argument(
            f"--{field.name.replace('_', '-')}", default=None, help=f"{field.metadata['help']}{shown}", **rest
        )


def _number(kind: Any) -> type[int] | type[float] | None:
    """`int` or `float` for a field that holds one, or one or None."""
    plain = {part for part in typing.get_args(kind) or (kind,) if part is not type(None)}
    return next((number for number in (int, float) if plain == {number}), None)


def parse_run(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, apart: Sequence[str] = ()
) -> tuple[RunSettings, dict[str, Any]]:
    """Add `--preset` and every setting's flag, and parse.

    Args:
      apart: settings whose flags the program has added itself.

    Returns:
      The preset's settings with the flags given on top, and what was given of the program's own flags, by name.

    Raises:
      UserError: there is no such preset, two goals are given, or a number makes no sense.
    """
    names = ", ".join(presets.PRESETS)
    parser.add_argument(
        "--preset",
        metavar="NAME",
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
