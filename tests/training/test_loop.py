"""The training loop: resuming changes nothing, the best weights win, a diverged run is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.errors import WorkFailed
from bertjax.model.bert import as_arrays
from bertjax.training.loop import make_optimizer, train
from bertjax.training.settings import TrainSettings

SETTINGS = TrainSettings(steps=12, learning_rate=0.05, seed=3)


def _start() -> dict[str, jax.Array]:
    return {"dense.weight": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "dense.bias": jnp.ones(3)}


def _loss(params: dict, batch: dict, key: jax.Array) -> jax.Array:
    """A noisy regression: the noise follows the step's key, as dropout does."""
    noise = 0.1 * jax.random.normal(key, batch["y"].shape)
    return jnp.square(batch["x"] @ params["dense.weight"].T + params["dense.bias"] - batch["y"] + noise).mean()


def _batch(step: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(step)
    return {"x": random.normal(size=(8, 4)).astype(np.float32), "y": random.normal(size=(8, 3)).astype(np.float32)}


@pytest.mark.parametrize("stop_at", [1, 7])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, stop_at: int):
    run = dict(params=_start(), loss=_loss, settings=SETTINGS, label="test")
    whole = train(make_batch=_batch, folder=tmp_path / "whole", **run)
    served = []

    def interrupted(step: int) -> dict[str, np.ndarray]:
        if step == stop_at:
            raise KeyboardInterrupt
        return _batch(step)

    with pytest.raises(KeyboardInterrupt):
        train(make_batch=interrupted, folder=tmp_path / "cut", **run)

    def counted(step: int) -> dict[str, np.ndarray]:
        served.append(step)
        return _batch(step)

    resumed = train(make_batch=counted, folder=tmp_path / "cut", **run)
    assert served == list(range(stop_at, SETTINGS.steps))
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name])


def test_a_checkpoint_of_other_settings_is_not_continued(tmp_path: Path):
    train(params=_start(), loss=_loss, make_batch=_batch, settings=SETTINGS, folder=tmp_path, label="test")
    served = []
    other = TrainSettings(steps=12, learning_rate=0.01, seed=3)
    train(
        params=_start(),
        loss=_loss,
        make_batch=lambda s: served.append(s) or _batch(s),
        settings=other,
        folder=tmp_path,
        label="test",
    )
    assert served == list(range(12))


def test_the_best_scored_weights_are_returned(tmp_path: Path):
    seen: list[dict] = []

    def evaluate(params: dict) -> float:
        seen.append(as_arrays(params))
        return [1.0, 3.0, 2.0][len(seen) - 1]

    settings = TrainSettings(steps=12, learning_rate=0.05, evaluations=3)
    best = train(
        params=_start(), loss=_loss, make_batch=_batch, settings=settings, folder=tmp_path, label="t", evaluate=evaluate
    )
    np.testing.assert_array_equal(best["dense.weight"], seen[1]["dense.weight"])


def test_the_start_is_kept_where_training_makes_it_worse(tmp_path: Path):
    scores = iter([2.0, 1.0, 2.0])
    settings = TrainSettings(steps=12, learning_rate=0.05, evaluations=2)
    run = dict(params=_start(), loss=_loss, make_batch=_batch, settings=settings, label="t")
    best = train(folder=tmp_path, evaluate=lambda params: next(scores), score_start=True, **run)
    for name, value in _start().items():
        np.testing.assert_array_equal(best[name], value)


def test_a_score_that_was_interrupted_is_taken_again(tmp_path: Path):
    asked: list[str] = []

    def evaluate(params: dict) -> float:
        asked.append(str(np.asarray(params["dense.bias"])))
        if len(asked) in (1, 4):
            raise KeyboardInterrupt
        return {2: 1.0, 3: 2.0, 5: 3.0}[len(asked)]

    settings = TrainSettings(steps=4, learning_rate=0.05, evaluations=2)
    run = dict(params=_start(), loss=_loss, make_batch=_batch, settings=settings, folder=tmp_path, label="t")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train(evaluate=evaluate, score_start=True, **run)
    best = train(evaluate=evaluate, score_start=True, **run)
    assert len(asked) == 5 and asked[0] == asked[1] and asked[3] == asked[4] == str(np.asarray(best["dense.bias"]))


def test_the_average_follows_its_formula_and_survives_an_interrupt(tmp_path: Path):
    steps: list[dict] = []
    every_step = dataclasses.replace(SETTINGS, evaluations=12)

    def note(params: dict) -> float:
        steps.append(as_arrays(params))
        return 0.0

    run = dict(params=_start(), loss=_loss, label="t")
    train(make_batch=_batch, settings=every_step, folder=tmp_path / "raw", evaluate=note, **run)
    wanted = as_arrays(_start())
    for step, weights in enumerate(steps):
        decay = min(0.3, (1 + step) / (10 + step))
        wanted = {name: decay * value + (1 - decay) * weights[name] for name, value in wanted.items()}

    def interrupted(step: int) -> dict[str, np.ndarray]:
        if step == 7:
            raise KeyboardInterrupt
        return _batch(step)

    averaged = dict(settings=dataclasses.replace(SETTINGS, ema=0.3), folder=tmp_path / "averaged")
    with pytest.raises(KeyboardInterrupt):
        train(make_batch=interrupted, **averaged, **run)
    found = train(make_batch=_batch, **averaged, **run)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_an_infinite_loss_ends_the_run(tmp_path: Path):
    with pytest.raises(WorkFailed, match="lower the learning rate"):
        train(
            params=_start(),
            loss=lambda params, batch, key: params["dense.bias"].sum() / 0.0,
            make_batch=_batch,
            settings=SETTINGS,
            folder=tmp_path,
            label="test",
        )


def test_biases_and_layer_norms_do_not_decay():
    params = {"a.weight": jnp.ones(1), "a.bias": jnp.ones(1), "LayerNorm.weight": jnp.ones(1)}
    optimizer = make_optimizer(TrainSettings(steps=10, learning_rate=0.1, warmup_share=0.1, weight_decay=0.5))
    state, none = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    for _ in range(2):  # the first step of the warm-up has learning rate 0
        updates, state = optimizer.update(none, state, params)
    assert updates["a.weight"] < -0.01 and updates["a.bias"] == 0 and updates["LayerNorm.weight"] == 0
