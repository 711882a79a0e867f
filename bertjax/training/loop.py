"""The training loop that every stage shares: AdamW, warm-up and decay, checkpoints, best by validation.

A run is a pure function of its settings: batch and dropout key of a step follow from the step's number, so a run
that was interrupted and resumed ends with the same weights as one that was not, on the same machine.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

from bertjax.errors import WorkFailed
from bertjax.model.bert import DeviceBatch, Params, as_arrays, as_params
from bertjax.training import checkpoint
from bertjax.training.checkpoint import Checkpoint, State
from bertjax.training.data import StepBatch
from bertjax.training.settings import TrainSettings
from bertjax.training.stop import stop_requests

Loss = Callable[[Params, DeviceBatch, jax.Array], jax.Array]  # (trained parameters, batch, dropout key) -> scalar


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
    """AdamW with clipped gradients, linear warm-up and linear decay."""
    warmup = max(1, round(settings.warmup_share * settings.steps))
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, settings.learning_rate, warmup),
            optax.linear_schedule(settings.learning_rate, 0.0, max(1, settings.steps - warmup)),
        ],
        [warmup],
    )
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(schedule, weight_decay=settings.weight_decay, mask=_decayed),
    )


def _decayed(params: Params) -> dict[str, bool]:
    return {name: name.endswith(".weight") and "LayerNorm" not in name for name in params}


def train(
    *,
    params: Params,
    loss: Loss,
    make_batch: Callable[[int], StepBatch],
    settings: TrainSettings,
    folder: Path,
    label: str,
    evaluate: Callable[[Params], float] | None = None,
    score_start: bool = False,
    belongs_to: Mapping[str, str] | None = None,
) -> Params:
    """Train `params` and return the last weights, or the best-scoring ones if `settings.evaluations` asks for it.

    With `settings.ema` set, it is their exponential moving average that is returned and scored. Its decay starts low
    and rises to `ema`, min(ema, (1 + step) / (10 + step)), so that a short run is not averaged with its start (the
    rule of TensorFlow's ExponentialMovingAverage).

    Args:
      params: the trained arrays by name; they are not changed.
      loss: of the trained arrays, a batch and the step's dropout key; a scalar.
      make_batch: the batch of a step, 0 to steps - 1; the same for the same step.
      folder: where checkpoints are kept; the same training continues from the one in it.
      label: the progress bar's name.
      evaluate: a score to maximize, called at `settings.evaluations` evenly spaced steps, the last one included.
      score_start: score `params` themselves too, and return them unless training gives something better.
      belongs_to: digests of what decides the batches and the loss, by name: with the settings and the start weights
        they say whether a checkpoint is of this training.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
      KeyboardInterrupt, Terminated: SIGINT or SIGTERM came; the step was ended and the state is saved.
    """
    optimizer = make_optimizer(settings)
    # Buffers are donated to each step, so start from copies of the caller's arrays.
    params = {name: jnp.array(value, jnp.float32, copy=True) for name, value in params.items()}
    average = jax.tree.map(jnp.copy, params) if settings.ema else {}
    identity = checkpoint.training_identity(settings, params, belongs_to or {})
    state = (params, optimizer.init(params), average)
    now = Checkpoint(step=0, scored=-1, state=state, best_score=-np.inf, best=None)
    now = checkpoint.restore(folder, now, identity)
    step_function = _make_step(loss, optimizer, settings)
    marks = _evaluation_steps(settings, score_start) if evaluate else set()
    saved, smooth = time.monotonic(), None
    batch: StepBatch | None = None
    bar = tqdm(total=settings.steps, initial=now.step, desc=label, unit="step", dynamic_ncols=True)
    with stop_requests() as stop:
        try:
            while True:
                stop.check()
                if evaluate and now.step in marks and now.step > now.scored:
                    with stop.at_once():
                        score = evaluate(now.kept())
                    bar.write(f"{label}: step {now.step}: {score:.2f} on the validation file")
                    now = _scored(now, score)
                if now.step == settings.steps:
                    break
                state, value = step_function(now.state, batch or make_batch(now.step), jnp.int32(now.step))
                now = dataclasses.replace(now, step=now.step + 1, state=state)
                batch = make_batch(now.step) if now.step < settings.steps else None  # while the device takes the step
                smooth = _smooth(smooth, float(value), label, now.step)
                bar.set_postfix(loss=f"{smooth:.3f}", refresh=False)
                bar.update()
                if time.monotonic() - saved > settings.checkpoint_seconds:
                    checkpoint.save(folder, now, identity)
                    saved = time.monotonic()
        except KeyboardInterrupt:
            checkpoint.save(folder, now, identity)
            raise
        finally:
            bar.close()
        checkpoint.save(folder, now, identity)
    return as_params(now.best or now.kept())


def _make_step(
    loss: Loss, optimizer: optax.GradientTransformation, settings: TrainSettings
) -> Callable[[State, StepBatch, jax.Array], tuple[State, jax.Array]]:
    @jax.jit(donate_argnums=0)
    def step_function(state: State, batch: DeviceBatch, step: jax.Array) -> tuple[State, jax.Array]:
        params, opt_state, average = state
        key = jax.random.fold_in(jax.random.key(settings.seed, impl="unsafe_rbg"), step)
        value, gradients = jax.value_and_grad(loss)(params, batch, key)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        params = optax.apply_updates(params, updates)
        decay = jnp.minimum(settings.ema, (1 + step) / (10 + step))
        average = {name: decay * value + (1 - decay) * params[name] for name, value in average.items()}
        return (params, opt_state, average), value

    return step_function


def _scored(now: Checkpoint, score: float) -> Checkpoint:
    now = dataclasses.replace(now, scored=now.step)
    if score <= now.best_score:
        return now
    return dataclasses.replace(now, best_score=score, best=as_arrays(now.kept()))


def _smooth(average: float | None, value: float, label: str, step: int) -> float:
    if not np.isfinite(value):
        mend = "the start weights or the data give it" if average is None else "lower the learning rate"
        raise WorkFailed(f"{label}: the loss is {value} at step {step}; {mend}")
    return value if average is None else 0.98 * average + 0.02 * value


def _evaluation_steps(settings: TrainSettings, score_start: bool) -> set[int]:
    marks = {round(settings.steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
    return marks | {0} if marks and score_start else marks - {0}
