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

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from tqdm import tqdm

from bertjax.data.batching import Batch
from bertjax.errors import WorkFailed
from bertjax.model import Params
from bertjax.modeldir import write_file_aside

Loss = Callable[[Params, Batch, jax.Array], jax.Array]  # (trained parameters, batch, dropout key) -> scalar


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """AdamW (Loshchilov & Hutter 2019) as BERT uses it: no weight decay on biases and LayerNorms."""

    steps: int
    learning_rate: float
    warmup_share: float = 0.1  # of the steps, linear from 0; then linear to 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0  # of the global gradient
    seed: int = 0
    evaluations: int = 0  # how often to score on the validation file; 0 keeps the last weights
    checkpoint_seconds: float = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Everything needed to go on: `state` is (params, optimizer state), `best` the best-scoring params so far."""

    step: int
    state: tuple[Params, optax.OptState]
    best_score: float
    best: Params | None


def make_optimizer(settings: TrainSettings) -> optax.GradientTransformation:
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
    make_batch: Callable[[int], Batch],
    settings: TrainSettings,
    folder: Path,
    label: str,
    evaluate: Callable[[Params], float] | None = None,
) -> Params:
    """Train `params` and return the last weights, or the best-scoring ones if `settings.evaluations` asks for it.

    Args:
      params: the trained arrays by name; they are not changed.
      make_batch: the batch of a step, 0 to steps - 1; the same for the same step.
      folder: where checkpoints are kept; a run with the same settings goes on from the one it finds there.
      label: the progress bar's name.
      evaluate: a score to maximize, called at `settings.evaluations` evenly spaced steps, the last one included.

    Raises:
      WorkFailed: the loss is no longer finite, or the disk is full.
    """
    optimizer = make_optimizer(settings)
    # Buffers are donated to each step, so start from copies of the caller's arrays.
    params = {name: jnp.array(value, jnp.float32, copy=True) for name, value in params.items()}
    now = Checkpoint(step=0, state=(params, optimizer.init(params)), best_score=-np.inf, best=None)
    identity = _identity(settings, params)
    now = _restore(folder, now, identity)
    state, best_score, best = now.state, now.best_score, now.best

    @jax.jit(donate_argnums=0)
    def step_function(state: tuple[Params, optax.OptState], batch: Batch, step: jax.Array):
        params, opt_state = state
        key = jax.random.fold_in(jax.random.key(settings.seed, impl="unsafe_rbg"), step)
        value, gradients = jax.value_and_grad(loss)(params, batch, key)
        updates, opt_state = optimizer.update(gradients, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    marks = _evaluation_steps(settings) if evaluate else set()
    saved, step, average = time.monotonic(), now.step, None
    bar = tqdm(total=settings.steps, initial=step, desc=label, unit="step", dynamic_ncols=True)
    try:
        while step < settings.steps:
            state, value = step_function(state, make_batch(step), jnp.int32(step))
            step += 1
            average = _smooth(average, float(value), label, step)
            bar.set_postfix(loss=f"{average:.3f}", refresh=False)
            bar.update()
            if step in marks:
                score = evaluate(state[0])
                bar.write(f"{label}: step {step}: {score:.2f} on the validation file")
                if score > best_score:
                    best_score, best = score, {name: np.asarray(value) for name, value in state[0].items()}
            if time.monotonic() - saved > settings.checkpoint_seconds:
                _save(folder, Checkpoint(step=step, state=state, best_score=best_score, best=best), identity)
                saved = time.monotonic()
    except KeyboardInterrupt:
        _save(folder, Checkpoint(step=step, state=state, best_score=best_score, best=best), identity)
        raise
    finally:
        bar.close()
    _save(folder, Checkpoint(step=step, state=state, best_score=best_score, best=best), identity)
    return {name: jnp.asarray(value) for name, value in best.items()} if best is not None else state[0]


def _smooth(average: float | None, value: float, label: str, step: int) -> float:
    if not np.isfinite(value):
        raise WorkFailed(f"{label}: the loss is {value} at step {step}; lower the learning rate")
    return value if average is None else 0.98 * average + 0.02 * value


def _evaluation_steps(settings: TrainSettings) -> set[int]:
    return {round(settings.steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}


def _identity(settings: TrainSettings, params: Params) -> str:
    """A digest of what must agree before a checkpoint may be continued."""
    fields = dataclasses.asdict(settings) | {"checkpoint_seconds": None}
    shapes = {name: value.shape for name, value in sorted(params.items())}
    return hashlib.sha256(json.dumps([fields, shapes], default=list).encode()).hexdigest()


def _save(folder: Path, checkpoint: Checkpoint, identity: str) -> None:
    leaves = jax.tree.leaves(checkpoint.state)
    arrays = {f"state.{index}": np.asarray(leaf) for index, leaf in enumerate(leaves)}
    arrays |= {f"best.{name}": value for name, value in (checkpoint.best or {}).items()}
    about = {"step": checkpoint.step, "best_score": float(checkpoint.best_score), "identity": identity}
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
        state=jax.tree.unflatten(tree, state),
        best_score=about["best_score"],
        best=best or None,
    )
