"""Mutated data files are read for what they say, or refused in lines that name them: never a traceback, never silently.

What a file says is told by a reader of its own here, which is naive, as it has to read only what was accepted.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from tokenizers import Tokenizer

from bertjax.data.squad import read_squad
from bertjax.data.text import read_texts
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import WindowSettings, make_windows
from bertjax.errors import UserError
from tests.fuzz.budget import bounded, draws
from tests.fuzz.mutations import mutate_bytes, mutate_tree
from tests.models import tiny_config, write_random_model

PYTHONS_OWN = re.compile(r"Traceback|NoneType|object is not|not subscriptable|indices must|codec can't|Error\(|<class")
USED = ("data", "paragraphs", "qas", "id", "question", "context", "answers", "text", "answer_start")
WINDOWS = WindowSettings(max_seq=40, doc_stride=8, max_query=12)


def _row(number: int, *, nested: bool) -> dict[str, Any]:
    answers: Any = [{"text": "king", "answer_start": 4}, {"text": "the king", "answer_start": 0}]
    if nested:
        answers = {"text": ["king", "the king"], "answer_start": [4, 0]}
    return {
        "id": f"q{number}",
        "title": "t",
        "context": "the king was by the river",
        "question": "who",
        "answers": answers,
    }


def _squad(*, nested: bool) -> dict[str, Any]:
    rows = [_row(number, nested=nested) for number in range(4)]
    qas = [{key: row[key] for key in ("id", "question", "answers")} for row in rows]
    paragraphs = [{"context": row["context"], "qas": part} for row, part in zip(rows, (qas[:3], qas[3:]), strict=False)]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]}


TREES: tuple[Any, ...] = (
    _squad(nested=False),
    _squad(nested=True),
    [_row(number, nested=True) for number in range(3)],
    {"data": [_row(number, nested=False) for number in range(3)]},
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    write_random_model(folder, tiny_config(), seed=0)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@bounded
@given(draw=draws)
def test_questions(folder: Path, tokenizer: Tokenizer, draw: random.Random):
    content = _content(draw)
    path = folder / draw.choice(("a.json", "a.json.gz", "a.jsonl"))
    path.write_bytes(content)
    try:
        examples = read_squad(path)
    except UserError as error:
        _check_refusal(error, path)
        return
    found = [(e.id, e.question, e.context, [(a.text, a.start) for a in e.answers]) for e in examples]
    assert found == list(_said(content))
    assert len({example.id for example in examples}) == len(examples)
    assert all(e.context[a.start :].startswith(a.text) and a.start >= 0 for e in examples for a in e.answers)
    make_windows(examples, tokenizer, WINDOWS)


@bounded
@given(draw=draws)
def test_texts(folder: Path, draw: random.Random):
    text = "the king was by the river\nin the city\n\n" * 3
    content = mutate_bytes(text.encode(draw.choice(("utf-8", "utf-8-sig", "utf-16", "utf-16-le"))), draw)
    path = folder / "a.txt"
    path.write_bytes(content)
    try:
        texts = read_texts(path)
    except UserError as error:
        _check_refusal(error, path)
        return
    words = content.decode(json.detect_encoding(content)).split()
    assert set(" ".join(texts).split()) == set(words)


def _content(draw: random.Random) -> bytes:
    """A data file whose tree or bytes are mutated, in one of the forms and encodings."""
    tree = draw.choice(TREES)
    by_bytes = draw.random() < 0.4
    if not by_bytes:
        tree = mutate_tree(tree, draw)
    if isinstance(tree, list) and draw.random() < 0.5:
        text = "".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n" for row in tree)
    else:
        text = json.dumps(tree, indent=draw.choice((None, 1)), ensure_ascii=draw.random() < 0.5)
    if draw.random() < 0.1:
        key = draw.choice(USED)
        text = text.replace(f'"{key}":', f'"{key}": 4, "{key}":', 1)
    content = text.encode(draw.choice(("utf-8", "utf-8", "utf-8-sig", "utf-16")), "surrogatepass")
    if by_bytes and draw.random() < 0.7:
        content = mutate_bytes(content, draw)
        by_bytes = False
    if draw.random() < 0.3:
        content = gzip.compress(content)
    return mutate_bytes(content, draw) if by_bytes else content


def _check_refusal(error: UserError, path: Path) -> None:
    lines = str(error).split("\n")
    assert all(line.startswith(f"{path}: ") or re.fullmatch(r"and [\d,]+ more", line) for line in lines)
    assert len(lines) <= 11 and all(line.isprintable() for line in lines)
    assert not PYTHONS_OWN.search(str(error)) and max(map(len, lines)) < 400


def _said(content: bytes) -> Any:
    if content[:2] == b"\x1f\x8b":
        content = gzip.decompress(content)
    text = content.decode(json.detect_encoding(content))
    try:
        values = [json.loads(text, object_pairs_hook=_once)]
    except json.JSONDecodeError:
        values = [json.loads(line, object_pairs_hook=_once) for line in text.split("\n") if line.strip()]
    for value in values:
        items = value if isinstance(value, list) else value.get("data", [value])
        for item in items:
            for paragraph in item.get("paragraphs", [item]):
                for question in paragraph.get("qas", [paragraph]):
                    answers = question["answers"]
                    if isinstance(answers, list):
                        pairs = [(answer["text"], answer["answer_start"]) for answer in answers]
                    else:
                        pairs = list(zip(answers["text"], answers["answer_start"], strict=True))
                    assert not any(isinstance(start, bool) for _, start in pairs)
                    yield question["id"], question["question"], paragraph["context"], pairs


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object in which a key that stands twice has a value that nothing equals."""
    names = [name for name, _ in pairs]
    return {name: value if names.count(name) == 1 else object() for name, value in pairs}
