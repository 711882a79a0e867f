"""Fine-tuning an encoder to predict answer spans."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp

from bertjax.data.batching import Batch, batch_maker
from bertjax.data.dataset import Dataset
from bertjax.model.bert import BertForQuestionAnswering, Params, bind
from bertjax.model.inference import Evaluator
from bertjax.modeldir.config import BertConfig
from bertjax.training.loop import TrainSettings, train
from bertjax.training.losses import span_cross_entropy


def fine_tune(
    *,
    config: BertConfig,
    params: Params,
    dataset: Dataset,
    validation: Dataset,
    batch_size: int,
    length_multiple: int,
    settings: TrainSettings,
    folder: Path,
    dtype: jnp.dtype = jnp.float32,
) -> Params:
    """Train all parameters on the spans of `dataset`; the best weights by F1 on `validation`.

    Raises as `train`.
    """

    def loss(params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        module = bind(BertForQuestionAnswering, config, params, dtype=dtype)
        output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], dropout_key=key)
        return span_cross_entropy(output, batch["attention_mask"], batch["starts"], batch["ends"]).mean()

    evaluator = Evaluator(config, validation, dtype=dtype)
    return train(
        params=params,
        loss=loss,
        make_batch=batch_maker(
            dataset, pad_id=config.pad_token_id, batch_size=batch_size, multiple=length_multiple, seed=settings.seed
        ),
        settings=settings,
        folder=folder,
        label="fine-tune",
        evaluate=lambda params: evaluator(params, label="validate").score.f1,
    )
