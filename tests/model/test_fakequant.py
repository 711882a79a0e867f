"""The INT8 grid, its gradient to what it rounds, and LSQ's gradient to its scale, worked by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.model.fakequant import fake_quantize, quantize_activation, quantize_weight, weight_scale


def lsq(x: np.ndarray, scale: float, incoming: np.ndarray, low: int) -> float:
    """Esser et al. 2020, equation 3, value by value, and the gradient scale of section 2.2 left out."""
    total = 0.0
    for value, weight in zip(x.ravel() / scale, incoming.ravel(), strict=True):
        if value <= low:
            slope = low
        elif value >= 127:
            slope = 127
        else:
            slope = -value + np.round(value)
        total += weight * slope
    return total


def test_an_activation_scale_has_the_gradient_of_the_paper():
    random = np.random.default_rng(0)
    x = random.normal(size=(3, 5, 4)).astype(np.float32)
    x[0, 0] = [9.0, -9.0, 0.0, 0.02 * 127.25]  # beyond both ends, at zero, and clipped without being rounded away
    incoming = random.normal(size=x.shape).astype(np.float32)
    found = jax.grad(lambda scale: (quantize_activation(x, scale) * incoming).sum())(jnp.float32(0.02))
    wanted = lsq(x.astype(np.float64), np.float64(np.float32(0.02)), incoming, -128) / np.sqrt(5 * 4 * 127)
    assert float(found) == pytest.approx(wanted, rel=1e-4)


def test_every_feature_has_its_own():
    random = np.random.default_rng(3)
    x, scale = random.normal(size=(3, 5, 4)).astype(np.float32), random.uniform(0.005, 0.03, 4).astype(np.float32)
    incoming = random.normal(size=x.shape).astype(np.float32)
    found = jax.grad(lambda scale: (quantize_activation(x, scale) * incoming).sum())(jnp.asarray(scale))
    for feature in range(4):
        part = (x[..., feature].astype(np.float64), float(scale[feature]), incoming[..., feature])
        assert float(found[feature]) == pytest.approx(lsq(*part, -128) / np.sqrt(5 * 127), rel=1e-4, abs=1e-5)


def test_every_channel_of_a_weight_has_its_own():
    random = np.random.default_rng(1)
    weight, scale = random.normal(size=(6, 8)).astype(np.float32), random.uniform(0.01, 0.05, 6).astype(np.float32)
    incoming = random.normal(size=weight.shape).astype(np.float32)
    one = jnp.float32(0.1)  # its input has one scale
    found = jax.grad(lambda scale: (quantize_weight(weight, scale, one) * incoming).sum())(jnp.asarray(scale))
    for channel in range(6):
        wanted = lsq(weight[channel].astype(np.float64), float(scale[channel]), incoming[channel], -127)
        assert float(found[channel]) == pytest.approx(wanted / np.sqrt(8 * 127), rel=1e-4, abs=1e-5)


def test_a_scale_descends_to_where_rounding_loses_least():
    x = np.random.default_rng(2).normal(size=(4, 500)).astype(np.float32)

    def error(scale: jax.Array) -> jax.Array:
        return jnp.square(fake_quantize(x, scale, -128) - x).mean()

    for start in (0.005, 0.2):  # clips nearly everything; wastes nearly all steps
        scale = jnp.float32(start)
        for _ in range(300):
            scale = scale * jnp.exp(-0.05 * jnp.sign(jax.grad(error)(scale)))
        assert float(error(scale)) < 0.05 * float(error(jnp.float32(start)))


def test_the_grid_rounds_half_to_even_clips_and_passes_gradients_inside():
    x, scale = jnp.array([0.25, 0.75, 1.24, -0.25, 64.0, -70.0]), jnp.float32(0.5)
    np.testing.assert_array_equal(fake_quantize(x, scale, -128), [0.0, 1.0, 1.0, 0.0, 63.5, -64.0])
    value, gradient = jax.value_and_grad(lambda x: fake_quantize(x, scale, -128).sum())(x)
    np.testing.assert_array_equal(gradient, [1, 1, 1, 1, 0, 0])
    assert value == 1.5  # clipped where a gradient is taken too
    weight = jnp.array([[0.0, 0.0], [1.27, -2.54], [0.0, 0.127]])
    np.testing.assert_allclose(weight_scale(weight, scale), np.float32([1.0, 0.02, 0.001]), rtol=1e-6)
    wide_first = jnp.array([3.0, 0.75])
    np.testing.assert_allclose(weight_scale(weight, wide_first), np.float32([1.0, 0.01, 0.00025]), rtol=1e-6)
