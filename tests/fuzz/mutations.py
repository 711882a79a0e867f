"""Mutations of JSON trees and of bytes, drawn from a seeded random generator."""

from __future__ import annotations

import copy
import random
from typing import Any

JUNK: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 12, 2**63, -(2**64), 10**30, 0.0, 4.0, 4.5, -1.0, 1e400, float("nan")),
    *("", " ", "0", "king", "a\ud83d", "\ude00", "\u0000", "\u2028", "e\u0301", "x" * 300),
    *([], {}, [[]], [None], {"": None}, ["king"], {"text": "king"}),
)


def mutate_tree(tree: Any, draw: random.Random) -> Any:
    """Change one to three places of a JSON value: other values, missing or repeated parts, parts of other places."""
    tree = copy.deepcopy(tree)
    for _ in range(draw.randint(1, 3)):
        places = list(_places(tree))
        if not places:
            return draw.choice(JUNK)
        holder, key = draw.choice(places)
        action = draw.randrange(6)
        if action == 0:
            del holder[key]
        elif action == 1:
            other, name = draw.choice(places)
            holder[key] = copy.deepcopy(other[name])
        elif action == 2 and isinstance(holder, list):
            holder.insert(draw.randint(0, len(holder)), copy.deepcopy(holder[key]))
        elif action == 3 and isinstance(holder, dict):
            holder[draw.choice((key + "s", key.upper(), "data", "context", "id"))] = holder.pop(key)
        elif action == 4 and isinstance(holder[key], int | float):
            holder[key] = draw.choice((holder[key] + 1, -holder[key], float(holder[key]), str(holder[key])))
        elif action == 5 and isinstance(holder[key], str):
            holder[key] = mutate_text(holder[key], draw)
        else:
            holder[key] = copy.deepcopy(draw.choice(JUNK))
    return tree


def _places(tree: Any) -> Any:
    """(holder, key) of every value inside a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from _places(value)


def mutate_text(text: str, draw: random.Random) -> str:
    """Put in, take out or repeat characters."""
    at = draw.randint(0, len(text))
    put = draw.choice(("", "\u0301", "\ud800", "\n", "\x00", "\u00ad", "Ω", text[at:]))
    return text[:at] + put + text[at + draw.choice((0, 0, 1, 3)) :]


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip, cut off, take out, put in or repeat bytes, at one to three places."""
    for _ in range(draw.randint(1, 3)):
        at = draw.randint(0, len(content))
        size = draw.choice((1, 2, 7, 60))
        action = draw.randrange(5)
        if action == 0 and at < len(content):
            content = content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]
        elif action == 1:
            content = content[:at]
        elif action == 2:
            content = content[:at] + content[at + size :]
        elif action == 3:
            put = draw.choice(
                (
                    b"\x00",
                    b"\xff",
                    b'"',
                    b"{",
                    b"]",
                    b",",
                    b"\n",
                    b"\r\n",
                    b"\xed\xa0\x80",
                    b"NaN",
                    b"1" * 5000,
                    b"[" * 100_000,
                )
            )
            content = content[:at] + put + content[at:]
        else:
            content = content[:at] + content[at : at + size] * 2 + content[at + size :]
    return content
