"""The INT8 grid inside JAX: quantize and dequantize in one step, with straight-through gradients.

The grid is ONNX QuantizeLinear's with zero point 0: `q = clip(round_half_even(x / s), low, 127)`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def fake_quantize(x: jax.Array, scale: jax.Array, low: int) -> jax.Array:
    """Round `x` to the INT8 grid of step `scale` and return it as floats, same shape and dtype.

    The gradient passes through unchanged where `x` lies inside the grid and is zero outside
    (straight-through estimator, Bengio et al. 2013). The scale gets no gradient.

    Args:
      scale: float32, broadcastable to `x`.
      low: the smallest integer of the grid, -128 for activations and -127 for weights.
    """
    return _round_to_grid(x, scale, low)


def _round_to_grid(x: jax.Array, scale: jax.Array, low: int) -> jax.Array:
    steps = jnp.clip(jnp.round(x.astype(jnp.float32) / scale), low, 127)
    return (steps * scale).astype(x.dtype)


def _forward(x: jax.Array, scale: jax.Array, low: int) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    steps = x.astype(jnp.float32) / scale
    inside = (steps >= low - 0.5) & (steps <= 127.5)
    return _round_to_grid(x, scale, low), (inside, scale)


def _backward(low: int, saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    inside, scale = saved
    return jnp.where(inside, grad, 0), jnp.zeros_like(scale)


fake_quantize.defvjp(_forward, _backward)


def quantize_activation(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Per-tensor activation grid: `scale` is a float32 scalar."""
    return fake_quantize(x, scale, -128)


def quantize_weight(weight: jax.Array, scale: jax.Array) -> jax.Array:
    """Per-channel weight grid: `weight` is `[out, in]`, `scale` float32 `[out]`."""
    return fake_quantize(weight, scale[:, None], -127)


def weight_scale(weight: jax.Array) -> jax.Array:
    """`amax / 127` of each output channel of a `[out, in]` weight, float32 `[out]`; 1 for an all-zero channel."""
    amax = jnp.max(jnp.abs(weight.astype(jnp.float32)), axis=1)
    return jax.lax.stop_gradient(jnp.where(amax > 0, amax / 127.0, 1.0))
