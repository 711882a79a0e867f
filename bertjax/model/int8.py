"""Dense layers of a quantized model on integers, for serving in JAX: INT8 products, summed in INT32, scaled once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax.model.bert import BertForQuestionAnswering, BlockOutput, Dense, Intermediate, Scale
from bertjax.modeldir.tensors import feature_factors


class IntegerDense(nnx.Module):
    """`y = (q(x) q(W f)^T) max(s_x) s_W + b`, with grids and factors f as in `fakequant`: the same up to rounding."""

    def __init__(self, dense: Dense, input_scale: Scale):
        assert dense.weight_scale is not None, "only a quantized layer has integers"
        scale, step = dense.weight_scale[...], input_scale[...].max()
        folded = dense.weight[...] * feature_factors(input_scale[...])
        steps = jnp.clip(jnp.round(folded / scale[:, None]), -127, 127)
        self.weight = nnx.Variable(steps.astype(jnp.int8))  # [out, in]
        self.input_scale, self.scale = input_scale, Scale(scale * step)
        self.bias = dense.bias

    def __call__(self, x: jax.Array, shared: Scale | None = None) -> jax.Array:
        del shared  # the input's scale, which `Dense` needs and this layer already holds
        steps = jnp.clip(jnp.round(x.astype(jnp.float32) / self.input_scale[...]), -128, 127).astype(jnp.int8)
        contracted = (((x.ndim - 1,), (1,)), ((), ()))
        sums = jax.lax.dot_general(steps, self.weight[...], contracted, preferred_element_type=jnp.int32)
        return (sums.astype(jnp.float32) * self.scale[...] + self.bias[...]).astype(x.dtype)


def use_integers(model: BertForQuestionAnswering) -> None:
    """Put an `IntegerDense` in place of every quantized dense layer of a model; it can no longer be trained."""
    for layer in model.bert.encoder.layer:
        attention = layer.attention.self
        if attention is not None:
            for name in ("query", "key", "value"):
                setattr(attention, name, _integers(getattr(attention, name), attention.input_scale))
            _replace(layer.attention.output)
        if layer.intermediate is not None:
            _replace(layer.intermediate)
            _replace(layer.output)


def _replace(block: BlockOutput | Intermediate) -> None:
    dense = block.dense
    if isinstance(dense, Dense):
        block.dense = _integers(dense, dense.input_scale)  # type: ignore[assignment]  # called in the same way


def _integers(dense: Dense, input_scale: Scale | None) -> IntegerDense:
    assert input_scale is not None, "a quantized layer reads a quantized input"
    return IntegerDense(dense, input_scale)
