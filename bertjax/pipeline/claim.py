"""Whose a run directory is: the settings and the inputs that its models are made from.

Inputs are known by their digests, so that files may be moved, renamed or named in another way; where the directory
itself lies, and what it is called, makes no difference.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax import files, rundir
from bertjax.errors import UserError
from bertjax.identity import digest_file
from bertjax.modeldir import store
from bertjax.pipeline.run import Run
from bertjax.pipeline.settings import RunSettings, to_dict

_INPUTS = ("encoder", "teacher", "train_file", "val_file", "eval_file", "latency_table")  # known by their digests
_PLACES = ("output", "cache", "cache_gib")  # where things lie, and on how much disk


def check_settings(settings: RunSettings) -> None:
    """See that the run directory is new, or that its run has settings that make the same models.

    Raises:
      UserError: its settings are others, or its record is broken.
    """
    if recorded := rundir.read_settings(Path(settings.output)):
        old, new = _what_makes_models(_as_json(RunSettings()) | recorded), _what_makes_models(_as_json(settings))
        changed = [
            f"{name} was {old.get(name)!r} and is now {new[name]!r}" for name in new if old.get(name) != new[name]
        ]
        if changed:
            raise _other_run(settings, ", ".join(changed))


def input_digests(run: Run) -> dict[str, str]:
    """Digests of a run's inputs by their fields; a directory that a finished teacher needs no more is left out.

    Raises:
      UserError: a file is absent, or cannot be read.
    """
    settings = run.settings
    paths = {"train_file": run.files.train, "val_file": run.files.val, "eval_file": run.files.eval}
    paths["latency_table"] = Path(settings.latency_table) if settings.latency_table else None
    found = {name: digest_file(path) for name, path in paths.items() if path is not None}
    if not run.done("teacher"):
        found["teacher" if settings.teacher else "encoder"] = store.digest(run.teacher_source)
    return found


def check_inputs(settings: RunSettings, digests: Mapping[str, str]) -> None:
    """See that the inputs of a run that is continued are those that it was begun with.

    Args:
      digests: as `input_digests` gives them.

    Raises:
      UserError: one of them is another.
    """
    folder = Path(settings.output)
    recorded = rundir.read_settings(folder)
    if not recorded:
        return
    known = rundir.read_metrics(folder).get("data", {}).get("digests", {})
    given = _as_json(settings)
    # A run of 0.1 has no digests: its inputs are known by name.
    changed = [
        f"{name} {given[name]} is not what the run was begun with" + ("" if name in known else f", {recorded[name]}")
        for name, digest in digests.items()
        if (known[name] != digest if name in known else recorded.get(name) not in (None, given[name]))
    ]
    if changed:
        raise _other_run(settings, ", ".join(changed))


def write(settings: RunSettings, digests: Mapping[str, str]) -> None:
    """Record the settings and the inputs' digests, which makes the directory this run's.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    folder = Path(settings.output)
    rundir.update_metrics(folder, {"data": {"digests": dict(digests)}})
    wanted = _as_json(settings)
    if rundir.read_settings(folder) != wanted:
        files.write_file_aside(folder / "settings.json", json.dumps(wanted, indent=2) + "\n")


def _other_run(settings: RunSettings, what: str) -> UserError:
    return UserError(f"{settings.output}: holds a run with other settings ({what}); give another --output")


def _as_json(settings: RunSettings) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(to_dict(settings)))
    return found


def _what_makes_models(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that a run's models depend on; of inputs, whether they are given; not whether stages are scored."""
    kept = {name: value for name, value in settings.items() if name not in (*_PLACES, *_INPUTS)}
    given = {name: "given" if settings[name] else None for name in _INPUTS}
    return kept | given | {"skip": [stage for stage in kept["skip"] if stage != "evaluate"]}
