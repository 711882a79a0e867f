"""Reading questions with answers: SQuAD v1.1 JSON, or flat rows as the `datasets` library exports them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bertjax.data.json_files import Faults, Twice, parse_json, read_text
from bertjax.errors import UserError

EXPECTED = "a SQuAD v1.1 .json, .json.gz or .jsonl file"
_HALF_SURROGATE = re.compile("[\ud800-\udfff]")
_ABSENT = object()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """An accepted answer, which stands in the context at `start`, counted in characters (code points)."""

    text: str
    start: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A question about a context, with every accepted answer; with none where nobody has answered."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


def read_squad(path: Path) -> list[Example]:
    """Read all questions of a file in the file's order.

    The file is SQuAD v1.1 JSON, or a list or JSON Lines of rows with `id`, `context`, `question` and `answers`.
    Answers are `[{"text": ..., "answer_start": ...}, ...]` or `{"text": [...], "answer_start": [...]}`.

    Raises:
      UserError: the file is missing, broken or of another kind, holds no question or an id twice, or an answer does
        not stand in its context at `answer_start`. All faults of the questions are told at once, one a line.
    """
    path = Path(path)
    faults = Faults(path)
    examples: list[Example] = []
    ids: set[str] = set()
    for place, context, entry in _entries(parse_json(read_text(path, EXPECTED), faults), faults):
        example = _example(place, context, entry, faults)
        if example is None:
            continue
        if example.id in ids:
            faults.add(f"id {_shown(example.id)}", "stands twice; make ids unique")
        ids.add(example.id)
        examples.append(example)
    faults.check()
    if not examples:
        raise UserError(f"{path}: holds no question")
    return examples


def _entries(values: list[tuple[str, Any]], faults: Faults) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    """Yield each question's place, context (None if that is at fault) and object."""
    for place, value in values:
        if isinstance(value, dict) and "data" in value:
            items = _listed(value, "data", place, faults)
        elif isinstance(value, list):
            items = [(f"{place}[{number}]", item) for number, item in enumerate(value)]
        else:
            items = [(place, value)]
        for where, item in items:
            if not isinstance(item, dict):
                faults.add(where, f"is {_kind(item)}; expected an article or a question (an object)")
            elif "paragraphs" in item:
                for number, paragraph in _listed(item, "paragraphs", where, faults):
                    yield from _paragraph(number, paragraph, faults)
            elif "context" in item or "question" in item:
                yield where, _text(item, "context", _name(item, where), faults, empty=False), item
            else:
                faults.add(where, "no 'data', 'paragraphs' or 'context' in it; expected SQuAD v1.1 or its rows")


def _paragraph(place: str, value: Any, faults: Faults) -> Iterator[tuple[str, str | None, dict[str, Any]]]:
    if not isinstance(value, dict):
        faults.add(place, f"is {_kind(value)}; expected a paragraph (an object)")
        return
    entries = _listed(value, "qas", place, faults)
    if not entries:
        return
    first = entries[0][1]
    name = _name(first, place) if isinstance(first, dict) else place  # of a question, by which people search
    context = _text(value, "context", name, faults, empty=False)
    for where, entry in entries:
        if isinstance(entry, dict):
            yield where, context, entry
        else:
            faults.add(where, f"is {_kind(entry)}; expected a question (an object)")


def _example(place: str, context: str | None, entry: dict[str, Any], faults: Faults) -> Example | None:
    """The checked question; None if anything of it is at fault."""
    identity = _text(entry, "id", place, faults)
    name = _name(entry, place)
    question = _text(entry, "question", name, faults)
    found = _pairs(entry.get("answers", _ABSENT), name, faults)
    answers = [_answer(*pair, context, f"{name}: answers[{number}]", faults) for number, pair in enumerate(found or [])]
    if found is not None and not found:
        faults.add(name, "no answer; SQuAD v1.1 has one for every question")
    kept = tuple(answer for answer in answers if answer is not None)
    if identity is None or question is None or context is None or not answers or len(kept) < len(answers):
        return None
    return Example(id=identity, question=question, context=context, answers=kept)


def _pairs(value: Any, name: str, faults: Faults) -> list[tuple[Any, Any]] | None:
    """(text, answer_start) of each answer, unchecked, from either form; None if it is neither."""
    if isinstance(value, list) and all(isinstance(answer, dict) for answer in value):
        return [(answer.get("text", _ABSENT), answer.get("answer_start", _ABSENT)) for answer in value]
    if isinstance(value, dict):
        texts, starts = (value.get(key, _ABSENT) for key in ("text", "answer_start"))
        if isinstance(texts, list) and isinstance(starts, list) and len(texts) == len(starts):
            return list(zip(texts, starts, strict=True))
        what = "'text' and 'answer_start' of answers must be lists of one length"
    elif isinstance(value, list):
        what = "answers holds something else than objects with 'text' and 'answer_start'"
    else:
        what = f"answers {_is(value)}; expected a list of objects with 'text' and 'answer_start'"
    faults.add(name, what)
    return None


def _answer(text: Any, start: Any, context: str | None, name: str, faults: Faults) -> Answer | None:
    text = _checked(text, "text", name, faults, empty=False)
    if isinstance(start, float) and start.is_integer():
        start = int(start)  # pandas writes whole numbers so where another row has none
    if not isinstance(start, int) or isinstance(start, bool):
        faults.add(name, f"answer_start {_is(start)}; expected a whole number")
        return None
    if text is None or context is None:
        return None
    if start < 0 or not context.startswith(text, start):
        if 0 <= start < len(context):
            there = f"where the context has {_shown(context[start : start + len(text)])}"
        else:
            there = "below 0" if start < 0 else "past the end of the context"
        faults.add(name, f"{_shown(text)} does not stand at answer_start {start:.12g}, {there}")
        return None
    return Answer(text=text, start=start)


def _listed(value: dict[str, Any], key: str, place: str, faults: Faults) -> list[tuple[str, Any]]:
    """The items of a list with their places; none, and a fault, if it is no list."""
    items = value.get(key, _ABSENT)
    if not isinstance(items, list):
        faults.add(place, f"{key} {_is(items)}; expected a list")
        return []
    prefix = f"{place}.{key}" if place else key
    return [(f"{prefix}[{number}]", item) for number, item in enumerate(items)]


def _text(value: dict[str, Any], key: str, name: str, faults: Faults, *, empty: bool = True) -> str | None:
    return _checked(value.get(key, _ABSENT), key, name, faults, empty=empty)


def _checked(value: Any, key: str, name: str, faults: Faults, *, empty: bool) -> str | None:
    """The value, if it is a text of whole characters; else None and a fault."""
    if not isinstance(value, str):
        what = f"{_is(value)}; expected a text"
    elif not value.isascii() and _HALF_SURROGATE.search(value):
        what = "holds half of a surrogate pair, which is no character; take it out"
    elif not empty and not value.strip():
        what = "is empty"
    else:
        return value
    faults.add(name, f"{key} {what}")
    return None


def _name(entry: dict[str, Any], place: str) -> str:
    """The name of a question in messages: its id if that is a text, else its place in the file."""
    identity = entry.get("id")
    return f"id {_shown(identity)}" if isinstance(identity, str) else place


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def _is(value: Any) -> str:
    if value is _ABSENT:
        return "is missing"
    return "stands twice" if isinstance(value, Twice) else f"is {_kind(value)}"


def _kind(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return f"the number {value:.12g}"
    if isinstance(value, str):
        return f"the text {_shown(value)}"
    return "a list" if isinstance(value, list) else "an object"
