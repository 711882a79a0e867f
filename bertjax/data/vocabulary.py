"""Training a WordPiece vocabulary on text, and writing it as a Hugging Face tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import BertWordPieceTokenizer

from bertjax.data.tokenizer import SPECIAL_TOKENS, tokenizer_files
from bertjax.files import write_aside

_PRINTABLE = "".join(chr(code) for code in range(33, 127))


def write_vocabulary(directory: Path, texts: Iterable[str], *, vocab_size: int) -> int:
    """Train a lower-casing WordPiece vocabulary and write `tokenizer.json` and `tokenizer_config.json`.

    Every printable ASCII character is in it, at the beginning of words and inside, so any such text can be spelled.
    The same texts in the same order give the same vocabulary.

    Returns:
      The number of entries, at most `vocab_size` unless the characters alone are more.

    Raises:
      UserError: the directory cannot be written.
      WorkFailed: the disk is full.
    """
    # The trainer numbers inner characters in the order in which it happens to meet them, and breaks ties by number.
    # Given beforehand, as if they were special tokens, they always come in the same order.
    letters = sorted(set(_PRINTABLE.lower()))
    inner = [f"##{letter}" for letter in letters if letter.isalnum()]
    trained = BertWordPieceTokenizer(lowercase=True)
    trained.train_from_iterator(
        texts,
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_TOKENS, *inner],
        initial_alphabet=letters,
        show_progress=False,
    )
    vocabulary = trained.get_vocab()
    tokenizer = BertWordPieceTokenizer(vocabulary, lowercase=True)  # anew: here those pieces are ordinary ones
    with write_aside(directory) as aside:
        for name, content in tokenizer_files(tokenizer._tokenizer, longest=512).items():
            (aside / name).write_text(content, encoding="utf-8")
    return tokenizer.get_vocab_size()
