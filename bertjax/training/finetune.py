"""Fine-tuning an encoder to predict answer spans."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from bertjax.config import BertConfig
from bertjax.data import batching
from bertjax.data.batching import Batch
from bertjax.data.dataset import Dataset
from bertjax.evaluation import Evaluator
from bertjax.model import BertForQuestionAnswering, Params, bind
from bertjax.training.loop import TrainSettings, train
from bertjax.training.losses import span_cross_entropy


def batch_maker(
    dataset: Dataset, config: BertConfig, *, batch_size: int, multiple: int, seed: int
) -> Callable[[int], Batch]:
    """The batch of any step, over as many shuffled epochs as the steps need, padded to a multiple of `multiple`."""
    per_epoch = steps_per_epoch(dataset, batch_size)
    plans: dict[int, list[batching.BatchPlan]] = {}

    def make_batch(step: int) -> Batch:
        epoch, index = divmod(step, per_epoch)
        if epoch not in plans:
            plans.clear()
            plans[epoch] = batching.plan_epoch(
                dataset.lengths,
                batch_size=batch_size,
                multiple=multiple,
                longest=dataset.longest,
                seed=seed,
                epoch=epoch,
            )
        plan = plans[epoch][index]
        batch = batching.collate(dataset.windows, plan.rows, plan.length, config.pad_token_id)
        return batch | {"rows": plan.rows}

    return make_batch


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    return -(-len(dataset.windows) // batch_size)


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
        make_batch=batch_maker(dataset, config, batch_size=batch_size, multiple=length_multiple, seed=settings.seed),
        settings=settings,
        folder=folder,
        label="fine-tune",
        evaluate=lambda params: evaluator(params, label="validate").score.f1,
    )
