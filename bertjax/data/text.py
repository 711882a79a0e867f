"""Plain text and SQuAD contexts for pre-training."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertjax.data.squad import read_squad
from bertjax.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token sequences: `rows[i]` int32 with special tokens, of which those from `seconds[i]` on are of type 1."""

    rows: list[np.ndarray]
    seconds: list[int]
    longest: int

    @property
    def lengths(self) -> np.ndarray:
        return np.array([len(row) for row in self.rows], np.int32)


def read_corpus(path: Path, tokenizer: Tokenizer, *, max_seq: int, questions: bool) -> Corpus:
    """The contexts of a SQuAD file (`.json`, `.json.gz`), or the paragraphs of a text file (split at empty lines).

    Long paragraphs are cut into pieces of at most `max_seq` tokens.

    Args:
      questions: read each question of a SQuAD file before its context, as a pair, instead of each context once.

    Raises:
      UserError: no such file, nothing in it, or questions wanted from a text file.
    """
    pairs = _pairs(Path(path), questions)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    encoded = tokenizer.encode_batch([text for pair in pairs for text in pair], add_special_tokens=False)
    rows, seconds = [], []
    for first, second in zip(encoded[::2], encoded[1::2], strict=True):
        head = [cls, *first.ids[: max_seq // 2], sep] if first.ids else [cls]
        room = max_seq - len(head) - 1
        for begin in range(0, len(second.ids), room):
            rows.append(np.array([*head, *second.ids[begin : begin + room], sep], np.int32))
            seconds.append(len(head) if first.ids else max_seq)
    return Corpus(rows=rows, seconds=seconds, longest=max_seq)


def read_texts(path: Path) -> list[str]:
    """All texts of a file, questions included, to learn a vocabulary from; errors as `read_corpus`."""
    pairs = _pairs(Path(path), _is_squad(Path(path)))
    return list(dict.fromkeys(text for pair in pairs for text in pair if text))


def _is_squad(path: Path) -> bool:
    return path.name.endswith((".json", ".json.gz"))


def _pairs(path: Path, questions: bool) -> list[tuple[str, str]]:
    """Distinct (question or "", paragraph) pairs."""
    if _is_squad(path):
        pairs = [(example.question if questions else "", example.context) for example in read_squad(path)]
        return list(dict.fromkeys(pairs))
    if questions:
        raise UserError(f"{path}: --with-questions wants a SQuAD file")
    return [("", paragraph) for paragraph in _paragraphs(path)]


def _paragraphs(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; a text file or a SQuAD file is wanted") from None
    except (UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error})") from None
    found = [" ".join(block.split()) for block in text.split("\n\n")]
    if not any(found):
        raise UserError(f"{path}: holds no text")
    return [paragraph for paragraph in found if paragraph]
