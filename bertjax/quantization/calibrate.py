"""Post-training quantization: the ranges of a model's activations over training windows, and the scales from them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from bertjax.data import batching
from bertjax.data.dataset import Dataset
from bertjax.model.bert import BertForQuestionAnswering, DeviceBatch, Model, bind
from bertjax.model.fakequant import weight_scales
from bertjax.model.inference import padding_multiple
from bertjax.modeldir.config import Quantization
from bertjax.modeldir.tensors import activation_scales, scale_shapes
from bertjax.quantization.calibrators import BINS, Calibrator, choose_amax

# The least range of a feature, as a share of the widest one's. A finer grid gains nothing, and the weights of a feature
# that calibration hardly saw would all but vanish from their own grid.
NARROWEST = 0.2
BATCH_TOKENS = 2048
LENGTH_MULTIPLE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranges:
    """The magnitudes of activations, by the name of their scale.

    `largest[name]`: the largest one, float32 with the shape of the scale: of the tensor, or of each feature and then at
    least `NARROWEST` times the widest feature's. `counts[name]`: a histogram [BINS] over [0, 1] of magnitudes divided
    by the largest.
    """

    counts: Mapping[str, np.ndarray]
    largest: Mapping[str, np.ndarray]


def record_ranges(model: Model, quantization: Quantization, dataset: Dataset, *, seed: int) -> Ranges:
    """Histograms of every activation that gets a scale, over random windows of `dataset`; padding is left out.

    Two passes: the first finds the largest magnitudes, the second fills the bins.

    Args:
      model: in floating point.
      quantization: the record of the model to come: which activations get scales, and the number of windows.
    """
    chosen = np.random.default_rng(seed).permutation(len(dataset.windows))[: quantization.calibration_examples]
    config = dataclasses.replace(model.config, quantization=quantization)
    names, shapes = activation_scales(config), scale_shapes(config)

    @jax.jit
    def inputs(model: Model, batch: DeviceBatch) -> dict[str, jax.Array]:
        seen: dict[str, jax.Array] = {}
        module = bind(BertForQuestionAnswering, model)
        module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], observe=seen.__setitem__)
        return {name: jnp.abs(seen[name]) for name in names}

    batches = batching.filled_batches(
        dataset.windows,
        dataset.lengths,
        chosen,
        tokens=BATCH_TOKENS,
        multiple=padding_multiple(LENGTH_MULTIPLE, dataset.longest),
        longest=dataset.longest,
        pad_id=config.pad_token_id,
    )
    bar = functools.partial(tqdm, batches, unit="batch", dynamic_ncols=True, leave=False)
    largest = {name: np.zeros(shapes[name], np.float32) for name in names}
    for batch in bar(desc="calibrate 1/2"):
        real = batch["attention_mask"] > 0
        for name, value in inputs(model, batch).items():
            seen = np.asarray(value)[real]
            largest[name] = np.maximum(largest[name], seen.max(axis=0) if shapes[name] else seen.max())
    largest = {name: np.maximum(value, NARROWEST * value.max()) for name, value in largest.items()}
    counts = {name: np.zeros(BINS) for name in largest}
    for batch in bar(desc="calibrate 2/2"):
        real = batch["attention_mask"] > 0
        for name, value in inputs(model, batch).items():
            counts[name] += _histogram(np.asarray(value)[real], largest[name])
    return Ranges(counts=counts, largest=largest)


def _histogram(magnitudes: np.ndarray, largest: np.ndarray) -> np.ndarray:
    if largest.max() == 0.0:
        return np.bincount([0], weights=[magnitudes.size], minlength=BINS)
    bins = np.minimum((magnitudes * (BINS / largest)).astype(np.int32), BINS - 1)
    return np.bincount(bins.ravel(), minlength=BINS).astype(np.float64)


def quantize(model: Model, quantization: Quantization, ranges: Ranges) -> Model:
    """A floating-point model on its INT8 grid: the same weights, and the scales that follow from its ranges.

    Args:
      ranges: those that `record_ranges` gave for this model and this record.
    """
    config = dataclasses.replace(model.config, quantization=quantization)
    scaled = dict(model.params)
    for name in activation_scales(config):
        amax = _amax(ranges.counts[name], ranges.largest[name], quantization.calibrator)
        scaled[name] = jnp.asarray(amax / np.float32(127.0), jnp.float32)
    return Model(config=config, params=scaled | weight_scales(config, scaled))


def _amax(counts: np.ndarray, largest: np.ndarray, calibrator: Calibrator) -> np.ndarray:
    """The clipping thresholds, float32 with the shape of `largest`: all the same share of it."""
    if largest.max() == 0.0:
        return np.full(largest.shape, choose_amax(counts, 0.0, calibrator), np.float32)
    return np.float32(choose_amax(counts, 1.0, calibrator)) * largest
