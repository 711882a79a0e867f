"""Calibrators on histograms worked by hand, and recorded ranges against the activations themselves."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from bertjax.data.dataset import Dataset, from_examples
from bertjax.data.squad import Answer, Example
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import WindowSettings
from bertjax.model.bert import BertForQuestionAnswering, Model, bind, init_model
from bertjax.model.inference import Evaluator
from bertjax.modeldir import store
from bertjax.modeldir.tensors import activation_scales, dense_sites, question_answering_shapes, scale_shapes
from bertjax.quantization import calibrate
from bertjax.quantization.calibrate import quantize, record_ranges
from bertjax.quantization.calibrators import BINS, CALIBRATORS, choose_amax
from tests.models import PLACEMENTS, QUANTIZATION, tiny_config, write_random_model


def _dataset(model: Path, *, windows: int) -> Dataset:
    """Windows of different lengths."""
    examples = [
        Example(
            id=str(i),
            question="who",
            context="the king of the river " * (i + 1),
            answers=(Answer(text="king", start=4),),
        )
        for i in range(windows)
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


def _by_squared_error(counts: np.ndarray, largest: float) -> float:
    """The best of the thresholds that are multiples of 1/200 of the range, each bin taken at its middle."""
    middles = (np.arange(BINS) + 0.5) * largest / BINS

    def error(amax: float) -> float:
        return float((counts * (middles - np.clip(np.round(middles / amax * 127), 0, 127) * amax / 127) ** 2).sum())

    return min((share * largest for share in np.arange(10, 201) / 200), key=error)


def _by_divergence(counts: np.ndarray, largest: float) -> float:
    """TensorRT's entropy calibration as its authors describe it, level by level."""
    counts = np.concatenate([[0.0], counts[1:]])
    best = np.inf, BINS
    for kept in range(128, BINS + 1, 16):
        given, read = counts[:kept].copy(), np.zeros(kept)
        given[-1] += counts[kept:].sum()
        edges = -(-np.arange(129) * kept // 128)
        for begin, end in itertools.pairwise(edges):
            filled = counts[begin:end] > 0
            if filled.any():
                read[begin:end][filled] = counts[begin:end].sum() / filled.sum()
        if given.any():
            given, read = given / given.sum(), read / (read.sum() or 1.0)
            read[(given > 0) & (read == 0)] = 1e-4 / kept
            best = min(best, (rel_entr(given, read).sum(), kept))
    return largest * best[1] / BINS


def _histograms() -> dict[str, np.ndarray]:
    """Counts of every kind: smooth and sparse, with and without a tail, far from zero, and nothing but zeros."""
    random = np.random.default_rng(0)
    found = {
        "a normal distribution": _histogram(random.normal(size=20_000))[0],
        "few values": _histogram(random.normal(size=300))[0],
        "long tails": _histogram(random.standard_t(3, 5000))[0],
        "an outlier": _histogram(np.append(random.normal(size=5000), 40.0))[0],
        "a flat distribution": _histogram(random.uniform(0, 10, 100_000))[0],
        "far from zero": np.zeros(BINS),
        "all in the first bin": np.eye(1, BINS)[0] * 7,
    }
    found["far from zero"][[1300, 1301, 1790, 2000]] = 3, 50, 20, 1
    return found


@pytest.mark.parametrize("counts", _histograms().values(), ids=_histograms())
def test_mse_and_entropy_take_the_threshold_that_trying_all_of_them_gives(counts: np.ndarray):
    assert choose_amax(counts, 3.0, "mse") == pytest.approx(_by_squared_error(counts, 3.0))
    assert choose_amax(counts, 3.0, "entropy") == pytest.approx(_by_divergence(counts, 3.0))


def test_mse_clips_heavy_tails_and_entropy_a_thin_one():
    random = np.random.default_rng(1)
    values = random.standard_t(3, 200_000)
    counts, largest = _histogram(values)

    def error(amax: float) -> float:
        scale = amax / 127
        return float(np.square(values - np.clip(np.round(values / scale), -127, 127) * scale).mean())

    assert error(choose_amax(counts, largest, "mse")) < 0.6 * error(largest)
    tailed = np.concatenate([random.normal(0, 1, 100_000), [80.0]])
    assert choose_amax(*_histogram(tailed), "entropy") < 20


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


def test_ranges_are_those_of_the_activations_and_padding_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(calibrate, "BATCH_TOKENS", 60)  # a window each
    config = tiny_config(((2, 64), (0, 32), (1, 0)), quantized=False)
    write_random_model(tmp_path / "m", config, seed=0)
    dataset = _dataset(tmp_path / "m", windows=2)
    model = init_model(BertForQuestionAnswering, config, seed=2)
    layer = "bert.encoder.layer"
    for name in (f"{layer}.1.intermediate.dense.weight", f"{layer}.2.attention.self.value.weight"):
        model.params[name] *= 0  # with their biases of 0, what they give is always 0
    always_zero = {
        f"{layer}.1.output.dense.input_scale",
        f"{layer}.2.attention.self.value_scale",
        f"{layer}.2.attention.output.dense.input_scale",
    }
    quantized = dataclasses.replace(config, quantization=PLACEMENTS[-1])
    ranges = record_ranges(model, PLACEMENTS[-1], dataset, seed=0)
    shapes = scale_shapes(quantized)

    @jax.jit
    def told(ids: np.ndarray, types: np.ndarray) -> dict[str, jax.Array]:
        seen: dict[str, jax.Array] = {}
        bind(BertForQuestionAnswering, model)(ids, jnp.ones_like(ids), types, observe=seen.__setitem__)
        return {name: jnp.abs(value).reshape(ids.shape[1], -1, value.shape[-1]) for name, value in seen.items()}

    parts = []
    for window in dataset.windows:  # one by one there is no padding
        types = (np.arange(len(window)) >= window.context_start).astype(np.int32)
        parts.append(told(window.input_ids[None], types[None]))
    assert ranges.largest.keys() == ranges.counts.keys() == set(activation_scales(quantized)) == parts[0].keys()
    scaled = quantize(model, PLACEMENTS[-1], ranges).params
    assert {name: value.shape for name, value in scaled.items()} == question_answering_shapes(quantized)
    by_error = quantize(model, dataclasses.replace(PLACEMENTS[-1], calibrator="mse"), ranges).params
    for name, counts in ranges.counts.items():
        values = [np.asarray(part[name]) for part in parts]
        largest = np.max([value.max(axis=(0, 1) if shapes[name] else None) for value in values], axis=0)
        largest = np.maximum(largest, 0.2 * largest.max())
        np.testing.assert_allclose(ranges.largest[name], largest, rtol=1e-4, err_msg=name)
        assert ranges.largest[name].shape == shapes[name]
        if name in always_zero:
            assert counts[0] == counts.sum() == sum(value.size for value in values)
            assert (scaled[name] == 1).all() and (by_error[name] == 1).all()
            continue
        shares = np.concatenate([(value / largest).ravel() for value in values])
        wanted = np.histogram(np.minimum(shares, 1), BINS, (0, 1))[0]
        kept = slice(1 if name.endswith("weights_scale") else 0, None)  # padded keys get attention weights of 0
        assert np.abs(np.cumsum((counts - wanted)[kept])).max() <= 2, "but for values that lie on the edge of a bin"
        assert counts[-1] and counts[kept].sum() == wanted[kept].sum()
        np.testing.assert_allclose(scaled[name], largest / 127, rtol=1e-4)
        np.testing.assert_allclose(by_error[name], largest * choose_amax(counts, 1.0, "mse") / 127, rtol=1e-4)
    for site in dense_sites(quantized):
        scale = np.asarray(scaled[site.input_scale])
        folded = np.abs(np.asarray(scaled[site.weight]) * (scale / scale.max())).max(axis=1)
        np.testing.assert_allclose(scaled[site.weight_scale], np.where(folded > 0, folded / 127, 1), rtol=1e-5)


def test_calibration_reads_as_many_windows_as_its_record_says_drawn_by_seed(tmp_path: Path):
    config, record = tiny_config(((1, 0),), quantized=False), dataclasses.replace(QUANTIZATION, calibration_examples=2)
    write_random_model(tmp_path / "m", config, seed=0)
    dataset = _dataset(tmp_path / "m", windows=5)
    model = init_model(BertForQuestionAnswering, config, seed=2)
    for seed in (0, 1):
        counts = record_ranges(model, record, dataset, seed=seed).counts[
            "bert.encoder.layer.0.attention.self.input_scale"
        ]
        drawn = np.random.default_rng(seed).permutation(5)[:2]
        assert counts.sum() == dataset.lengths[drawn].sum() * config.hidden_size


def test_with_scales_for_features_a_wide_one_costs_the_others_nothing(tmp_path):
    config = tiny_config(((2, 64), (1, 32)), quantized=False)
    write_random_model(tmp_path / "m", config, seed=0)
    stored = store.load_question_answering(tmp_path / "m")
    for block in ("attention.output", "output"):  # both LayerNorms give one feature 40 times the others
        stored.tensors[f"bert.encoder.layer.0.{block}.LayerNorm.weight"][7] = 40.0
    model, dataset = Model.of(stored), _dataset(tmp_path / "m", windows=5)
    evaluator = Evaluator(dataset)
    exact = evaluator(model)

    def error(scales: str) -> float:
        record = dataclasses.replace(QUANTIZATION, activation_scales=scales)
        ranges = record_ranges(model, record, dataset, seed=0)
        found = evaluator(quantize(model, record, ranges))
        pairs = zip(found.start_logits + found.end_logits, exact.start_logits + exact.end_logits, strict=True)
        return float(np.mean([np.square(a - b).mean() for a, b in pairs]))

    assert error("feature") < 0.2 * error("tensor")
