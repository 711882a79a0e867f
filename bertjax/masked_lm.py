"""BERT with the masked-LM head (Devlin et al. 2019), for pre-training; names as in `model`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from bertjax import products
from bertjax.config import BertConfig
from bertjax.model import Bert, Dense, LayerNorm


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
        **rest,
    ) -> jax.Array:
        """Logits over the vocabulary, float32 [B, P, vocabulary], at `positions` int32 [B, P]."""
        hidden = self.bert(input_ids, attention_mask, token_type_ids, **rest)[-1]
        chosen = jnp.take_along_axis(hidden, positions[..., None], axis=1).astype(jnp.float32)
        head, table = self.cls.predictions, self.bert.embeddings.word_embeddings.weight[...]
        x = head.transform.LayerNorm(products.gelu(head.transform.dense(chosen)))
        return x @ table.T + head.bias[...]
