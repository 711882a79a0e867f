"""Plain text and SQuAD contexts for pre-training."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertjax.data.json_files import read_text
from bertjax.data.squad import Example, read_squad
from bertjax.data.windows import encode
from bertjax.errors import UserError

SHORTEST = 8  # tokens of a sequence: room for one of a question, one of its context and the special ones
_JSON_NAME = re.compile(r"\.jsonl?(\.gz)?$", re.IGNORECASE)
_JSON_START = re.compile(r'\s*(\[\s*)?\{\s*"')  # of a SQuAD file under another name
_EMPTY_LINES = re.compile(r"\n\s*\n")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token sequences: `rows[i]` int32 with special tokens, of which those from `seconds[i]` on are of type 1."""

    rows: list[np.ndarray]
    seconds: list[int]
    longest: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row, int32 [rows]."""
        return np.array([len(row) for row in self.rows], np.int32)


def read_corpus(path: Path, tokenizer: Tokenizer, *, max_seq: int, questions: bool) -> Corpus:
    """Tokenize the contexts of a SQuAD file, or the paragraphs of a text file (split at empty lines).

    Long paragraphs are cut into pieces of at most `max_seq` tokens.

    Args:
      questions: read each question of a SQuAD file before its context, as a pair, instead of each context once.

    Raises:
      UserError: the file cannot be read, has no token, or is a text file where questions are asked for.
    """
    if max_seq < SHORTEST:
        raise UserError(f"--max-seq {max_seq}: must be at least {SHORTEST}")
    pairs = _pairs(Path(path), questions)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    firsts, seconds = (encode(tokenizer, [pair[side] for pair in pairs]) for side in (0, 1))
    rows, begins = [], []
    for (first, _), (second, _) in zip(firsts, seconds, strict=True):
        head = np.array([cls, *first[: max_seq // 2], sep] if len(first) else [cls])
        room = max_seq - len(head) - 1
        for begin in range(0, len(second), room):
            rows.append(np.concatenate([head, second[begin : begin + room], [sep]]).astype(np.int32))
            begins.append(len(head) if len(first) else max_seq)
    if not rows:
        raise UserError(f"{path}: the tokenizer finds no token in it")
    return Corpus(rows=rows, seconds=begins, longest=max_seq)


def read_texts(path: Path) -> list[str]:
    """Read all distinct texts of a file, questions included, to learn a vocabulary from.

    Raises:
      UserError: the file cannot be read.
    """
    found = _read(Path(path))
    if isinstance(found, str):
        return list(dict.fromkeys(_paragraphs(found)))
    texts = (text for example in found for text in (example.question, example.context))
    return [text for text in dict.fromkeys(texts) if text]


def _pairs(path: Path, questions: bool) -> list[tuple[str, str]]:
    """Distinct (question or "", paragraph) pairs."""
    found = _read(path)
    if not isinstance(found, str):
        return list(dict.fromkeys((example.question if questions else "", example.context) for example in found))
    if questions:
        raise UserError(f"{path}: --with-questions needs a SQuAD file")
    return [("", paragraph) for paragraph in _paragraphs(found)]


def _read(path: Path) -> list[Example] | str:
    """The questions of a SQuAD file, or the text of any other."""
    if _JSON_NAME.search(path.name):
        return read_squad(path)
    text = read_text(path, "a text file or a SQuAD file")
    return read_squad(path) if _JSON_START.match(text) else text


def _paragraphs(text: str) -> list[str]:
    lines = text.replace("\r\n", "\n").replace("\r", "\n")
    return [" ".join(block.split()) for block in _EMPTY_LINES.split(lines) if block.strip()]
