"""The training loop that every stage shares: AdamW, warm-up and decay, checkpoints, best by validation.

A run is a pure function of its settings: batch and dropout key of a step follow from the step's number, so a run
that was interrupted and resumed ends with the same weights as one that was not, on the same machine.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from tqdm import tqdm

from bertjax.errors import WorkFailed
from bertjax.files import write_file_aside
from bertjax.model.bert import DeviceBatch, Params, as_arrays, as_params
from bertjax.modeldir.store import Tensors
from bertjax.training.data import StepBatch
from bertjax.training.settings import TrainSettings

Loss = Callable[[Params, DeviceBatch, jax.Array], jax.Array]  # (trained parameters, batch, dropout key) -> scalar
State = tuple[Params, optax.OptState, Params]  # trained parameters, optimizer state, averaged parameters or {}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The whole state of training: `scored` is the step that was scored last, `best` the best-scoring params so far."""

    step: int
    scored: int
    state: State
    best_score: float
    best: Tensors | None

    def kept(self) -> Params:
        """The parameters that are scored and returned: the averaged ones where there are any."""
        return self.state[2] or self.state[0]


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
) -> Params:
    """Train `params` and return the last weights, or the best-scoring ones if `settings.evaluations` asks for it.

    With `settings.ema` set, it is their exponential moving average that is returned and scored. Its decay starts low
    and rises to `ema`, min(ema, (1 + step) / (10 + step)), so that a short run is not averaged with its start (the
    rule of TensorFlow's ExponentialMovingAverage).

    Args:
      params: the trained arrays by name; they are not changed.
      loss: of the trained arrays, a batch and the step's dropout key; a scalar.
      make_batch: the batch of a step, 0 to steps - 1; the same for the same step.
      folder: where checkpoints are kept; a run with the same settings continues from the one in it.
      label: the progress bar's name.
      evaluate: a score to maximize, called at `settings.evaluations` evenly spaced steps, the last one included.
      score_start: score `params` themselves too, and return them unless training gives something better.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
    """
    optimizer = make_optimizer(settings)
    # Buffers are donated to each step, so start from copies of the caller's arrays.
    params = {name: jnp.array(value, jnp.float32, copy=True) for name, value in params.items()}
    average = jax.tree.map(jnp.copy, params) if settings.ema else {}
    state, identity = (params, optimizer.init(params), average), _identity(settings, params)
    now = _restore(folder, Checkpoint(step=0, scored=-1, state=state, best_score=-np.inf, best=None), identity)
    step_function = _make_step(loss, optimizer, settings)
    marks = _evaluation_steps(settings, score_start) if evaluate else set()
    saved, smooth = time.monotonic(), None
    batch: StepBatch | None = None
    bar = tqdm(total=settings.steps, initial=now.step, desc=label, unit="step", dynamic_ncols=True)
    try:
        while True:
            if evaluate and now.step in marks and now.step > now.scored:
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
                _save(folder, now, identity)
                saved = time.monotonic()
    except KeyboardInterrupt:
        _save(folder, now, identity)
        raise
    finally:
        bar.close()
    _save(folder, now, identity)
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
        raise WorkFailed(f"{label}: the loss is {value} at step {step}; lower the learning rate")
    return value if average is None else 0.98 * average + 0.02 * value


def _evaluation_steps(settings: TrainSettings, score_start: bool) -> set[int]:
    marks = {round(settings.steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
    return marks | {0} if marks and score_start else marks - {0}


def _identity(settings: TrainSettings, params: Params) -> str:
    """Digest of the settings and shapes that a checkpoint must have to be continued."""
    fields = dataclasses.asdict(settings) | {"checkpoint_seconds": None}
    if not settings.ema:
        del fields["ema"]  # so that checkpoints from before this field are continued
    shapes = {name: value.shape for name, value in sorted(params.items())}
    return hashlib.sha256(json.dumps([fields, shapes]).encode()).hexdigest()


def _save(folder: Path, checkpoint: Checkpoint, identity: str) -> None:
    leaves = jax.tree.leaves(checkpoint.state)
    arrays: Tensors = {f"state.{index}": np.asarray(leaf) for index, leaf in enumerate(leaves)}
    arrays |= {f"best.{name}": value for name, value in (checkpoint.best or {}).items()}
    about: dict[str, Any] = {"step": checkpoint.step, "scored": checkpoint.scored, "identity": identity}
    about["best_score"] = float(checkpoint.best_score)
    content = safetensors.numpy.save(arrays, metadata={"about": json.dumps(about)})
    write_file_aside(folder / "checkpoint.safetensors", content)


def _restore(folder: Path, fresh: Checkpoint, identity: str) -> Checkpoint:
    """The checkpoint of this very run in `folder`, or `fresh` if there is none."""
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return fresh
    with safetensors.safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["about"])
        if about["identity"] != identity:
            return fresh
        leaves, tree = jax.tree.flatten(fresh.state)
        state = [jnp.asarray(file.get_tensor(f"state.{index}")) for index in range(len(leaves))]
        best = {name[5:]: file.get_tensor(name) for name in file.keys() if name.startswith("best.")}  # noqa: SIM118
    return Checkpoint(
        step=about["step"],
        scored=about.get("scored", about["step"]),  # absent in checkpoints from before this field
        state=jax.tree.unflatten(tree, state),
        best_score=about["best_score"],
        best=best or None,
    )
