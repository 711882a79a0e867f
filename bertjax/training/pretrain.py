"""Masked-LM pre-training with whole-word masking, from nothing or from a pretrained encoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tokenizers import Tokenizer

from bertjax.data import batching
from bertjax.data.batching import Batch
from bertjax.data.masking import MASKED_SHARE, Vocabulary, masked_batch
from bertjax.data.text import Corpus, read_texts
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import write_vocabulary
from bertjax.model.bert import Params, bind
from bertjax.model.masked_lm import BertForMaskedLM, fan_in_params
from bertjax.modeldir.config import BertConfig
from bertjax.training.loop import TrainSettings, train

LENGTH_MULTIPLE = 64


def pretrain(
    *,
    config: BertConfig,
    params: Params,
    corpus: Corpus,
    tokenizer: Tokenizer,
    batch_size: int,
    settings: TrainSettings,
    folder: Path,
    dtype: jnp.dtype = jnp.float32,
) -> Params:
    """Train encoder and masked-LM head on `corpus`; every step masks anew.

    Args:
      params: those of `BertForMaskedLM`.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
    """

    def loss(params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        module = bind(BertForMaskedLM, config, params, dtype=dtype)
        inputs = (batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
        logits = module(*inputs, batch["positions"], dropout_key=key)
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        masked = batch["weights"].sum()  # 0 where the batch holds no word that the tokenizer knows
        return (each * batch["weights"]).sum() / jnp.maximum(masked, 1)

    vocabulary = Vocabulary.of(tokenizer)
    unknown = sum(not vocabulary.has_word(row) for row in corpus.rows)
    if unknown:
        print(
            f"{unknown:,} of {len(corpus.rows):,} sequences hold no word that the tokenizer knows; they teach nothing"
        )
    return train(
        params=params,
        loss=loss,
        make_batch=_batch_maker(corpus, vocabulary, batch_size=batch_size, seed=settings.seed),
        settings=settings,
        folder=folder,
        label="pretrain",
    )


def _batch_maker(corpus: Corpus, vocabulary: Vocabulary, *, batch_size: int, seed: int) -> Callable[[int], Batch]:
    lengths, per_epoch = corpus.lengths, -(-len(corpus.rows) // batch_size)
    plans: dict[int, list[batching.BatchPlan]] = {}

    def make_batch(step: int) -> Batch:
        epoch, index = divmod(step, per_epoch)
        if epoch not in plans:
            plans.clear()
            plans[epoch] = batching.plan_epoch(
                lengths,
                batch_size=batch_size,
                multiple=LENGTH_MULTIPLE,
                longest=corpus.longest,
                seed=seed,
                epoch=epoch,
            )
        plan = plans[epoch][index]
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


def masked_lm_from_nothing(shape: Shape, *, text_file: Path, tokenizer: Path, seed: int) -> tuple[BertConfig, Params]:
    """A vocabulary learned from `text_file`, written to the folder `tokenizer`, and a fresh masked LM over it.

    Raises:
      UserError: the text cannot be read, or the folder cannot be written.
    """
    if not (tokenizer / "vocab.txt").exists():
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
    return config, fan_in_params(config, seed=seed)
