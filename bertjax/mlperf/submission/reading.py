"""Files of a submission read as strictly as MLCommons' checker reads them: what it would stumble over is a fault.

A reader returns what it could read, and adds one line per fault to a list. The official checker ends in a traceback on
most of these faults (`loader.py` and `results.py` catch nothing), so that none of a tree's results is shown.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bertjax.errors import WorkFailed
from bertjax.mlperf.logs import read_entries


def read_text(path: Path, faults: list[str]) -> str | None:
    """A UTF-8 file's text; None if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        faults.append(f"{path}: not readable as UTF-8 text ({error})")
        return None


def read_object(path: Path, faults: list[str]) -> dict[str, Any]:
    """A file's JSON object, in which no key stands twice; empty if it cannot be read."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = sorted({key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1})
        if twice:
            faults.append(f"{path}: {', '.join(twice)}: given more than once")
        return dict(pairs)

    try:
        record = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"{path}: not readable as JSON ({error})")
        return {}
    if not isinstance(record, dict):
        faults.append(f"{path}: not a JSON object")
        return {}
    return record


class DetailLog:
    """A run's `mlperf_log_detail.txt`: its values by key, and the errors that LoadGen met.

    Where a key stands more than once with different values the official checker believes the first, whoever reads the
    file the last: asking for such a value is a fault, and so is asking for one that is missing or of another type.
    """

    def __init__(self, path: Path, faults: list[str]):
        self._path, self._faults, self._values = path, faults, dict[str, list[Any]]()
        self.errors: tuple[str, ...] = ()
        try:
            entries = read_entries(path)
        except WorkFailed as error:
            faults.append(str(error))
            self.is_readable = False
            return
        self.is_readable = True
        self.errors = tuple(" ".join(str(entry.value).split()) for entry in entries if entry.is_error)
        for entry in entries:
            self._values.setdefault(entry.key, []).append(entry.value)

    def has(self, key: str) -> bool:
        return key in self._values

    def text(self, key: str) -> str | None:
        """A string; None, and a fault, for anything else."""
        return self._get(key, str, "a text")

    def numbers(self, keys: Iterable[str]) -> dict[str, float]:
        """Those of `keys` that hold a finite number of at least 0; a fault for each other one."""
        found = {key: self._get(key, (int, float), "a number of at least 0") for key in keys}
        return {key: value for key, value in found.items() if value is not None}

    def truth(self, key: str) -> bool | None:
        """True or false; None, and a fault, for anything else."""
        return self._get(key, bool, "true or false")

    def _get(self, key: str, kind: type | tuple[type, ...], wanted: str) -> Any:
        values = self._values.get(key, [])
        if not values:
            self._faults.append(f"{self._path}: {key} is missing, wanted {wanted}")
        elif any(value != values[0] for value in values[1:]):
            self._faults.append(f"{self._path}: {key} stands there {len(values)} times with different values")
        elif not isinstance(values[0], kind) or (isinstance(values[0], bool) and kind is not bool):
            self._faults.append(f"{self._path}: {key} is {json.dumps(values[0])[:80]}, wanted {wanted}")
        elif isinstance(values[0], int | float) and not 0 <= values[0] < math.inf:
            self._faults.append(f"{self._path}: {key} is {values[0]}, wanted {wanted}")
        else:
            return values[0]
        return None
