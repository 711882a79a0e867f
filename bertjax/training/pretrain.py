"""Masked-LM pre-training with whole-word masking, from nothing or from a pretrained encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from tokenizers import Tokenizer

from bertjax.data.batching import Batch, step_planner
from bertjax.data.masking import MASKED_SHARE, Vocabulary, masked_batch
from bertjax.data.text import Corpus, read_texts
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import write_vocabulary
from bertjax.identity import digest_arrays, digest_settings
from bertjax.model.bert import DeviceBatch, Model, Params, bind
from bertjax.model.masked_lm import BertForMaskedLM, fan_in_model
from bertjax.modeldir.config import INPUTS, BertConfig
from bertjax.training.loop import train
from bertjax.training.settings import TrainSettings

LENGTH_MULTIPLE = 64


def pretrain(
    model: Model,
    corpus: Corpus,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    settings: TrainSettings,
    folder: Path,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """Train a masked LM's encoder and head on `corpus`; every step masks anew.

    Args:
      tokenizer: the one that `corpus` was read with.
      batch_size: sequences of a step.
      folder: where checkpoints are kept.
      dtype: of the activations.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
    """

    def loss(params: Params, batch: DeviceBatch, key: jax.Array) -> jax.Array:
        module = bind(BertForMaskedLM, model.with_params(params), dtype=dtype)
        ids, mask, types = (batch[name] for name in INPUTS)
        logits = module(ids, mask, types, batch["positions"], dropout_key=key)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        masked = batch["weights"].sum()  # 0 where the batch holds no word that the tokenizer knows
        return (each * batch["weights"]).sum() / jnp.maximum(masked, 1)

    vocabulary = Vocabulary.of(tokenizer)
    unknown = sum(not vocabulary.has_word(row) for row in corpus.rows)
    if unknown:
        print(
            f"{unknown:,} of {len(corpus.rows):,} sequences hold no word that the tokenizer knows; they teach nothing"
        )
    params = train(
        params=model.params,
        loss=loss,
        make_batch=_batch_maker(corpus, vocabulary, batch_size=batch_size, seed=settings.seed),
        settings=settings,
        folder=folder,
        label="pretrain",
        belongs_to={
            "data": _corpus_digest(corpus, batch_size),
            "tokenizer": digest_settings(tokenizer.to_str()),
            "shape": digest_settings(model.config.to_dict()),
        },
    )
    return model.with_params(params)


def _corpus_digest(corpus: Corpus, batch_size: int) -> str:
    rows = np.concatenate(corpus.rows) if len(corpus.rows) else np.empty(0, np.int32)
    seconds, sizes = np.array(corpus.seconds), np.array([batch_size, corpus.longest])
    return digest_arrays({"rows": rows, "lengths": corpus.lengths, "seconds": seconds, "sizes": sizes})


def _batch_maker(corpus: Corpus, vocabulary: Vocabulary, *, batch_size: int, seed: int) -> Callable[[int], Batch]:
    plan_of = step_planner(
        corpus.lengths, batch_size=batch_size, multiple=LENGTH_MULTIPLE, longest=corpus.longest, seed=seed
    )

    def make_batch(step: int) -> Batch:
        plan = plan_of(step)
        batch = masked_batch(
            [corpus.rows[row] for row in plan.rows],
            vocabulary,
            length=plan.length,
            slots=int(plan.length * MASKED_SHARE * 1.5) + 1,
            random=np.random.default_rng((seed, step)),
        )
        seconds = np.array([corpus.seconds[row] for row in plan.rows])[:, None]
        types = (np.arange(plan.length)[None] >= seconds) & (batch["attention_mask"] > 0)
        return batch | {"token_type_ids": types.astype(np.int32)}

    return make_batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense BERT to be made from nothing."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    heads: int
    ffn: int
    positions: int


def masked_lm_from_nothing(shape: Shape, *, text_file: Path, tokenizer: Path, seed: int) -> Model:
    """A fresh masked LM over a vocabulary that is learned from `text_file` and written to the folder `tokenizer`.

    Raises:
      UserError: the text cannot be read, or the folder cannot be written.
    """
    if not (tokenizer / "tokenizer.json").exists():
        write_vocabulary(tokenizer, read_texts(text_file), vocab_size=shape.vocab_size)
    config = BertConfig.dense(
        vocab_size=load_tokenizer(tokenizer).get_vocab_size(),
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        heads=shape.heads,
        ffn=shape.ffn,
        max_position_embeddings=shape.positions,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return fan_in_model(config, seed=seed)
