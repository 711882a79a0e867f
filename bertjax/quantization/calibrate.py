"""Post-training quantization: run a floating-point model over examples, record the ranges, set the scales."""

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
from bertjax.model.bert import BertForQuestionAnswering, Params, bind
from bertjax.model.fakequant import weight_scales
from bertjax.model.inference import padding_multiple
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.tensors import activation_scales, scale_shapes
from bertjax.quantization.calibrators import BINS, Calibrator, choose_amax

NARROWEST = 0.2  # of the widest feature's range, kept by one that is narrower: a finer grid than that gains nothing,
# and the weights of a feature that calibration hardly saw would all but vanish from theirs
BATCH_TOKENS = 2048
LENGTH_MULTIPLE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranges:
    """Magnitudes by the name of the scale.

    `largest[name]` is the largest one, float32 with the shape of the scale: of the tensor or of each feature, there at
    least `NARROWEST` times the widest feature's. `counts[name]` is a histogram [BINS] over [0, 1] of magnitudes as
    shares of it.
    """

    counts: Mapping[str, np.ndarray]
    largest: Mapping[str, np.ndarray]


def record_ranges(config: BertConfig, params: Params, dataset: Dataset, *, seed: int) -> Ranges:
    """Histograms of every activation that has a scale, over the record's number of windows; padding is left out.

    Two passes: the first finds the largest magnitudes, the second fills the bins.

    Args:
      config: with `quantization` set; the model itself runs in floating point.
      params: without scales.
    """
    chosen = np.random.default_rng(seed).permutation(len(dataset.windows))[: config.quantization.calibration_examples]
    names = activation_scales(config)
    shapes = scale_shapes(config)
    config = dataclasses.replace(config, quantization=None)

    @jax.jit
    def inputs(params: Params, batch: batching.Batch) -> dict[str, jax.Array]:
        seen: dict[str, jax.Array] = {}
        module = bind(BertForQuestionAnswering, config, params)
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
        for name, value in inputs(params, batch).items():
            seen = np.asarray(value)[real]
            largest[name] = np.maximum(largest[name], seen.max(axis=0) if shapes[name] else seen.max())
    largest = {name: np.maximum(value, NARROWEST * value.max()) for name, value in largest.items()}
    counts = {name: np.zeros(BINS) for name in largest}
    for batch in bar(desc="calibrate 2/2"):
        real = batch["attention_mask"] > 0
        for name, value in inputs(params, batch).items():
            counts[name] += _histogram(np.asarray(value)[real], largest[name])
    return Ranges(counts=counts, largest=largest)


def _histogram(magnitudes: np.ndarray, largest: np.ndarray) -> np.ndarray:
    if largest.max() == 0.0:
        return np.bincount([0], weights=[magnitudes.size], minlength=BINS)
    bins = np.minimum((magnitudes * (BINS / largest)).astype(np.int32), BINS - 1)
    return np.bincount(bins.ravel(), minlength=BINS).astype(np.float64)


def quantize(config: BertConfig, params: Params, ranges: Ranges) -> Params:
    """A floating-point model's arrays with the scales beside them that `config.quantization` asks for."""
    scaled = dict(params)
    for name in activation_scales(config):
        amax = _amax(ranges.counts[name], ranges.largest[name], config.quantization.calibrator)
        scaled[name] = jnp.asarray(amax / np.float32(127.0), jnp.float32)
    return scaled | weight_scales(config, scaled)


def _amax(counts: np.ndarray, largest: np.ndarray, calibrator: Calibrator) -> np.ndarray:
    """The clipping thresholds, float32 with the shape of `largest`: all the same share of it."""
    if largest.max() == 0.0:
        return np.full(largest.shape, choose_amax(counts, 0.0, calibrator), np.float32)
    return np.float32(choose_amax(counts, 1.0, calibrator)) * largest
