"""Distillation into a pruned student, in floating point or on the INT8 grid (QAT)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from bertjax.data.batching import Batch, batch_maker
from bertjax.data.dataset import Dataset
from bertjax.model.bert import BertForQuestionAnswering, Params, SpanOutput, bind
from bertjax.model.fakequant import weight_scales
from bertjax.model.inference import Evaluator
from bertjax.modeldir.config import BertConfig
from bertjax.training.loop import TrainSettings, train
from bertjax.training.losses import (
    closest_layers_distance,
    hidden_state_distance,
    relation_divergence,
    soft_span_cross_entropy,
    span_cross_entropy,
)
from bertjax.training.teacher import Targets, distilled_layers

SCALE_RATE = 20.0  # how much faster than a weight the logarithm of a learned scale moves, see `distill`


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """The loss: soft spans at `temperature`, the labels' cross-entropy, and two terms on the layers' outputs.

    `layer_map` says which student layers the distilled teacher layers are matched with: those of the same number
    (fixed), or the closest ones at each step (dynamic). `learned_scales` trains the activation scales of an INT8
    student with its weights.
    """

    temperature: float = 2.0
    label_weight: float = 0.2
    hidden_weight: float = 1.0
    layer_map: Literal["fixed", "dynamic"] = "fixed"
    relation_weight: float = 0.0
    learned_scales: bool = False

    def teacher_layers(self, layers: int) -> tuple[int, ...]:
        """Which of the teacher's layers the loss needs, 1-based."""
        return distilled_layers(layers) if self.hidden_weight or self.relation_weight else ()


def distill(
    *,
    config: BertConfig,
    params: Params,
    layers: tuple[int, ...],
    targets: Targets,
    dataset: Dataset,
    validation: Dataset,
    batch_size: int,
    length_multiple: int,
    distillation: DistillSettings,
    settings: TrainSettings,
    folder: Path,
    label: str,
    dtype: jnp.dtype = jnp.float32,
) -> Params:
    """Train a student on the teacher's outputs; the best weights by F1 on `validation`, the given ones among them.

    With `config.quantization` set, activations pass through the recorded grids and weights through a grid whose
    scales follow the weights (largest magnitude per channel); the returned scales are those of the final weights.

    Learned activation scales (LSQ, see `fakequant`) are trained as `recorded scale * exp(SCALE_RATE * x)`: they stay
    positive, and move in proportion to their size. LSQ wants scales and weights to change at like relative rates. Adam
    moves every number by about the learning rate, which against BERT's weights of about 0.05 is 20 times as much.

    Args:
      layers: 1-based layers of the teacher whose outputs `targets` gives.
      targets: adds the teacher's outputs to a batch, see `make_targets`.

    Raises as `train`.
    """
    scales = {name: value for name, value in params.items() if name.endswith("_scale")}
    trained = {name: value for name, value in params.items() if name not in scales}
    if distillation.learned_scales:
        trained |= {name: jnp.zeros_like(value) for name, value in scales.items() if not name.endswith(".weight_scale")}

    def complete(params: Params) -> Params:
        """The model's parameters: the trained ones, and the scales that go with them."""
        if not scales:
            return params
        weights = {name: value for name, value in params.items() if name not in scales}
        learned = {name: scales[name] * jnp.exp(SCALE_RATE * params[name]) for name in scales if name in params}
        scaled = weights | scales | learned
        return scaled | weight_scales(config, scaled)

    def loss(params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        module = bind(BertForQuestionAnswering, config, complete(params), dtype=dtype)
        output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], dropout_key=key)
        return distillation_loss(output, batch, distillation, layers)

    evaluator = Evaluator(config, validation, dtype=dtype)
    make_batch = batch_maker(
        dataset, pad_id=config.pad_token_id, batch_size=batch_size, multiple=length_multiple, seed=settings.seed
    )
    best = train(
        params=trained,
        loss=loss,
        make_batch=_with_targets(make_batch, targets),
        settings=settings,
        folder=folder,
        label=label,
        evaluate=lambda params: evaluator(complete(params), label="validate").score.f1,
        score_start=True,
    )
    return complete(best)


def distillation_loss(
    output: SpanOutput, batch: Batch, distillation: DistillSettings, layers: tuple[int, ...]
) -> jax.Array:
    """The weighted sum of the terms that `distillation` asks for, float32 scalar."""
    mask, states = batch["attention_mask"], output.hidden_states
    start, end = batch["teacher_start"], batch["teacher_end"]
    total = soft_span_cross_entropy(output, start, end, mask, distillation.temperature)
    labels = span_cross_entropy(output, mask, batch["starts"], batch["ends"]).mean()
    total += distillation.label_weight * labels
    if distillation.hidden_weight and distillation.layer_map == "dynamic":
        total += distillation.hidden_weight * closest_layers_distance(states[1:], batch["teacher_hidden"], mask)
    elif distillation.hidden_weight:
        hidden = sum(
            hidden_state_distance(states[layer], theirs, mask)
            for layer, theirs in zip(layers, batch["teacher_hidden"], strict=True)
        )
        total += distillation.hidden_weight * hidden / len(layers)
    if distillation.relation_weight:
        divergence = relation_divergence(states[layers[-1]], batch["teacher_hidden"][-1], mask)
        total += distillation.relation_weight * divergence
    return total


def _with_targets(make_batch: Callable[[int], Batch], targets: Targets) -> Callable[[int], Batch]:
    return lambda step: targets(make_batch(step))
