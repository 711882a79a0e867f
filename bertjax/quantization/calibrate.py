"""Post-training quantization: run a floating-point model over examples, record the ranges, set the scales."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from bertjax.accelerator import padding_multiple
from bertjax.config import BertConfig
from bertjax.data import batching
from bertjax.data.dataset import Dataset
from bertjax.fakequant import weight_scale
from bertjax.model import BertForQuestionAnswering, Params, bind
from bertjax.quantization.calibrators import BINS, choose_amax
from bertjax.tensors import activation_scales, dense_sites

BATCH_TOKENS = 2048
LENGTH_MULTIPLE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ranges:
    """Histograms of magnitudes by the name of the scale: `counts[name]` [BINS] over [0, `largest[name]`]."""

    counts: Mapping[str, np.ndarray]
    largest: Mapping[str, float]


def record_ranges(config: BertConfig, params: Params, dataset: Dataset, *, seed: int) -> Ranges:
    """Histograms of every activation that has a scale, over the record's number of windows; padding is left out.

    Two passes: the first finds the largest magnitudes, the second fills the bins.

    Args:
      config: with `quantization` set; the model itself runs in floating point.
      params: without scales.
    """
    chosen = np.random.default_rng(seed).permutation(len(dataset.windows))[: config.quantization.calibration_examples]
    names = activation_scales(config)
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
    largest: dict[str, float] = {}
    for batch in bar(desc="calibrate 1/2"):
        real = batch["attention_mask"] > 0
        for name, value in inputs(params, batch).items():
            largest[name] = max(largest.get(name, 0.0), float(np.asarray(value)[real].max()))
    counts = {name: np.zeros(BINS) for name in largest}
    for batch in bar(desc="calibrate 2/2"):
        real = batch["attention_mask"] > 0
        for name, value in inputs(params, batch).items():
            counts[name] += _histogram(np.asarray(value)[real].ravel(), largest[name])
    return Ranges(counts=counts, largest=largest)


def _histogram(magnitudes: np.ndarray, largest: float) -> np.ndarray:
    if largest == 0.0:
        return np.bincount([0], weights=[len(magnitudes)], minlength=BINS)
    bins = np.minimum((magnitudes * (BINS / largest)).astype(np.int32), BINS - 1)
    return np.bincount(bins, minlength=BINS).astype(np.float64)


def quantize(config: BertConfig, params: Params, ranges: Ranges) -> Params:
    """A floating-point model's arrays with the scales beside them that `config.quantization` asks for."""
    scaled = dict(params) | weight_scales(config, params)
    for name in activation_scales(config):
        amax = choose_amax(ranges.counts[name], ranges.largest[name], config.quantization.calibrator)
        scaled[name] = jnp.float32(np.float32(amax) / np.float32(127.0))
    return scaled


def weight_scales(config: BertConfig, params: Mapping[str, jax.Array]) -> Params:
    """The scale of every output channel of every quantized weight, by name, float32."""
    return {site.weight_scale: weight_scale(params[site.weight]) for site in dense_sites(config)}
