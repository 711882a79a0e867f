"""Reading SQuAD v1.1 JSON, plain or gzipped."""

from __future__ import annotations

import dataclasses
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

from bertjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    text: str
    start: int  # character offset in the context


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One question about one paragraph, with every answer that its writers accepted; none where nobody has answered."""

    id: str
    question: str
    context: str
    answers: tuple[Answer, ...]


def read_squad(path: Path) -> list[Example]:
    """Read all questions of a SQuAD v1.1 file in the file's order.

    Raises:
      UserError: the file is missing, cut short, not SQuAD v1.1 JSON, holds no question or an id twice, or an
        answer does not stand in its context where the file says.
    """
    data = _read_json(Path(path))
    if not isinstance(data, dict) or not isinstance(data.get("data"), list):
        raise UserError(f"{path}: no list 'data' at the top; SQuAD v1.1 JSON is wanted")
    examples, seen = [], set()
    for number, article in enumerate(data["data"]):
        try:
            found = [example for paragraph in article["paragraphs"] for example in _paragraph(paragraph, path)]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: data[{number}]: field {error} is missing or of another kind") from None
        for example in found:
            if example.id in seen:
                raise UserError(f"{path}: id {example.id!r} stands twice; make ids unique")
            seen.add(example.id)
        examples.extend(found)
    if not examples:
        raise UserError(f"{path}: holds no question")
    return examples


def _read_json(path: Path) -> Any:
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        return json.loads(content)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a SQuAD v1.1 .json or .json.gz is wanted") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; a SQuAD v1.1 .json or .json.gz is wanted") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path}: the gzip file is cut short or broken ({error}); fetch it again") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: the JSON is cut short or broken ({error}); fetch it again") from None


def _paragraph(paragraph: dict[str, Any], path: Path) -> list[Example]:
    context, examples = paragraph["context"], []
    for entry in paragraph["qas"]:
        answers = []
        for answer in entry["answers"]:
            text, start = answer["text"], answer["answer_start"]
            if not text or context[start : start + len(text)] != text:
                raise UserError(
                    f"{path}: id {entry['id']!r}: answer {text!r} does not stand at answer_start {start} of its context"
                )
            answers.append(Answer(text=text, start=start))
        if not answers:
            raise UserError(f"{path}: id {entry['id']!r}: no answer; SQuAD v1.1 has one for every question")
        examples.append(Example(id=entry["id"], question=entry["question"], context=context, answers=tuple(answers)))
    return examples
