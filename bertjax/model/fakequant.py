"""The INT8 grid inside JAX: quantize and dequantize in one step, with straight-through gradients.

The grid is ONNX QuantizeLinear's with zero point 0: `q = clip(round_half_even(x / s), low, 127)`.

The input of a dense layer has one scale, or one for each feature. An integer product cannot apply the latter, so they
are split into the step `max(s)` and a factor `f = s / max(s)` for each feature: `x W^T = (x / f) (W f)^T`, and both
sides have a grid with one step (per tensor, and per output channel of `W f`). That is SmoothQuant (Xiao et al. 2023)
with the whole of the activations' spread moved into the weights, which lose little by it: a few features are ten times
as wide as the others, and one grid for all activations would have to be coarse enough for those.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp

from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.tensors import dense_sites, feature_factors


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def fake_quantize(x: jax.Array, scale: jax.Array, low: int) -> jax.Array:
    """Round `x` to the INT8 grid of step `scale` and return it as floats, same shape and dtype.

    The gradient passes through unchanged where `x` lies inside the grid and is zero outside
    (straight-through estimator, Bengio et al. 2013). The scale's is that of LSQ (Esser et al. 2020, "Learned Step
    Size Quantization", equation 3 and section 2.2): the sum over its values of the incoming gradient times
    `round(x/s) - x/s` inside the grid and the reached end of the grid outside, all times `1 / sqrt(127 N)`, where N is
    the number of values that share it in one entry of `x`'s first axis: the features of an example, the weights of
    a channel.

    Args:
      scale: float32, a scalar or with the axes of `x`, 1 long where values share it.
      low: the smallest integer of the grid, -128 for activations and -127 for weights.
    """
    return _round_to_grid(x, scale, low)


def _round_to_grid(x: jax.Array, scale: jax.Array, low: int) -> jax.Array:
    steps = jnp.clip(jnp.round(x.astype(jnp.float32) / scale), low, 127)
    return (steps * scale).astype(x.dtype)


_Saved = tuple[jax.Array, jax.Array, jax.Array]


def _forward(x: jax.Array, scale: jax.Array, low: int) -> tuple[jax.Array, _Saved]:
    steps = x.astype(jnp.float32) / scale
    inside = (steps >= low - 0.5) & (steps <= 127.5)
    # `inside` is kept although it follows from `x`: a compiled step keeps neither `x` nor `scale` for the backward
    # pass where no scale is trained.
    return _round_to_grid(x, scale, low), (inside, x, scale)


def _backward(low: int, saved: _Saved, grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    inside, x, scale = saved
    return jnp.where(inside, grad, 0), _scale_gradient(x, scale, low, grad)


def _scale_gradient(x: jax.Array, scale: jax.Array, low: int, grad: jax.Array) -> jax.Array:
    steps = x.astype(jnp.float32) / scale
    within = (steps > low) & (steps < 127)
    slopes = grad.astype(jnp.float32) * jnp.where(within, jnp.round(steps) - steps, jnp.clip(steps, low, 127))
    shared = tuple(axis for axis in range(x.ndim) if scale.ndim == 0 or scale.shape[axis] == 1)
    sharing = math.prod(x.shape[axis] for axis in shared if axis > 0)
    return slopes.sum(axis=shared).reshape(scale.shape) / math.sqrt(127 * sharing)


fake_quantize.defvjp(_forward, _backward)


def quantize_activation(x: jax.Array, scale: jax.Array) -> jax.Array:
    """The grid of an activation `[..., features]`: `scale` is float32, a scalar or `[features]`."""
    return fake_quantize(x, scale if scale.ndim == 0 else scale.reshape((1,) * (x.ndim - 1) + scale.shape), -128)


def quantize_weight(weight: jax.Array, scale: jax.Array, input_scale: jax.Array) -> jax.Array:
    """The grid of a weight `[out, in]` with the features' factors in it: `scale` is float32 `[out]`."""
    factors = jax.lax.stop_gradient(feature_factors(input_scale))
    return fake_quantize(weight * factors, scale[:, None], -127) / factors


def weight_scale(weight: jax.Array, input_scale: jax.Array) -> jax.Array:
    """`amax / 127` of each output channel of `weight [out, in] * factors`, float32 `[out]`; 1 for an all-zero one."""
    amax = jnp.max(jnp.abs(weight.astype(jnp.float32) * feature_factors(input_scale)), axis=1)
    return jax.lax.stop_gradient(jnp.where(amax > 0, amax / 127.0, 1.0))


def weight_scales(config: BertConfig, params: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The scale of every output channel of every quantized weight, by name, float32.

    Args:
      params: the model's arrays, the scales of its activations among them.
    """
    return {
        site.weight_scale: weight_scale(params[site.weight], params[site.input_scale]) for site in dense_sites(config)
    }
