"""Tiny model directories with random weights, for tests that need a model but not a trained one."""

from __future__ import annotations

import dataclasses
import json
import string
import tempfile
from pathlib import Path

from bertjax.data.tokenizer import SPECIAL_TOKENS
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig, LayerShape, Quantization
from bertjax.modeldir.untrained import random_model

QUANTIZATION = Quantization.calibrated((), calibrator="max", calibration_examples=8)
PLACEMENTS = (
    QUANTIZATION,
    dataclasses.replace(QUANTIZATION, activation_scales="tensor"),
    dataclasses.replace(QUANTIZATION, activation_scales="tensor", residual=True),
    dataclasses.replace(QUANTIZATION, attention=True),
    dataclasses.replace(QUANTIZATION, residual=True),
    dataclasses.replace(QUANTIZATION, attention=True, residual=True),
)

_WORDS = ("the", "of", "and", "in", "to", "was", "is", "by", "who", "what", "when", "where", "city", "river", "king")


def tiny_config(
    layers: tuple[tuple[int, int], ...] = ((2, 64), (1, 32)),
    *,
    quantized: bool | Quantization = True,
    head_size: int = 16,
) -> BertConfig:
    """A config with `layers` as (heads, ffn) pairs, a hidden size of two heads, and `vocabulary()`."""
    if isinstance(quantized, bool):
        quantized = QUANTIZATION if quantized else None
    return BertConfig(
        vocab_size=len(vocabulary()),
        hidden_size=2 * head_size,
        head_size=head_size,
        layers=tuple(LayerShape(heads=heads, ffn=ffn) for heads, ffn in layers),
        max_position_embeddings=512,
        quantization=quantized,
    )


def vocabulary() -> list[str]:
    """A WordPiece vocabulary that covers any lower-case ASCII text."""
    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *(f"##{letter}" for letter in letters), *string.punctuation]
    return list(dict.fromkeys([*SPECIAL_TOKENS, *pieces, *_WORDS]))


def write_random_model(directory: Path, config: BertConfig, *, seed: int) -> None:
    """Write a complete span-predicting model directory: `random_model` and a lower-casing tokenizer.

    The vocabulary is padded with unused entries up to `config.vocab_size`, which has to hold `vocabulary()`.
    """
    words = vocabulary()
    assert config.vocab_size >= len(words), f"vocab_size must be at least {len(words)}"
    words += [f"[unused{index}]" for index in range(config.vocab_size - len(words))]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(words) + "\n")
        (Path(folder) / "tokenizer_config.json").write_text(
            json.dumps({"do_lower_case": True, "tokenizer_class": "BertTokenizer"})
        )
        store.save(directory, random_model(config, seed=seed), tokenizer_from=Path(folder))
