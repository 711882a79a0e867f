"""Models that nobody trained: random weights for tests and timing, and INT8 scales without calibration."""

from __future__ import annotations

import dataclasses

import numpy as np

from bertjax.modeldir.config import BertConfig, Quantization
from bertjax.modeldir.store import StoredModel
from bertjax.modeldir.tensors import (
    activation_scales,
    dense_sites,
    feature_factors,
    question_answering_shapes,
    scale_shapes,
)
from bertjax.modeldir.weights import Tensors

UNCALIBRATED = Quantization.calibrated((), calibrator="max", calibration_examples=0)  # what config.json then records


def random_model(config: BertConfig, *, seed: int = 0) -> StoredModel:
    """A span-predicting model with random weights, float32, whose activations stay of order 1 through the layers.

    The scales of a quantized one fit its activations, and some values are clipped.
    """
    rng = np.random.default_rng(seed)
    found: Tensors = {}
    for name, shape in question_answering_shapes(dataclasses.replace(config, quantization=None)).items():
        if name.endswith("LayerNorm.weight"):
            value = rng.uniform(0.5, 1.5, shape)
        elif name.endswith("bias"):
            value = rng.normal(0.0, 0.1, shape)
        elif "embeddings" in name:
            value = rng.normal(0.0, 0.5, shape)
        else:
            value = rng.normal(0.0, 1.5 / np.sqrt(shape[1]), shape)
        found[name] = value.astype(np.float32)
    if config.quantization:
        shapes = scale_shapes(config)
        for name in activation_scales(config):
            # The softmax's output lies between 0 and 1, everything else is of order 1.
            low, high = (0.6, 1.0) if name.endswith("weights_scale") else (1.5, 3.5)
            found[name] = np.asarray(rng.uniform(low, high, shapes[name]) / 127, np.float32)
        found |= _weight_scales(config, found)
    return StoredModel(config=config, tensors=found)


def uncalibrated(model: StoredModel, quantization: Quantization) -> StoredModel:
    """A floating-point model on an INT8 grid without calibration: good for timing, not for answers.

    Every activation gets the same scale, which holds three standard deviations of a LayerNorm's output.
    """
    config = dataclasses.replace(model.config, quantization=quantization)
    shapes = scale_shapes(config)
    found = model.tensors | {name: np.full(shapes[name], 3 / 127, np.float32) for name in activation_scales(config)}
    return StoredModel(config=config, tensors=found | _weight_scales(config, found))


def _weight_scales(config: BertConfig, tensors: Tensors) -> Tensors:
    """`amax / 127` of each output channel, 1 for one that is all zero; `tensors` holds the activations' scales."""
    found: Tensors = {}
    for site in dense_sites(config):
        folded = tensors[site.weight] * feature_factors(tensors[site.input_scale])
        amax = np.abs(folded).max(axis=1)
        found[site.weight_scale] = (np.where(amax > 0, amax, 127.0) / 127).astype(np.float32)
    return found
