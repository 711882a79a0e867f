"""JSON files of a model directory, read with every fault as one line that names the file and the field."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from bertjax.errors import UserError

_MOST = 2**31 - 1  # of any whole number: what an int32 holds


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises:
      UserError: the file is missing or unreadable, is not JSON in UTF-8, is no object, or has a key twice.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_refuse_twins)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a model directory holds {path.name}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{path}: not valid JSON for a model directory (nested too deeply)") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 (byte {error.start})") from None
    except ValueError as error:  # of JSON, and of numbers with thousands of digits
        raise UserError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{shown(next(name for name in names if names.count(name) > 1))} stands there twice")
    return found


def shown(value: Any) -> str:
    """A value as a message shows it: as Python writes it, cut off after 40 characters."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fields:
    """The fields of a JSON object. Null counts as absent. Every method raises UserError for another type or range."""

    raw: Mapping[str, Any]
    where: str  # the file, and the object in it, for messages

    def whole(self, name: str, *, least: int = 0, most: int = _MOST, default: int | None = None) -> int:
        """A whole number from `least` to `most`; `default` if it is absent, and a fault if that is None."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._refuse(name, f"a whole number from {least} to {most}")
        return value

    def wholes(self, name: str, count: int, *, default: list[int]) -> list[int]:
        """`count` whole numbers from 0."""
        values = self._given(name, default)
        good = isinstance(values, list) and len(values) == count
        if not good or not all(type(value) is int and 0 <= value <= _MOST for value in values):
            self._refuse(name, f"a list of {count} whole numbers, one for each layer,")
        return values

    def number(self, name: str, *, below: float, default: float) -> float:
        """A number from 0 to below `below`."""
        value = self._given(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < below:
            self._refuse(name, f"a number from 0 to below {below:g}")
        return float(value)

    def truth(self, name: str, *, default: bool | None = None) -> bool:
        value = self._given(name, default)
        if not isinstance(value, bool):
            self._refuse(name, "true or false")
        return value

    def word(self, name: str, *, default: str | None = None, among: tuple[str, ...] = ()) -> str:
        """A text, one of `among` if any are given."""
        value = self._given(name, default)
        if not isinstance(value, str) or (among and value not in among):
            self._refuse(name, " or ".join(map(repr, among)) or "a text")
        return value

    def part(self, name: str) -> Fields | None:
        """The object in a field; None if it is absent."""
        value = self.raw.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self._refuse(name, "an object or null")
        return Fields(raw=value, where=f"{self.where}: {name}")

    def _given(self, name: str, default: Any) -> Any:
        value = self.raw.get(name)
        return default if value is None else value

    def _refuse(self, name: str, wanted: str) -> NoReturn:
        found = f"is {shown(self.raw[name])}" if name in self.raw else "is missing"
        raise UserError(f"{self.where}: {name} {found}; {wanted} is wanted")
