"""Tiny model directories with random weights, for tests that need a model but not a trained one."""

from __future__ import annotations

import dataclasses
import json
import string
import tempfile
from pathlib import Path

import numpy as np

from bertjax.data.tokenizer import SPECIAL_TOKENS
from bertjax.modeldir import store, tensors
from bertjax.modeldir.config import BertConfig, LayerShape, Quantization

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


def random_tensors(config: BertConfig, *, seed: int) -> store.Tensors:
    """Weights under which activations stay of order 1 through the layers, and scales that fit them, some clipping."""
    rng = np.random.default_rng(seed)
    parameters: store.Tensors = {}
    for name, shape in tensors.question_answering_shapes(config).items():
        if name.endswith("_scale"):
            continue
        if name.endswith("LayerNorm.weight"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            value = rng.normal(0.0, 0.1, shape)
        elif "embeddings" in name:
            value = rng.normal(0.0, 0.5, shape)
        else:
            value = rng.normal(0.0, 1.5 / np.sqrt(shape[1]), shape)
        parameters[name] = value.astype(np.float32)
    if config.quantization:
        shapes = tensors.scale_shapes(config)
        for name in tensors.activation_scales(config):
            # The softmax's output lies between 0 and 1, everything else is of order 1.
            low, high = (0.6, 1.0) if name.endswith("weights_scale") else (1.5, 3.5)
            parameters[name] = np.asarray(rng.uniform(low, high, shapes[name]) / 127, np.float32)
        for site in tensors.dense_sites(config):
            scale = parameters[site.input_scale]
            amax = np.abs(parameters[site.weight] * (scale / scale.max())).max(axis=1)
            parameters[site.weight_scale] = (np.where(amax > 0, amax, 127.0) / 127).astype(np.float32)
    return parameters


def write_random_model(directory: Path, config: BertConfig, *, seed: int) -> None:
    """Write a complete span-predicting model directory: `random_tensors` and a lower-casing tokenizer.

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
        store.save(directory, config, random_tensors(config, seed=seed), tokenizer_from=Path(folder))
