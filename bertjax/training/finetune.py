"""Fine-tuning an encoder to predict answer spans."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bertjax.identity import digest_settings
from bertjax.model.bert import BertForQuestionAnswering, DeviceBatch, Model, Params, bind
from bertjax.model.inference import Evaluator
from bertjax.training.data import TrainingData
from bertjax.training.loop import train
from bertjax.training.losses import span_cross_entropy
from bertjax.training.settings import TrainSettings


def fine_tune(
    model: Model, data: TrainingData, *, settings: TrainSettings, folder: Path, dtype: DTypeLike = jnp.float32
) -> Model:
    """Train all parameters on the answer spans; the weights with the best F1 on the validation windows.

    Args:
      model: an encoder with a fresh span head.
      folder: where checkpoints are kept.
      dtype: of the activations.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
    """

    def loss(params: Params, batch: DeviceBatch, key: jax.Array) -> jax.Array:
        module = bind(BertForQuestionAnswering, model.with_params(params), dtype=dtype)
        output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], dropout_key=key)
        return span_cross_entropy(output, batch["attention_mask"], batch["starts"], batch["ends"]).mean()

    evaluator = Evaluator(data.validation, dtype=dtype)
    params = train(
        params=model.params,
        loss=loss,
        make_batch=data.batches(pad_id=model.config.pad_token_id, seed=settings.seed),
        settings=settings,
        folder=folder,
        label="fine-tune",
        evaluate=lambda params: evaluator(model.with_params(params), label="validate").score.f1,
        belongs_to={
            "data": data.digest,
            "shape": digest_settings(model.config.to_dict()),
            "dtype": jnp.dtype(dtype).name,
        },
    )
    return model.with_params(params)
