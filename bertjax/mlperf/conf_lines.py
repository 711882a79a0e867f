"""The lines and numbers of user.conf and audit.conf, as LoadGen 6.0.17 reads them (TestSettings::FromConfig).

A line is split at white space: `key = value`. LoadGen keeps the value as text, and each setting reads it by its own
type: whole numbers with C's strtoull, to base 0, and reals with strtod. One malformed line drops the whole file.
"""

from __future__ import annotations

import re

_BLANKS = re.compile(r"[ \t\r\v\f]+")
_WHOLE = re.compile(r"[+-]?(0x[0-9a-f]+|0[0-7]*|[1-9][0-9]*)", re.IGNORECASE)
_DECIMAL = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:e[+-]?[0-9]+)?"
_HEX = r"0x(?:[0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(?:p[+-]?[0-9]+)?"
_NUMBER = re.compile(rf"[+-]?(?:{_DECIMAL}|{_HEX}|inf(?:inity)?|nan(?:\([0-9a-z_]*\))?)", re.IGNORECASE)
_PLAIN = re.compile(rf"[+-]?{_DECIMAL}", re.IGNORECASE)
LARGEST = 2**64 - 1  # of strtoull
FORM = "a line reads 'bert.Server.target_qps = 100', spaces included"


class MalformedLine(Exception):
    """A line for which LoadGen drops the whole file; says why."""


def split_line(line: str) -> tuple[str, list[str]] | None:
    """Split a line into its key and its values, of which LoadGen keeps the last.

    Returns:
      None for an empty line and for one that begins with a # that stands alone. No values where the line ends early.

    Raises:
      MalformedLine: LoadGen drops the whole file for this line.
    """
    words = [word for word in _BLANKS.split(line) if word]
    if not words or words[0] == "#":
        return None
    key, rest = words[0], words[1:]
    if not rest or rest[0] == "#":
        return key, []
    if rest[0] != "=":
        if key.startswith("#"):
            raise MalformedLine("a comment has a blank after its #")
        raise MalformedLine(FORM)
    for value in rest[1:]:
        if value.startswith("#"):
            raise MalformedLine("a comment has a line of its own")
        if not _NUMBER.fullmatch(value):
            raise MalformedLine(f"{value!r} is no number; {FORM}")
    return key, rest[1:]


def whole(text: str) -> int:
    """The whole number that LoadGen reads from the beginning of a value: 6 of 6e5, 4096 of 010000."""
    found = _WHOLE.match(text)
    if found is None:
        return 0
    digits = found[1].lower()
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
    value = int(digits, base) if len(digits) < 30 else LARGEST
    if value > LARGEST:
        return LARGEST
    return -value % 2**64 if text.startswith("-") else value


def meant(text: str) -> float | int | None:
    """The number that a person means by a value: 600000 by 6e5, 10000 by 010000; None for inf, nan and the like."""
    if re.fullmatch(r"\+?0x[0-9a-f]{1,16}", text, re.IGNORECASE):
        return int(text, 16)
    if not _PLAIN.fullmatch(text):
        return None
    return int(text) if re.fullmatch(r"[+-]?[0-9]{1,25}", text) else float(text)
