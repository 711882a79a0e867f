"""A model directory's WordPiece tokenizer: read as transformers reads it, written as one file that says everything.

People's directories keep a tokenizer in up to five files that may contradict each other; transformers decides what they
mean. bertjax writes `tokenizer.json` with all of it inside, which the tokenizers library reads alone and in a tenth of
the time, and `tokenizer_config.json`, which makes transformers read that file as it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import BertWordPieceTokenizer, Tokenizer
from tokenizers.models import WordPiece

from bertjax.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

_SOURCES = ("tokenizer.json", "vocab.txt")
_UNLIMITED = 10**9  # transformers' model_max_length where no one set one is larger


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a model directory, without truncation and padding.

    A directory that bertjax wrote is read by the tokenizers library alone, any other one by transformers.

    Raises:
      UserError: there is no tokenizer, it is broken, or it is not a BERT's WordPiece tokenizer.
    """
    tokenizer, _ = _read(Path(directory))
    return tokenizer


def tokenizer_size(tokenizer: Tokenizer) -> int:
    """Number of rows in the embedding table that the ids need; added tokens may leave gaps before them."""
    return 1 + max(tokenizer.get_vocab().values())


@contextlib.contextmanager
def as_one_file(directory: Path, *, positions: int) -> Iterator[Path]:
    """Yield a folder with a directory's tokenizer in the two files that bertjax writes; it is gone after the block.

    Args:
      positions: of the model that it goes with: the largest `model_max_length` that is written.

    Raises:
      UserError: there is no tokenizer, it is broken, or it is not a BERT's WordPiece tokenizer.
    """
    tokenizer, longest = _read(Path(directory))
    with tempfile.TemporaryDirectory() as folder:
        for name, content in tokenizer_files(tokenizer, longest=min(positions, longest or positions)).items():
            (Path(folder) / name).write_text(content, encoding="utf-8")
        yield Path(folder)


def tokenizer_files(tokenizer: Tokenizer, *, longest: int) -> dict[str, str]:
    """The files that bertjax writes for a tokenizer, by name; `longest` is `model_max_length` in tokens."""
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # transformers builds a BertTokenizer anew from other fields
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        **{f"{token[1:-1].lower()}_token": token for token in SPECIAL_TOKENS},
        "model_max_length": longest,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True) + "\n",
        "tokenizer_config.json": json.dumps(about, indent=2) + "\n",
    }


def _read(directory: Path) -> tuple[Tokenizer, int | None]:
    """A directory's tokenizer, and its `model_max_length` if it has one."""
    if not any((directory / name).exists() for name in _SOURCES):
        raise UserError(f"{directory}: no tokenizer.json and no vocab.txt; copy the tokenizer's files there")
    if _is_ours(directory):
        tokenizer, longest = _read_ours(directory), _config(directory).get("model_max_length")
    else:
        tokenizer, longest = _read_with_transformers(directory)
    _check(tokenizer, directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, longest if isinstance(longest, int) and 0 < longest < _UNLIMITED else None


def _is_ours(directory: Path) -> bool:
    """Whether bertjax wrote a directory: its config.json lists the layers, and a bare vocabulary's folder has none."""
    try:
        return "heads_per_layer" in json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError, TypeError, RecursionError):  # told where the config is read
        return False


def _read_ours(directory: Path) -> Tokenizer:
    """`tokenizer.json`, or `vocab.txt` as version 0.1 kept and read it."""
    path = directory / "tokenizer.json"
    try:
        if path.exists():
            return Tokenizer.from_file(str(path))
        path = directory / "vocab.txt"
        return BertWordPieceTokenizer(str(path), lowercase=_config(directory).get("do_lower_case", True))._tokenizer
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise UserError(f"{path}: the tokenizer's file is broken ({_first_line(error)})") from None


def _read_with_transformers(directory: Path) -> tuple[Tokenizer, Any]:
    """A directory's tokenizer as transformers has it, and its `model_max_length`."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # of a missing PyTorch, which tokenizers need not
    try:
        from transformers import AutoTokenizer  # here, because it takes seconds and serving a student never gets here
    except ImportError:
        raise UserError(
            f"{directory}: bertjax did not write it, and its tokenizer needs transformers; run pip install transformers"
        ) from None
    try:
        found = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
        tokenizer, longest = getattr(found, "backend_tokenizer", None), found.model_max_length
    except Exception as error:  # of many kinds, bare ones among them; each means that transformers cannot read it
        raise UserError(f"{directory}: transformers cannot read the tokenizer ({_first_line(error)})") from None
    if not isinstance(tokenizer, Tokenizer):
        raise UserError(f"{directory}: a {type(found).__name__}, which the tokenizers library cannot hold; {_WANTED}")
    return tokenizer, longest


_WANTED = "a BERT's WordPiece tokenizer is wanted"


def _check(tokenizer: Tokenizer, directory: Path) -> None:
    model = tokenizer.model
    if not isinstance(model, WordPiece):
        raise UserError(f"{directory}: its tokenizer is of kind {type(model).__name__}; {_WANTED}")
    if model.continuing_subword_prefix != "##":
        prefix = model.continuing_subword_prefix
        raise UserError(f"{directory}: pieces inside a word begin with {prefix!r} in its tokenizer; '##' is wanted")
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if model.token_to_id(model.unk_token) is None and model.unk_token not in missing:
        missing.append(model.unk_token)
    if missing:
        raise UserError(f"{directory}: the vocabulary lacks {', '.join(missing)}")


def _config(directory: Path) -> dict[str, Any]:
    path = directory / "tokenizer_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({_first_line(error)})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: not a JSON object")
    return found


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
