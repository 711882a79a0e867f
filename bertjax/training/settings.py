"""The settings of a training stage, without JAX: programs read their flags before they pay for its import."""

from __future__ import annotations

import dataclasses
from typing import Literal, get_args

import numpy as np

LayerMap = Literal["fixed", "dynamic"]
LAYER_MAPS: tuple[str, ...] = get_args(LayerMap)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """AdamW (Loshchilov & Hutter 2019) as BERT uses it: no weight decay on biases and LayerNorms."""

    steps: int
    learning_rate: float
    warmup_share: float = 0.1  # of the steps, linear from 0; then linear to 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # of the global gradient
    ema: float = 0.0  # decay of the averaged weights, which are then scored and returned; 0: no average
    seed: int = 0
    order: int = 0  # number of the data order: each distillation of a run draws its own
    evaluations: int = 0  # how often to score on the validation file; 0: the last weights are returned
    checkpoint_seconds: float = 120.0

    @property
    def data_seed(self) -> int:
        """The seed of the data order."""
        if not self.order:
            return self.seed
        return int(np.random.SeedSequence((self.seed, self.order)).generate_state(1)[0])


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillSettings:
    """The distillation loss: soft spans, the labels' cross-entropy, and two terms on the layers' outputs."""

    temperature: float = 2.0  # of the span distributions
    label_weight: float = 0.2
    hidden_weight: float = 1.0
    layer_map: LayerMap = "fixed"  # the student's layers of the same number, or the closest ones at each step
    relation_weight: float = 0.0
    learned_scales: bool = False  # train an INT8 student's activation scales with its weights

    def teacher_layers(self, layers: int) -> tuple[int, ...]:
        """The layers of a teacher of so many that the loss reads, 1-based."""
        return distilled_layers(layers) if self.hidden_weight or self.relation_weight else ()


def distilled_layers(layers: int) -> tuple[int, ...]:
    """The teacher's layers whose outputs are matched, 1-based: the end of each third."""
    return tuple(sorted({max(1, round(layers * third / 3)) for third in (1, 2, 3)}))
