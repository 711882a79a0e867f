"""JSON and JSON Lines as people store them: gzipped or not, whatever the name, in UTF-8, UTF-16 or UTF-32."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from bertjax.errors import UserError

GZIP = b"\x1f\x8b"
MOST_FAULTS = 10  # told one by one; the others are counted


class Twice:
    """Stands for the value of a key that occurs twice in one JSON object, so that neither value is taken silently."""


class Faults:
    """The faults of one file, gathered so that all are told at once."""

    def __init__(self, path: Path):
        self._path, self._lines, self._count = path, list[str](), 0

    def add(self, where: str, what: str) -> None:
        """Note a fault at `where`, a question's id or a place in the file; "" for the file as a whole."""
        self._count += 1
        if self._count <= MOST_FAULTS:
            self._lines.append(": ".join(part for part in (str(self._path), where, what) if part))

    def check(self) -> None:
        """Raise the gathered faults, one a line, if there are any.

        Raises:
          UserError: there are faults.
        """
        if self._count:
            more = self._count - len(self._lines)
            raise UserError("\n".join([*self._lines, *([f"and {more:,} more"] if more else [])]))


def read_text(path: Path, expected: str) -> str:
    """Read a text file, unzipped if it begins like a gzip file, without a byte order mark.

    Args:
      expected: what the file should be, for the message if there is none.

    Raises:
      UserError: the file is missing, a folder, unreadable, a broken gzip file, or in no Unicode encoding.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {expected}") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; expected {expected}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if content.startswith(GZIP):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            raise UserError(f"{path}: the gzip file is cut short or broken; fetch it again") from None
    encoding = json.detect_encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.removesuffix("-sig").upper()
        raise UserError(f"{path}: byte {error.start:,} is not {name}; convert the file to UTF-8") from None
    if not text.strip():
        raise UserError(f"{path}: is empty; expected {expected}")
    return text


def parse_json(text: str, faults: Faults) -> list[tuple[str, Any]]:
    """Parse one JSON value, or JSON Lines: one value a line.

    Returns:
      Each value with its place: "" for the only one, "line 7" in JSON Lines. Broken lines are in `faults` instead.
    """
    try:
        return [("", _loads(text))]
    except _NotJson as error:
        whole = str(error)
    lines = [(f"line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not any(_is_object(line) for _, line in lines[:2]):
        faults.add("", f"{whole}; fetch or write the file again")
        return []
    values = []
    for place, line in lines:
        try:
            values.append((place, _loads(line)))
        except _NotJson as error:
            faults.add(place, str(error))
    return values


class _NotJson(Exception):
    """A text that is no JSON; says where it breaks off."""


def _loads(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_int=_integer)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text.strip() else f"column {error.colno}"
        raise _NotJson(f"the JSON is cut short or broken at {place}") from None
    except RecursionError:
        raise _NotJson("the JSON is nested too deeply") from None


def _is_object(line: str) -> bool:
    try:
        return isinstance(_loads(line), dict)
    except _NotJson:
        return False


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        found |= {name: Twice() for name in found if names.count(name) > 1}
    return found


def _integer(digits: str) -> int | float:
    """An int, or a float where there are more digits than Python converts."""
    return int(digits) if len(digits) < 100 else float(digits)
