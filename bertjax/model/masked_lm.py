"""BERT with the masked-LM head (Devlin et al. 2019), and the models that pre-training starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bertjax.model import ops
from bertjax.model.bert import Bert, Dense, LayerNorm, Model, as_params, init_model
from bertjax.modeldir import store, tensors
from bertjax.modeldir.config import BertConfig


class PredictionTransform(nnx.Module):
    """The masked-LM head's dense layer, GELU and LayerNorm."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.dense = Dense(config.hidden_size, config.hidden_size, rngs=rngs)
        self.LayerNorm = LayerNorm(config.hidden_size, config.layer_norm_eps)


class Predictions(nnx.Module):
    """The masked-LM head; its decoder is the word embedding table."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.transform = PredictionTransform(config, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size))


class MaskedLMHead(nnx.Module):
    """Holds `predictions`, as the checkpoint names it."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.predictions = Predictions(config, rngs=rngs)


class BertForMaskedLM(nnx.Module):
    """BERT with the masked-LM head."""

    def __init__(self, config: BertConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs):
        self.bert = Bert(config, dtype=dtype, rngs=rngs)
        self.cls = MaskedLMHead(config, rngs=rngs)

    def __call__(
        self,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        token_type_ids: jax.Array,
        positions: jax.Array,
        **rest: Any,
    ) -> jax.Array:
        """Logits over the vocabulary, float32 [B, P, vocabulary], at `positions` int32 [B, P]."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids, **rest)[-1]
        chosen = jnp.take_along_axis(hidden, positions[..., None], axis=1).astype(jnp.float32)
        head, table = self.cls.predictions, self.bert.embeddings.word_embeddings.weight[...]
        x = head.transform.LayerNorm(ops.gelu(head.transform.dense(chosen)))
        return x @ table.T + head.bias[...]


def fan_in_model(config: BertConfig, *, seed: int) -> Model:
    """A small masked LM with fresh parameters: embeddings of size 1, dense weights of 1 / sqrt(inputs).

    BERT's own 0.02 is made for a hidden size of 768 and long training. Adam moves every number by about the learning
    rate in a step, so at the rates of small models embeddings of 0.02 no longer tell tokens apart after some tens of
    steps, and attention never finds equal tokens. The head's LayerNorm starts small, so that its
    logits over embeddings of size 1 start small.
    """
    params = {}
    for name, value in init_model(BertForMaskedLM, config, seed=seed).params.items():
        if "_embeddings." in name:
            value = value / 0.02
        elif value.ndim == 2:
            value = value / 0.02 / np.sqrt(value.shape[1])
        elif name == "cls.predictions.transform.LayerNorm.weight":
            value = value / np.sqrt(config.hidden_size)
        params[name] = value
    return Model(config=config, params=params)


def masked_lm_from_encoder(directory: Path, *, seed: int) -> Model:
    """A pretrained encoder with its masked-LM head, or with a fresh one if the checkpoint has none.

    Raises:
      UserError: the directory is no complete encoder.
    """
    encoder = store.load_encoder(directory)
    fresh = init_model(BertForMaskedLM, encoder.config, seed=seed)
    head = tensors.masked_lm_head_shapes(encoder.config)
    found = store.read_tensors(directory)
    kept = {name: found[name] for name, shape in head.items() if name in found and found[name].shape == shape}
    return fresh.with_params(fresh.params | as_params(encoder.tensors | kept))
