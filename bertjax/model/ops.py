"""The model's matrix products, softmax and GELU with their gradients, summed in float32 whatever the inputs' dtype.

On a CPU, XLA runs a bfloat16 product on the machine's matrix units (AMX) only if its inputs lie in memory in bfloat16,
row by row, and its result is float32. A product of bfloat16 into bfloat16, one whose operand is transposed
on its way, or one that autodiff wrote with one float32 operand is computed in float32 instead, several times as slowly
(jaxlib 0.10; `python benchmarks/train_step.py`). Hence the gradients written out here, and `_row_major`. In float32
they are what autodiff would give.

Shapes: B batch, H heads, S tokens, d head size.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp


@jax.custom_vjp
def dense(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
    """`x W^T + b`, [..., out] in the dtype of `x` [..., in]; `weight` [out, in] and `bias` [out] are float32."""
    return _dense_forward(x, weight, bias)[0]


def _dense_forward(x: jax.Array, weight: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    rows, narrow = _row_major(x.reshape(-1, x.shape[-1])), _row_major(weight.astype(x.dtype))
    y = (_summed_in_float32(rows, narrow, (1,), (1,)) + bias).astype(x.dtype)
    return y.reshape(*x.shape[:-1], -1), (rows, narrow)


def _dense_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows, weight = saved
    out, inputs = weight.shape
    shape, grad = (*grad.shape[:-1], inputs), _row_major(grad.reshape(-1, out))
    # The product transposes its first operand: let that be the smaller one.
    if out < inputs:
        weight_grad = _summed_in_float32(grad, rows, (0,), (0,))
    else:
        weight_grad = _in_its_place(_summed_in_float32(rows, grad, (0,), (0,))).T
    ones = _row_major(jnp.ones((1, grad.shape[0]), grad.dtype))  # faster than a sum over rows
    x_grad = _summed_in_float32(grad, weight, (1,), (0,)).astype(rows.dtype)
    return x_grad.reshape(shape), weight_grad, _summed_in_float32(ones, grad, (1,), (0,))[0]


dense.defvjp(_dense_forward, _dense_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """`x Phi(x)` with the normal distribution's Phi, computed in float32 (Hendrycks and Gimpel 2016)."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def _gelu_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    return gelu(x), x


def _gelu_backward(x: jax.Array, grad: jax.Array) -> tuple[jax.Array]:
    wide = x.astype(jnp.float32)
    below = 0.5 + 0.5 * jax.lax.erf(wide * math.sqrt(0.5))
    slope = below + wide * jnp.exp(-0.5 * jnp.square(wide)) / math.sqrt(2 * math.pi)
    return ((slope * grad.astype(jnp.float32)).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@jax.custom_vjp
def attention_weights(query: jax.Array, key: jax.Array, bias: jax.Array) -> jax.Array:
    """`softmax(Q K^T / sqrt(d) + bias)` of every head, [B, H, S, S] in the dtype of `query`.

    Args:
      query, key: [B, H, S, d].
      bias: float32 [B, 1, 1, S]; gets no gradient.
    """
    return _weights_forward(query, key, bias)[0]


def _weights_forward(query: jax.Array, key: jax.Array, bias: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores = _batched(_row_major(query), _transposed(key)) / math.sqrt(query.shape[-1])
    weights = _row_major(jax.nn.softmax(scores + bias, axis=-1).astype(query.dtype))
    return weights, (query, key, weights)


def _weights_backward(saved: tuple[jax.Array, ...], grad: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    query, key, weights = saved
    wide = weights.astype(jnp.float32)
    moved = wide * grad.astype(jnp.float32)
    moved = (moved - wide * moved.sum(axis=-1, keepdims=True)) / math.sqrt(query.shape[-1])
    moved = _row_major(moved.astype(query.dtype))
    key_grad = _in_its_place(_batched(_transposed(query), moved)).swapaxes(2, 3)
    return _batched(moved, _row_major(key)).astype(query.dtype), key_grad.astype(key.dtype), None


attention_weights.defvjp(_weights_forward, _weights_backward)


@jax.custom_vjp
def attention_mix(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Every head's values, mixed: [B, H, S, d] in their dtype, for `weights` [B, H, S, S] and `value` [B, H, S, d]."""
    return _mix_forward(weights, value)[0]


def _mix_forward(weights: jax.Array, value: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    weights = _row_major(weights)
    return _batched(weights, _row_major(value)).astype(value.dtype), (weights, value)


def _mix_backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    weights, value = saved
    value_grad = _in_its_place(_batched(_transposed(grad), weights)).swapaxes(2, 3)
    weights_grad = _batched(_row_major(grad), _transposed(value))
    return weights_grad.astype(weights.dtype), value_grad.astype(value.dtype)


attention_mix.defvjp(_mix_forward, _mix_backward)


def _batched(a: jax.Array, b: jax.Array) -> jax.Array:
    """`[B, H, m, k] x [B, H, k, n]`, float32 [B, H, m, n]."""
    return _summed_in_float32(a, b, (3,), (2,), batch=(0, 1))


def _summed_in_float32(
    a: jax.Array, b: jax.Array, over_a: tuple[int, ...], over_b: tuple[int, ...], *, batch: tuple[int, ...] = ()
) -> jax.Array:
    """The product of two arrays over these axes, float32 whatever their dtype."""
    return jax.lax.dot_general(a, b, ((over_a, over_b), (batch, batch)), preferred_element_type=jnp.float32)


def _transposed(x: jax.Array) -> jax.Array:
    return _row_major(x.swapaxes(2, 3))


def _row_major(x: jax.Array) -> jax.Array:
    """The same array; where it is narrower than float32, written to memory in its own dtype and order."""
    return x if x.dtype == jnp.float32 else _in_its_place(x)


def _in_its_place(x: jax.Array) -> jax.Array:
    """The same array, behind a barrier that XLA moves no transposition or cast across."""
    return jax.lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)
