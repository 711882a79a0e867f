"""BERT (Devlin et al. 2019) in Flax NNX, each layer with its own heads and FFN width, in float or on the INT8 grid.

The path of a parameter in the module tree is its name in a Hugging Face checkpoint, so attribute names are
Hugging Face's and dense weights are `[out, in]`. Training, pruning and quantization work on the flat
`dict[str, jax.Array]` of those names; `bind` puts such a dict into the modules, at no cost inside `jax.jit`.

Shapes in comments: B batch, S tokens, D hidden size, H heads of a layer, d head size, F FFN units of a layer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from bertjax.identity import digest_arrays, digest_settings
from bertjax.model import ops
from bertjax.model.fakequant import quantize_activation, quantize_weight
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig, LayerShape
from bertjax.modeldir.store import StoredModel, Tensors

Params = dict[str, jax.Array]
DeviceBatch = Mapping[str, jax.Array]  # a batch as compiled code sees it
Observer = Callable[[str, jax.Array], None]

MASKED = -1e4  # added to the scores of padding; fp16 holds it, and exp(-1e4) is 0 in every dtype


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gates:
    """Factors on the pruning units, one per example, all 1 in the unpruned model.

    heads[i]: [B, H of layer i]; ffn[i]: [B, F of layer i].
    """

    heads: tuple[jax.Array, ...]
    ffn: tuple[jax.Array, ...]


jax.tree_util.register_dataclass(Gates, data_fields=["heads", "ffn"], meta_fields=[])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Context:
    """The part of a forward pass that all layers share.

    `observe(name, x)` is called with every activation that may be quantized, [B, S, ...], and the name of its scale.
    `dropout_key` None means no dropout.
    """

    bias: jax.Array  # [B, 1, 1, S], 0 for tokens and MASKED for padding
    gates: Gates | None = None
    observe: Observer | None = None
    dropout_key: jax.Array | None = None

    def tell(self, name: str, x: jax.Array) -> None:
        """Call `observe` if there is one."""
        if self.observe is not None:
            self.observe(name, x)

    def dropout(self, x: jax.Array, rate: float, place: int) -> jax.Array:
        """Dropout of `x`; each `place` of the model has a key of its own."""
        if self.dropout_key is None or rate == 0.0:
            return x
        keep = jax.random.bernoulli(jax.random.fold_in(self.dropout_key, place), 1.0 - rate, x.shape)
        return jnp.where(keep, x / (1.0 - rate), 0).astype(x.dtype)


class Scale(nnx.Variable[jax.Array]):
    """An INT8 scale, float32: a scalar in a fresh module; in a bound one shaped as `tensors.scale_shapes` says."""


def mask_bias(attention_mask: jax.Array) -> jax.Array:
    """The term added to attention scores, float32 [B, 1, 1, S], for a mask int32 [B, S] that is 1 for tokens."""
    return jnp.where(attention_mask[:, None, None, :] > 0, 0.0, MASKED)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> nnx.Param[jax.Array]:
    return nnx.Param(0.02 * jax.random.truncated_normal(key, -2.0, 2.0, shape))


class Embedding(nnx.Module):
    """A table of `count` rows of `size`."""

    def __init__(self, count: int, size: int, *, rngs: nnx.Rngs):
        self.weight = _normal(rngs.params(), (count, size))


class LayerNorm(nnx.Module):
    """Layer normalization over the last axis, computed in float32."""

    def __init__(self, size: int, epsilon: float):
        self.weight = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size))
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        mean = wide.mean(axis=-1, keepdims=True)
        variance = jnp.square(wide - mean).mean(axis=-1, keepdims=True)
        normed = (wide - mean) * jax.lax.rsqrt(variance + self.epsilon)
        return (normed * self.weight[...] + self.bias[...]).astype(x.dtype)


def _on_grid(x: jax.Array, scale: Scale | None) -> jax.Array:
    return x if scale is None else quantize_activation(x, scale[...])


class Dense(nnx.Module):
    """`y = x W^T + b`. In a quantized model W passes through its INT8 grid, and x too if the scale is its own.

    Without an input scale of its own it is called with that of its input, which is already on its grid.
    """

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs, quantized: bool = False, own_input: bool = True):
        self.weight = _normal(rngs.params(), (outputs, inputs))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.weight_scale = Scale(jnp.ones(outputs)) if quantized else None
        self.input_scale = Scale(jnp.ones(())) if quantized and own_input else None

    def __call__(self, x: jax.Array, shared: Scale | None = None) -> jax.Array:
        weight = self.weight[...]
        x = _on_grid(x, self.input_scale)
        if self.weight_scale is not None:
            input_scale = shared if self.input_scale is None else self.input_scale
            assert input_scale is not None, "a quantized layer reads a quantized input"
            weight = quantize_weight(weight, self.weight_scale[...], input_scale[...])
        return ops.dense(x, weight, self.bias[...])


class BiasOnly(nnx.Module):
    """The rest of a block's output projection when all its inputs are pruned."""

    def __init__(self, outputs: int):
        self.bias = nnx.Param(jnp.zeros(outputs))


class Embeddings(nnx.Module):
    """Word, position and token-type embeddings, summed and normalized."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.word_embeddings = Embedding(config.vocab_size, config.hidden_size, rngs=rngs)
        self.position_embeddings = Embedding(config.max_position_embeddings, config.hidden_size, rngs=rngs)
        self.token_type_embeddings = Embedding(config.type_vocab_size, config.hidden_size, rngs=rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, input_ids: jax.Array, token_type_ids: jax.Array) -> jax.Array:
        words = jnp.take(self.word_embeddings.weight[...], input_ids, axis=0)
        positions = self.position_embeddings.weight[...][: input_ids.shape[1]]
        types = jnp.take(self.token_type_embeddings.weight[...], token_type_ids, axis=0)
        return self.LayerNorm(words + positions + types)


class SelfAttention(nnx.Module):
    """Scaled dot-product attention up to the concatenated heads. Q, K and V share one quantized input."""

    def __init__(self, config: BertConfig, heads: int, *, rngs: nnx.Rngs):
        width, quantized = heads * config.head_size, config.quantization is not None
        self.query, self.key, self.value = (
            Dense(config.hidden_size, width, rngs=rngs, quantized=quantized, own_input=False) for _ in range(3)
        )
        self.input_scale = Scale(jnp.ones(())) if quantized else None
        quantized_products = config.quantization is not None and config.quantization.attention
        self.query_scale, self.key_scale, self.value_scale, self.weights_scale = (
            Scale(jnp.ones(())) if quantized_products else None for _ in range(4)
        )
        self.heads, self.head_size, self.dropout = heads, config.head_size, config.attention_dropout

    def __call__(self, x: jax.Array, context: Context, index: int) -> jax.Array:
        x = _on_grid(x, self.input_scale)
        split = (*x.shape[:2], self.heads, self.head_size)
        query, key, value = (
            self._product_input(
                part, dense(x, self.input_scale).reshape(split).transpose(0, 2, 1, 3), scale, context, index
            )
            for part, dense, scale in (
                ("query", self.query, self.query_scale),
                ("key", self.key, self.key_scale),
                ("value", self.value, self.value_scale),
            )
        )
        weights = ops.attention_weights(query, key, context.bias)
        weights = self._product_input("weights", weights, self.weights_scale, context, index)
        weights = context.dropout(weights, self.dropout, 3 * index)
        mixed = ops.attention_mix(weights, value).transpose(0, 2, 1, 3)
        if context.gates is not None:
            mixed = mixed * context.gates.heads[index][:, None, :, None]
        return mixed.reshape(*x.shape[:2], -1)

    def _product_input(self, part: str, x: jax.Array, scale: Scale | None, context: Context, index: int) -> jax.Array:
        """An input of an attention product, [B, H, S, ...], on its grid where it has one."""
        context.tell(f"bert.encoder.layer.{index}.attention.self.{part}_scale", x.swapaxes(1, 2))
        return _on_grid(x, scale)


class BlockOutput(nnx.Module):
    """The end of a block: projection (of a pruned block, its bias alone), residual and LayerNorm."""

    def __init__(self, config: BertConfig, inputs: int, *, rngs: nnx.Rngs):
        size, quantized = config.hidden_size, config.quantization is not None
        self.dense = Dense(inputs, size, rngs=rngs, quantized=quantized) if inputs else BiasOnly(size)
        self.LayerNorm = LayerNorm(size, config.layer_norm_eps)
        self.dropout = config.hidden_dropout

    def __call__(self, block: jax.Array | None, x: jax.Array, context: Context, place: int) -> jax.Array:
        projected = self.dense.bias[...].astype(x.dtype) if block is None else self.dense(block)
        return self.LayerNorm(x + context.dropout(jnp.broadcast_to(projected, x.shape), self.dropout, place))


class Attention(nnx.Module):
    """The attention block: `self` and `output`, named as in the checkpoint."""

    def __init__(self, config: BertConfig, heads: int, *, rngs: nnx.Rngs):
        self.self = SelfAttention(config, heads, rngs=rngs) if heads else None
        self.output = BlockOutput(config, heads * config.head_size, rngs=rngs)


class Intermediate(nnx.Module):
    """The first dense layer of the FFN."""

    def __init__(self, config: BertConfig, ffn: int, *, rngs: nnx.Rngs):
        self.dense = Dense(config.hidden_size, ffn, rngs=rngs, quantized=config.quantization is not None)


class Layer(nnx.Module):
    """One post-LayerNorm encoder layer; either block may be gone."""

    def __init__(self, config: BertConfig, shape: LayerShape, *, rngs: nnx.Rngs):
        self.attention = Attention(config, shape.heads, rngs=rngs)
        self.intermediate = Intermediate(config, shape.ffn, rngs=rngs) if shape.ffn else None
        self.output = BlockOutput(config, shape.ffn, rngs=rngs)
        self.quantized_residual = config.quantization is not None and config.quantization.residual

    def __call__(self, x: jax.Array, context: Context, index: int) -> jax.Array:
        residual = self._residual(x, self.attention.self)
        x = self.attention.output(self.mix(x, context, index), residual, context, 3 * index + 1)
        residual = self._residual(x, None if self.intermediate is None else self.intermediate.dense)
        return self.output(self.widen(x, context, index), residual, context, 3 * index + 2)

    def _residual(self, x: jax.Array, first: SelfAttention | Dense | None) -> jax.Array:
        """The residual of a block: its input, on the grid of its first dense layer where the config says so."""
        return _on_grid(x, first.input_scale) if self.quantized_residual and first is not None else x

    def mix(self, x: jax.Array, context: Context, index: int) -> jax.Array | None:
        """The attention block up to its output projection, [B, S, H d]; None where it is gone."""
        if self.attention.self is None:
            return None
        name = f"bert.encoder.layer.{index}.attention"
        context.tell(f"{name}.self.input_scale", x)
        mixed = self.attention.self(x, context, index)
        context.tell(f"{name}.output.dense.input_scale", mixed)
        return mixed

    def widen(self, x: jax.Array, context: Context, index: int) -> jax.Array | None:
        """The FFN block up to its output projection, [B, S, F]; None where it is gone."""
        if self.intermediate is None:
            return None
        name = f"bert.encoder.layer.{index}"
        context.tell(f"{name}.intermediate.dense.input_scale", x)
        units = ops.gelu(self.intermediate.dense(x))
        if context.gates is not None:
            units = units * context.gates.ffn[index][:, None, :]
        context.tell(f"{name}.output.dense.input_scale", units)
        return units


class Encoder(nnx.Module):
    """The stack of layers."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.layer = nnx.List([Layer(config, shape, rngs=rngs) for shape in config.layers])


class Bert(nnx.Module):
    """Embeddings and encoder."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)
        self.dtype, self.dropout = dtype, config.hidden_dropout

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        token_type_ids: jax.Array,
        *,
        gates: Gates | None = None,
        observe: Observer | None = None,
        dropout_key: jax.Array | None = None,
    ) -> tuple[jax.Array, ...]:
        """All hidden states, [B, S, D] each: the embeddings' output first, then each layer's.

        Args:
          input_ids, attention_mask, token_type_ids: int32 [B, S].
        """
        context = Context(bias=mask_bias(attention_mask), gates=gates, observe=observe, dropout_key=dropout_key)
        x = self.embeddings(input_ids, token_type_ids).astype(self.dtype)
        states = [context.dropout(x, self.dropout, 3 * len(self.encoder.layer))]
        for index, layer in enumerate(self.encoder.layer):
            states.append(layer(states[-1], context, index))
        return tuple(states)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanOutput:
    """start_logits, end_logits: float32 [B, S]; hidden_states: one [B, S, D] for the embeddings and each layer."""

    start_logits: jax.Array
    end_logits: jax.Array
    hidden_states: tuple[jax.Array, ...]


class BertForQuestionAnswering(nnx.Module):
    """BERT with the span head, called with the arguments of `Bert`."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.bert = Bert(config, dtype=dtype, rngs=rngs)
        self.qa_outputs = Dense(config.hidden_size, 2, rngs=rngs)

    def __call__(
        self, input_ids: jax.Array, attention_mask: jax.Array, token_type_ids: jax.Array, **rest: Any
    ) -> SpanOutput:
        states = self.bert(input_ids, attention_mask, token_type_ids, **rest)
        logits = self.qa_outputs(states[-1].astype(jnp.float32))
        return SpanOutput(start_logits=logits[..., 0], end_logits=logits[..., 1], hidden_states=states)


Module = TypeVar("Module", bound=nnx.Module)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A model's config and its parameters by name, scales included where it is quantized.

    A pytree whose leaves are the parameters: the config is static under `jax.jit`.
    """

    config: BertConfig = dataclasses.field(metadata={"static": True})
    params: Params

    @classmethod
    def of(cls, stored: StoredModel) -> Model:
        """A stored model with its tensors on JAX's default device, dtypes as they are."""
        return cls(config=stored.config, params=as_params(stored.tensors))

    def stored(self) -> StoredModel:
        """The model with its parameters in NumPy, as a directory holds them, dtypes as they are."""
        return StoredModel(config=self.config, tensors=as_arrays(self.params))

    @property
    def digest(self) -> str:
        """Digest of config and parameters."""
        return digest_settings([self.config.to_dict(), digest_arrays(as_arrays(self.params))])

    def with_params(self, params: Params) -> Model:
        """The same config with these parameters."""
        return dataclasses.replace(self, params=params)


def init_model(kind: Callable[..., nnx.Module], config: BertConfig, *, seed: int) -> Model:
    """A model with fresh parameters, drawn as in the BERT paper (truncated normal of 0.02)."""
    module = kind(config, rngs=nnx.Rngs(seed))
    flat = nnx.to_flat_state(nnx.state(module))
    return Model(config=config, params={_name(path): variable[...] for path, variable in flat})


def bind(kind: Callable[..., Module], model: Model, *, dtype: DTypeLike = jnp.float32) -> Module:
    """The module of a model's shape that holds exactly its arrays; `dtype` is that of the activations."""
    graph, variables = _abstract(kind, model.config, jnp.dtype(dtype))
    filled = [(path, variable.replace(model.params[_name(path)])) for path, variable in variables]
    module: Module = nnx.merge(graph, nnx.from_flat_state(filled))
    return module


@functools.lru_cache(maxsize=32)
def _abstract(kind: Callable[..., nnx.Module], config: BertConfig, dtype: np.dtype) -> tuple[Any, tuple[Any, ...]]:
    """A module without its arrays, and the variables to fill in by path: 4 s at BERT-large's size, so done once."""
    graph, state = nnx.split(nnx.eval_shape(lambda: kind(config, dtype=dtype, rngs=nnx.Rngs(0))))
    return graph, tuple(nnx.to_flat_state(state))


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in path)


def as_params(arrays: Mapping[str, np.ndarray | jax.Array]) -> Params:
    """Arrays on JAX's default device, dtypes as they are."""
    return {name: jnp.asarray(value) for name, value in arrays.items()}


def as_arrays(params: Mapping[str, jax.Array]) -> Tensors:
    """Arrays in NumPy, dtypes as they are."""
    return {name: np.asarray(value) for name, value in params.items()}


def load(directory: Path, *, dtype: DTypeLike = jnp.float32) -> BertForQuestionAnswering:
    """The module of a span-predicting model directory; `dtype` is that of the activations.

    Raises:
      UserError: the directory is no complete model.
    """
    return bind(BertForQuestionAnswering, Model.of(store.load_question_answering(directory)), dtype=dtype)


def jit_logits(
    model: BertForQuestionAnswering,
) -> Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[jax.Array, jax.Array]]:
    """A compiled `(input_ids, attention_mask, token_type_ids) -> (start_logits, end_logits)`; compiles per shape."""
    graph, state = nnx.split(model)

    @jax.jit
    def logits(
        state: Any, input_ids: jax.Array, attention_mask: jax.Array, token_type_ids: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        output = nnx.merge(graph, state)(input_ids, attention_mask, token_type_ids)
        return output.start_logits, output.end_logits

    return lambda *inputs: logits(state, *inputs)
