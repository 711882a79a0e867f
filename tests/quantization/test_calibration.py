"""Calibrators on histograms worked by hand, and recorded ranges against the activations themselves."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.dataset import Dataset, from_examples
from bertjax.data.squad import Answer, Example
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import WindowSettings
from bertjax.model.bert import BertForQuestionAnswering, as_params, bind, init_params
from bertjax.model.inference import Evaluator
from bertjax.modeldir import store
from bertjax.modeldir.tensors import activation_scales, question_answering_shapes, scale_shapes
from bertjax.quantization.calibrate import NARROWEST, quantize, record_ranges
from bertjax.quantization.calibrators import BINS, CALIBRATORS, choose_amax
from tests.models import PLACEMENTS, QUANTIZATION, tiny_config, write_random_model


def _dataset(model: Path) -> Dataset:
    """Five windows of different lengths."""
    examples = [
        Example(
            id=str(i),
            question="who",
            context="the king of the river " * (i + 1),
            answers=(Answer(text="king", start=4),),
        )
        for i in range(5)
    ]
    return from_examples(examples, load_tokenizer(model), WindowSettings(max_seq=60, max_query=8))


def _histogram(values: np.ndarray) -> tuple[np.ndarray, float]:
    largest = float(np.abs(values).max())
    return np.histogram(np.abs(values), BINS, (0, largest))[0], largest


def test_max_keeps_everything_and_percentile_drops_the_outliers():
    counts = np.zeros(BINS)
    counts[99], counts[-1] = 99_999, 1
    assert choose_amax(counts, 2048.0, "max") == 2048.0
    assert choose_amax(counts, 2048.0, "percentile") == 100.0
    counts[-1] = 100
    assert choose_amax(counts, 2048.0, "percentile") == 2048.0


def test_mse_finds_the_threshold_that_a_direct_search_finds():
    values = np.random.default_rng(0).standard_t(3, 200_000)
    counts, largest = _histogram(values)

    def error(amax: float) -> float:
        scale = amax / 127
        return float(np.square(values - np.clip(np.round(values / scale), -127, 127) * scale).mean())

    found = choose_amax(counts, largest, "mse")
    least = min(error(amax) for amax in np.linspace(0.02, 1, 150) * largest)
    assert error(found) <= 1.02 * least
    assert error(found) < 0.6 * error(largest)


def test_entropy_clips_a_long_thin_tail_and_keeps_a_flat_distribution():
    random = np.random.default_rng(1)
    tailed = np.concatenate([random.normal(0, 1, 100_000), [80.0]])
    assert choose_amax(*_histogram(tailed), "entropy") < 20
    flat = random.uniform(0, 10, 400_000)
    assert choose_amax(*_histogram(flat), "entropy") > 9


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), calibrator=st.sampled_from(CALIBRATORS))
def test_thresholds_lie_inside_the_range_and_scale_with_the_data(seed: int, scale: float, calibrator: str):
    counts, largest = _histogram(np.random.default_rng(seed).normal(0, 1, 5000))
    amax = choose_amax(counts, largest, calibrator)
    assert 0 < amax <= largest
    assert choose_amax(counts, largest * scale, calibrator) == pytest.approx(amax * scale)


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_an_input_that_is_always_zero_gets_scale_one(calibrator: str):
    assert choose_amax(np.ones(BINS), 0.0, calibrator) == 127.0


def test_ranges_are_those_of_the_activations_and_padding_does_not_count(tmp_path):
    config = tiny_config(((2, 64), (0, 32), (1, 0)), quantized=False)
    write_random_model(tmp_path / "m", config, seed=0)
    dataset = _dataset(tmp_path / "m")
    params = init_params(BertForQuestionAnswering, config, seed=2)
    quantized = dataclasses.replace(config, quantization=PLACEMENTS[-1])
    ranges = record_ranges(quantized, params, dataset, seed=0)
    shapes = scale_shapes(quantized)
    largest: dict[str, np.ndarray] = {}
    tokens = 0
    for window in dataset.windows:  # one by one there is no padding
        ids = window.input_ids[None]
        types = (np.arange(len(window)) >= window.context_start).astype(np.int32)[None]
        seen: dict[str, np.ndarray] = {}
        bind(BertForQuestionAnswering, config, params)(ids, np.ones_like(ids), types, observe=seen.__setitem__)
        tokens += len(window)
        for name, value in seen.items():
            one = np.abs(value).max(axis=(0, 1) if shapes[name] else None)
            largest[name] = np.maximum(largest.get(name, 0.0), one)
    assert ranges.largest.keys() == set(activation_scales(quantized))
    for name, value in largest.items():
        wide = np.maximum(value, NARROWEST * value.max())
        assert ranges.largest[name].shape == shapes[name]
        np.testing.assert_allclose(ranges.largest[name], wide, rtol=1e-4)
        largest[name] = wide
    assert ranges.counts["bert.encoder.layer.0.attention.self.input_scale"].sum() == tokens * config.hidden_size
    scaled = quantize(quantized, params, ranges)
    assert {name: value.shape for name, value in scaled.items()} == question_answering_shapes(quantized)
    for name in ("layer.0.output.dense.input_scale", "layer.2.attention.self.weights_scale"):
        name = f"bert.encoder.{name}"
        np.testing.assert_allclose(scaled[name], largest[name] / 127, rtol=1e-4)


def test_with_scales_for_features_a_wide_one_costs_the_others_nothing(tmp_path):
    config = tiny_config(((2, 64), (1, 32)), quantized=False)
    write_random_model(tmp_path / "m", config, seed=0)
    arrays = store.load_question_answering(tmp_path / "m").tensors
    for block in ("attention.output", "output"):  # both LayerNorms give one feature 40 times the others
        arrays[f"bert.encoder.layer.0.{block}.LayerNorm.weight"][7] = 40.0
    params, dataset = as_params(arrays), _dataset(tmp_path / "m")
    exact = Evaluator(config, dataset)(params)

    def error(scales: str) -> float:
        record = dataclasses.replace(QUANTIZATION, activation_scales=scales)
        quantized = dataclasses.replace(config, quantization=record)
        ranges = record_ranges(quantized, params, dataset, seed=0)
        found = Evaluator(quantized, dataset)(quantize(quantized, params, ranges))
        pairs = zip(found.start_logits + found.end_logits, exact.start_logits + exact.end_logits, strict=True)
        return float(np.mean([np.square(a - b).mean() for a, b in pairs]))

    assert error("feature") < 0.2 * error("tensor")
