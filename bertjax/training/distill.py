"""Distillation into a pruned student, in floating point or on the INT8 grid (QAT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp

from bertjax.config import BertConfig
from bertjax.data.batching import Batch
from bertjax.data.dataset import Dataset
from bertjax.evaluation import Evaluator
from bertjax.model import BertForQuestionAnswering, Params, bind
from bertjax.quantization.calibrate import weight_scales
from bertjax.training.finetune import batch_maker
from bertjax.training.loop import TrainSettings, train
from bertjax.training.losses import hidden_state_distance, soft_span_cross_entropy, span_cross_entropy
from bertjax.training.teacher import Targets


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """The loss: soft spans at `temperature`, plus the labels' cross-entropy and the hidden states' distance."""

    temperature: float = 2.0
    label_weight: float = 0.2
    hidden_weight: float = 1.0


def distill(
    *,
    config: BertConfig,
    params: Params,
    layer_map: tuple[int, ...],
    targets: Targets,
    dataset: Dataset,
    validation: Dataset,
    batch_size: int,
    distillation: DistillSettings,
    settings: TrainSettings,
    folder: Path,
    label: str,
    dtype: jnp.dtype = jnp.float32,
) -> Params:
    """Train a student on the teacher's outputs; the best weights by F1 on `validation`.

    With `config.quantization` set, activations pass through the recorded grids and weights through a grid whose
    scales follow the weights (largest magnitude per channel); the returned scales are those of the final weights.

    Args:
      layer_map: 1-based layers of student and teacher whose outputs are matched, one to one.
      targets: adds the teacher's outputs to a batch, see `make_targets`.

    Raises as `train`.
    """
    scales = {name: value for name, value in params.items() if name.endswith("_scale")}
    trained = {name: value for name, value in params.items() if name not in scales}

    def complete(params: Params) -> Params:
        """Parameters with scales: those of the inputs as calibrated, those of the weights as the weights now are."""
        return params | scales | weight_scales(config, params) if scales else params

    def loss(params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        mask = batch["attention_mask"]
        module = bind(BertForQuestionAnswering, config, complete(params), dtype=dtype)
        output = module(batch["input_ids"], mask, batch["token_type_ids"], dropout_key=key)
        soft = soft_span_cross_entropy(
            output, batch["teacher_start"], batch["teacher_end"], mask, distillation.temperature
        )
        labels = span_cross_entropy(output, mask, batch["starts"], batch["ends"]).mean()
        hidden = sum(
            hidden_state_distance(output.hidden_states[layer], batch["teacher_hidden"][place], mask)
            for place, layer in enumerate(layer_map)
        )
        return soft + distillation.label_weight * labels + distillation.hidden_weight * hidden / len(layer_map)

    evaluator = Evaluator(config, validation, dtype=dtype)
    make_batch = batch_maker(dataset, config, batch_size=batch_size, seed=settings.seed)
    best = train(
        params=trained,
        loss=loss,
        make_batch=_with_targets(make_batch, targets),
        settings=settings,
        folder=folder,
        label=label,
        evaluate=lambda params: evaluator(complete(params), label="validate").score.f1,
    )
    return complete(best)


def _with_targets(make_batch: Callable[[int], Batch], targets: Targets) -> Callable[[int], Batch]:
    return lambda step: targets(make_batch(step))
