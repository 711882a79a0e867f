"""The model's products and their written-out gradients against autodiff of the plain formulas."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.model import ops

LIKE_FLOAT32 = {jnp.float32: 1e-5, jnp.bfloat16: 0.03}  # largest error as a share of the largest value


def _values_and_gradients(f: Callable, arguments: list[jax.Array]) -> list[np.ndarray]:
    """`f` and its gradients for all arguments, weighted at random, in float32."""

    @jax.jit
    def both(*arguments: jax.Array) -> tuple[jax.Array, ...]:
        y, pull = jax.vjp(f, *arguments)
        weights = np.random.default_rng(1).normal(size=y.shape)
        return y, *pull(jnp.asarray(weights, y.dtype))

    return [np.asarray(one, np.float32) for one in both(*arguments)]


def _close(found: list[np.ndarray], wanted: list[np.ndarray], error: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=error * np.abs(theirs).max() + 1e-6)


def _draw(*shapes: tuple[int, ...]) -> list[jax.Array]:
    random = np.random.default_rng(0)
    return [jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows, length, inputs, outputs", [(1, 1, 1, 1), (3, 9, 40, 7), (9, 1, 5, 33)])
def test_dense_is_the_product_that_autodiff_knows(dtype, rows, length, inputs, outputs):
    arguments = _draw((rows, length, inputs), (outputs, inputs), (outputs,))
    narrow = lambda x, *rest: ops.dense(x.astype(dtype), *rest)  # noqa: E731
    wanted = _values_and_gradients(lambda x, w, b: x @ w.T + b, arguments)
    _close(_values_and_gradients(narrow, arguments), wanted, LIKE_FLOAT32[dtype])
    value, pull = jax.eval_shape(lambda *arguments: jax.vjp(narrow, *arguments), *arguments)
    assert value.dtype == dtype
    assert all(one.dtype == jnp.float32 for one in jax.eval_shape(lambda pull, value: pull(value), pull, value))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("rows, heads, length, size", [(1, 1, 1, 1), (3, 2, 33, 8), (2, 3, 5, 32), (1, 2, 2, 1)])
def test_attention_is_the_one_that_autodiff_knows(dtype, rows, heads, length, size):
    arguments = _draw(*[(rows, heads, length, size)] * 3)
    bias = jnp.where(jnp.arange(length) < max(1, length - 2), 0.0, -1e4)[None, None, None]

    def ours(query, key, value):
        query, key, value = (x.astype(dtype) for x in (query, key, value))
        return ops.attention_mix(ops.attention_weights(query, key, bias), value)

    def plain(query, key, value):
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) / np.sqrt(size) + bias
        return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, axis=-1), value)

    weights = jax.eval_shape(
        lambda query, key: ops.attention_weights(query, key, bias), *[arguments[0].astype(dtype)] * 2
    )
    assert (weights.dtype, weights.shape) == (dtype, (rows, heads, length, length))
    wanted = _values_and_gradients(plain, arguments)
    # A gradient that cancels to nothing (one token: all weight is on it) has rounding errors of the terms' size.
    scale = max(np.abs(one).max() for one in wanted)
    for found, plain_one in zip(_values_and_gradients(ours, arguments), wanted, strict=True):
        np.testing.assert_allclose(found, plain_one, rtol=0, atol=LIKE_FLOAT32[dtype] * scale)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_the_exact_one(dtype):
    arguments = [jnp.linspace(-8, 8, 321)]
    wanted = _values_and_gradients(lambda x: jax.nn.gelu(x, approximate=False), arguments)
    _close(_values_and_gradients(lambda x: ops.gelu(x.astype(dtype)), arguments), wanted, LIKE_FLOAT32[dtype])


@pytest.mark.parametrize("compiled", [False, True])
def test_bfloat16_products_run_where_they_are_transposed(compiled):
    """XLA for CPUs cannot run a bfloat16 product that a transposition was folded into (its DotThunk says so)."""
    weight, query = jnp.ones((96, 32)), jnp.ones((2, 2, 64, 16), jnp.bfloat16)

    def loss(weight, query):
        mixed = ops.attention_mix(ops.attention_weights(query, query, jnp.zeros((2, 1, 1, 64))), query)
        rows = mixed.transpose(0, 2, 1, 3).reshape(2, 64, 32)
        return ops.gelu(ops.dense(rows, weight, jnp.zeros(96))).astype(jnp.float32).sum()

    step = jax.value_and_grad(loss, argnums=(0, 1))
    value, gradients = (jax.jit(step) if compiled else step)(weight, query)
    assert np.isfinite(value) and gradients[0].shape == weight.shape and gradients[1].dtype == jnp.bfloat16
