"""Whole-word masking: the inputs and labels of a masked language model, in NumPy.

All pieces of a chosen word are masked together (the whole-word-masking BERT of google-research/bert, May 2019). Of the
chosen words 80 % are replaced by [MASK], 10 % by random pieces and 10 % are left as they are (Devlin et al. 2019).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from bertjax.data.batching import Batch
from bertjax.data.tokenizer import SPECIAL_TOKENS

MASKED_SHARE = 0.15  # of the words


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """The entries of a tokenizer that continue a word, and those that are special or not there."""

    continues: np.ndarray  # bool [size]
    special: np.ndarray  # bool [size]
    mask_id: int

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Read the entries of a tokenizer whose continuing pieces begin with ##."""
        size = 1 + max(tokenizer.get_vocab().values())  # added tokens may leave gaps before them
        tokens = [tokenizer.id_to_token(index) for index in range(size)]
        mask_id = tokenizer.token_to_id("[MASK]")
        assert mask_id is not None, "load_tokenizer refuses a vocabulary without [MASK]"
        return cls(
            continues=np.array([token is not None and token.startswith("##") for token in tokens]),
            special=np.array([token is None or token in SPECIAL_TOKENS for token in tokens]),
            mask_id=mask_id,
        )

    def has_word(self, ids: np.ndarray) -> bool:
        """Whether a sequence, int [n], holds a word that can be masked."""
        return bool((~self.special[ids] & ~self.continues[ids]).any())


def masked_batch(
    rows: Sequence[np.ndarray], vocabulary: Vocabulary, *, length: int, slots: int, random: np.random.Generator
) -> Batch:
    """Mask and pad token sequences.

    Args:
      rows: int32 arrays of at most `length` tokens, special tokens included.
      slots: room for masked tokens in a row; a word that no longer fits is left alone.

    Returns:
      `input_ids`, `attention_mask` int32 [B, length]; `positions`, `labels` int32 [B, slots]; `weights` float32
      [B, slots], 1 for a masked token and 0 for an empty slot.
    """
    shape = (len(rows), length)
    batch = {"input_ids": np.zeros(shape, np.int32), "attention_mask": np.zeros(shape, np.int32)}
    batch |= {name: np.zeros((len(rows), slots), np.int32) for name in ("positions", "labels")}
    batch["weights"] = np.zeros((len(rows), slots), np.float32)
    for row, ids in enumerate(rows):
        masked, chosen = _mask(ids, vocabulary, slots, random)
        batch["input_ids"][row, : len(ids)], batch["attention_mask"][row, : len(ids)] = masked, 1
        batch["positions"][row, : len(chosen)], batch["labels"][row, : len(chosen)] = chosen, ids[chosen]
        batch["weights"][row, : len(chosen)] = 1.0
    return batch


def _mask(
    ids: np.ndarray, vocabulary: Vocabulary, slots: int, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The sequence with words masked, and the sorted positions of their tokens."""
    words = _words(ids, vocabulary)
    wanted = max(1, round(MASKED_SHARE * len(words)))
    masked = ids.copy()
    chosen: list[int] = []
    for index in random.permutation(len(words))[:wanted]:
        begin, end = words[index]
        if len(chosen) + end - begin > slots:
            continue
        chosen += range(begin, end)
        draw = random.random()
        if draw < 0.8:
            masked[begin:end] = vocabulary.mask_id
        elif draw < 0.9:
            masked[begin:end] = random.choice(np.flatnonzero(~vocabulary.special), end - begin)
    return masked, np.array(sorted(chosen), np.int32)


def _words(ids: np.ndarray, vocabulary: Vocabulary) -> list[tuple[int, int]]:
    """(begin, end) of every word: a piece that is not special and continues nothing, with those that continue it."""
    special, continues = vocabulary.special[ids], vocabulary.continues[ids]
    begins = np.flatnonzero(~special & ~continues)
    words = []
    for begin in begins:
        end = begin + 1
        while end < len(ids) and continues[end]:
            end += 1
        words.append((int(begin), int(end)))
    return words
