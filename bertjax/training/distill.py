"""Distillation into a pruned student, in floating point or on the INT8 grid (QAT)."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bertjax.identity import digest_settings
from bertjax.model.bert import BertForQuestionAnswering, DeviceBatch, Model, Params, SpanOutput, bind
from bertjax.model.fakequant import weight_scales
from bertjax.model.inference import Evaluator
from bertjax.training.data import TrainingData
from bertjax.training.loop import train
from bertjax.training.losses import (
    closest_layers_distance,
    hidden_state_distance,
    relation_divergence,
    soft_span_cross_entropy,
    span_cross_entropy,
)
from bertjax.training.settings import DistillSettings, TrainSettings
from bertjax.training.teacher import Targets

SCALE_RATE = 20.0  # the logarithm of a learned scale moves so many times faster than a weight, see `distill`


def distill(
    student: Model,
    targets: Targets,
    data: TrainingData,
    *,
    distillation: DistillSettings,
    settings: TrainSettings,
    folder: Path,
    label: str,
    dtype: DTypeLike = jnp.float32,
) -> Model:
    """Train a student on its teacher's outputs; the weights with the best F1 on the validation windows.

    The student as it comes is scored too, and returned unless training gives something better.

    Where the student is quantized, activations pass through the recorded grids and weights through a grid whose
    scales follow the weights (largest magnitude per channel); the returned scales are those of the final weights.

    Learned activation scales (LSQ, see `fakequant`) are trained as `recorded scale * exp(SCALE_RATE * x)`: they stay
    positive, and move in proportion to their size. LSQ needs scales and weights that change at like relative rates.
    Adam moves every number by about the learning rate, which relative to BERT's weights of about 0.05 is 20 times as
    much.

    Args:
      targets: the teacher's outputs for the batches of `data.train`.
      distillation: the loss; `targets` must have the layers that it reads.
      folder: where checkpoints are kept.
      label: the progress bar's name.
      dtype: of the activations.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
    """
    scales = {name: value for name, value in student.params.items() if name.endswith("_scale")}
    trained = {name: value for name, value in student.params.items() if name not in scales}
    if distillation.learned_scales:
        trained |= {name: jnp.zeros_like(value) for name, value in scales.items() if not name.endswith(".weight_scale")}

    def complete(params: Params) -> Model:
        """The student with these trained parameters and the scales that go with them."""
        if not scales:
            return student.with_params(params)
        weights = {name: value for name, value in params.items() if name not in scales}
        learned = {name: scales[name] * jnp.exp(SCALE_RATE * params[name]) for name in scales if name in params}
        scaled = weights | scales | learned
        return student.with_params(scaled | weight_scales(student.config, scaled))

    def loss(params: Params, batch: DeviceBatch, key: jax.Array) -> jax.Array:
        module = bind(BertForQuestionAnswering, complete(params), dtype=dtype)
        output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], dropout_key=key)
        return distillation_loss(output, batch, distillation, targets.layers)

    evaluator = Evaluator(data.validation, dtype=dtype)
    batches = data.batches(pad_id=student.config.pad_token_id, seed=settings.data_seed)
    best = train(
        params=trained,
        loss=loss,
        make_batch=lambda step: targets.add(batches(step)),
        settings=settings,
        folder=folder,
        label=label,
        evaluate=lambda params: evaluator(complete(params), label="validate").score.f1,
        score_start=True,
        belongs_to={
            "data": data.digest,
            "student": student.digest,
            "teacher": digest_settings(targets.identity),
            "loss": digest_settings(distillation),
            "dtype": jnp.dtype(dtype).name,
        },
    )
    targets.keep()
    return complete(best)


def distillation_loss(
    output: SpanOutput, batch: DeviceBatch, distillation: DistillSettings, layers: tuple[int, ...]
) -> jax.Array:
    """The weighted sum of the terms that `distillation` asks for, float32 scalar.

    Args:
      batch: with the teacher's outputs, as `make_targets` adds them.
      layers: the teacher's layers in `batch["teacher_hidden"]`, 1-based.
    """
    mask, states = batch["attention_mask"], output.hidden_states
    start, end = batch["teacher_start"], batch["teacher_end"]
    total = soft_span_cross_entropy(output, start, end, mask, distillation.temperature)
    labels = span_cross_entropy(output, mask, batch["starts"], batch["ends"]).mean()
    total += distillation.label_weight * labels
    if distillation.hidden_weight and distillation.layer_map == "dynamic":
        total += distillation.hidden_weight * closest_layers_distance(states[1:], batch["teacher_hidden"], mask)
    elif distillation.hidden_weight:
        distances = (
            hidden_state_distance(states[layer], theirs, mask)
            for layer, theirs in zip(layers, batch["teacher_hidden"], strict=True)
        )
        hidden = sum(distances, start=jnp.zeros(()))
        total += distillation.hidden_weight * hidden / len(layers)
    if distillation.relation_weight:
        divergence = relation_divergence(states[layers[-1]], batch["teacher_hidden"][-1], mask)
        total += distillation.relation_weight * divergence
    return total
