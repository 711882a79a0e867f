"""Loading a model directory's WordPiece tokenizer.

The `tokenizers` library is what `transformers` wraps; used directly it imports in a tenth of a second.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import BertWordPieceTokenizer, Tokenizer

from bertjax.errors import UserError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def load_tokenizer(directory: Path) -> Tokenizer:
    """Read `tokenizer.json`, or else `vocab.txt`, of a model directory. No truncation, no padding.

    Raises:
      UserError: neither file is there, or BERT's special tokens are missing from the vocabulary.
    """
    directory = Path(directory)
    try:
        if (directory / "tokenizer.json").exists():
            tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        elif (directory / "vocab.txt").exists():
            lowercase = _reads_lowercase(directory / "tokenizer_config.json")
            tokenizer = BertWordPieceTokenizer(str(directory / "vocab.txt"), lowercase=lowercase)._tokenizer
        else:
            raise UserError(f"{directory}: no tokenizer.json and no vocab.txt; copy the tokenizer's files there")
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for a broken file
        raise UserError(f"{directory}: the tokenizer's file is broken ({error})") from None
    missing = [token for token in SPECIAL_TOKENS if tokenizer.token_to_id(token) is None]
    if missing:
        raise UserError(f"{directory}: the vocabulary lacks {', '.join(missing)}")
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _reads_lowercase(path: Path) -> bool:
    return json.loads(path.read_text()).get("do_lower_case", True) if path.exists() else True
