"""The training loop: resuming changes nothing, the best weights win, a diverged run is told."""

from __future__ import annotations

import _thread
import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from bertjax.errors import WorkFailed
from bertjax.model.bert import as_arrays
from bertjax.programs import Terminated
from bertjax.training.loop import make_optimizer, train
from bertjax.training.settings import TrainSettings

SETTINGS = TrainSettings(steps=12, learning_rate=0.05, seed=3)


def _start() -> dict[str, jax.Array]:
    return {"dense.weight": jnp.linspace(-1.0, 1.0, 12).reshape(3, 4), "dense.bias": jnp.ones(3)}


def _loss(params: dict, batch: dict, key: jax.Array) -> jax.Array:
    """A noisy regression: the noise follows the step's key, as dropout does; its generator is the device's fast one."""
    assert jax.random.key_impl(key) == "unsafe_rbg"
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


@pytest.mark.parametrize("steps", [4, 20])
def test_it_takes_the_steps_of_pytorchs_adamw_with_a_clipped_gradient_and_a_rate_that_rises_and_falls(
    tmp_path: Path, steps: int
):
    """By the defaults: a tenth of the steps is warm-up, weights decay by 0.01 of the rate, the norm is at most 1."""
    torch = pytest.importorskip("torch")
    start = _start() | {"LayerNorm.weight": jnp.full(3, 2.0)}

    def loss(params, batch, key=None):
        y = batch["x"] @ params["dense.weight"].T * params["LayerNorm.weight"] + params["dense.bias"]
        return ((y - batch["y"]) ** 2).mean() / 3

    settings = TrainSettings(steps=steps, learning_rate=0.05)
    found = train(params=start, loss=loss, make_batch=_batch, settings=settings, folder=tmp_path, label="t")
    theirs = {name: torch.tensor(np.array(value), requires_grad=True) for name, value in start.items()}
    decayed, others = [theirs["dense.weight"]], [theirs["dense.bias"], theirs["LayerNorm.weight"]]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0}])
    warmup, norms = max(1, steps // 10), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * min(step / warmup, (steps - step) / (steps - warmup))
        optimizer.zero_grad()
        loss(theirs, {name: torch.from_numpy(value) for name, value in _batch(step).items()}).backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)))
        optimizer.step()
    assert max(norms) > 1.5 and (steps == 4 or min(norms) < 0.9)
    for name, value in theirs.items():
        np.testing.assert_allclose(found[name], value.detach(), rtol=2e-4, atol=2e-5, err_msg=name)


def test_another_seed_draws_other_noise(tmp_path: Path):
    ends = [
        train(
            params=_start(),
            loss=_loss,
            make_batch=_batch,
            settings=TrainSettings(steps=3, learning_rate=0.05, seed=seed),
            folder=tmp_path / str(index),
            label="t",
        )["dense.weight"]
        for index, seed in enumerate((0, 0, 1))
    ]
    np.testing.assert_array_equal(ends[0], ends[1])
    assert np.abs(ends[0] - ends[2]).max() > 1e-4


@pytest.mark.parametrize("seconds, first", [(0.0, 6), (120.0, 0)])
def test_a_checkpoint_is_written_every_so_many_seconds(tmp_path: Path, seconds: float, first: int):
    settings = dataclasses.replace(SETTINGS, checkpoint_seconds=seconds)
    run = dict(params=_start(), loss=_loss, folder=tmp_path, label="t")

    def killed(step: int) -> dict[str, np.ndarray]:
        if step == 7:
            raise MemoryError
        return _batch(step)

    with pytest.raises(MemoryError):
        train(make_batch=killed, settings=settings, **run)
    served: list[int] = []
    other = dataclasses.replace(SETTINGS, checkpoint_seconds=60.0)  # is no other run
    train(make_batch=lambda step: served.append(step) or _batch(step), settings=other, **run)
    assert served == list(range(first, 12))


OTHERS = {
    "shapes": ("start", {"params": _start() | {"dense.bias": jnp.ones((1, 3))}}),
    "start weights": ("start", {"params": _start() | {"dense.bias": jnp.zeros(3)}}),
    "data": ("data", {"belongs_to": {"data": "b"}}),
    "settings": ("settings", {"settings": dataclasses.replace(SETTINGS, learning_rate=0.01)}),
    "order": ("settings", {"settings": dataclasses.replace(SETTINGS, order=1)}),
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_checkpoint_of_another_training_is_said_and_not_continued(tmp_path: Path, change: str, capsys):
    part, other = OTHERS[change]
    run = dict(params=_start(), loss=_loss, settings=SETTINGS, folder=tmp_path, label="t", belongs_to={"data": "a"})
    served: list[int] = []
    for each in (run, run, run | other):
        train(make_batch=lambda step: served.append(step) or _batch(step), **each)
    assert served == [*range(12), *range(12)]  # the second one had nothing to do
    assert f"checkpoint.safetensors: of other {part}; training begins anew" in capsys.readouterr().out


@pytest.mark.parametrize("spoil", ["cut short", "empty", "of bertjax 0.1", "without a leaf"])
def test_a_broken_checkpoint_is_said_and_training_begins_anew(tmp_path: Path, spoil: str, capsys):
    run = dict(params=_start(), loss=_loss, settings=SETTINGS, folder=tmp_path, label="t")
    wanted = train(make_batch=_batch, **run)
    path = tmp_path / "checkpoint.safetensors"
    with safetensors.safe_open(path, framework="numpy") as file:
        about, leaves = json.loads(file.metadata()["about"]), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if spoil in ("cut short", "empty"):
        path.write_bytes(path.read_bytes()[: -20 if spoil == "cut short" else 0])
    else:
        about["identity"] = "b29f" * 16 if spoil == "of bertjax 0.1" else about["identity"]
        leaves.pop("state.0")
        safetensors.numpy.save_file(leaves, path, metadata={"about": json.dumps(about)})
    found = train(make_batch=_batch, **run)
    assert "training begins anew" in capsys.readouterr().out
    for name, value in wanted.items():
        np.testing.assert_array_equal(value, found[name])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["batch", "step", "evaluation"])
def test_a_signal_at_any_place_saves_and_the_run_ends_with_the_same_weights(tmp_path: Path, number: int, place: str):
    settings = dataclasses.replace(SETTINGS, evaluations=3)

    def score(params):
        return -float(jnp.abs(params["dense.bias"]).sum())

    def loss(params, batch, key):
        if place == "step" and sent == [0]:  # while the first step is traced
            send()
        return _loss(params, batch, key)

    sent: list[int] = []

    def send():
        # Not by the kernel: another test's library may have left the process a signal stack that is gone.
        _thread.interrupt_main(number)

    def batch(step: int):
        sent.append(step)
        if place == "batch" and step == 5:
            send()
        return _batch(step)

    def evaluate(params):
        if place == "evaluation" and not done:
            done.append(True)
            send()
        return score(params)

    done: list[bool] = []
    run = dict(params=_start(), loss=loss, settings=settings, label="t")
    wanted = train(make_batch=_batch, evaluate=score, folder=tmp_path / "whole", **run)
    before = signal.getsignal(number)
    with pytest.raises(Terminated if number == signal.SIGTERM else KeyboardInterrupt):
        train(make_batch=batch, evaluate=evaluate, folder=tmp_path / "cut", **run)
    assert signal.getsignal(number) == before and 0 < len(sent) < 12
    served: list[int] = []
    found = train(
        make_batch=lambda step: served.append(step) or _batch(step), evaluate=score, folder=tmp_path / "cut", **run
    )
    assert served[0] == {"step": 1, "evaluation": 4, "batch": 5}[place]  # nothing that was done is done again
    for name, value in wanted.items():
        np.testing.assert_array_equal(value, found[name])


def test_a_second_signal_ends_the_process_at_once(tmp_path: Path):
    """A step that never ends, in a process of its own."""
    program = f"""
import os, signal, pathlib
from bertjax.training.stop import stop_requests
with stop_requests() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    pathlib.Path({str(tmp_path / "first")!r}).touch()
    os.kill(os.getpid(), signal.SIGTERM)
    pathlib.Path({str(tmp_path / "second")!r}).touch()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 143 and (tmp_path / "first").exists() and not (tmp_path / "second").exists()
    assert "stopping after this step" in done.stderr and "stopped at once" in done.stderr


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


def test_the_best_weights_outlive_an_interrupt_and_are_scored_once(tmp_path: Path):
    seen: list[dict] = []

    def evaluate(params: dict) -> float:
        seen.append(as_arrays(params))
        return 9.0 - len(seen)

    def interrupted(step: int) -> dict[str, np.ndarray]:
        if step == 5:
            raise KeyboardInterrupt
        return _batch(step)

    settings = TrainSettings(steps=12, learning_rate=0.05, evaluations=3)
    run = dict(params=_start(), loss=_loss, settings=settings, folder=tmp_path, label="t", evaluate=evaluate)
    with pytest.raises(KeyboardInterrupt):
        train(make_batch=interrupted, **run)
    for _ in range(2):  # goes on, and is found finished
        best = train(make_batch=_batch, **run)
        assert len(seen) == 3
        for name, value in seen[0].items():
            np.testing.assert_array_equal(best[name], value)


def test_the_start_is_kept_where_training_makes_it_worse(tmp_path: Path):
    scores, served, scored_at = iter([2.0, 1.0, 2.0]), [], []
    settings = TrainSettings(steps=12, learning_rate=0.05, evaluations=2)

    def evaluate(params: dict) -> float:
        scored_at.append(len(served))
        return next(scores)

    make_batch = lambda step: served.append(step) or _batch(step)  # noqa: E731
    narrow = {name: np.asarray(value, np.float16) for name, value in _start().items()}
    run = dict(params=narrow, loss=_loss, make_batch=make_batch, settings=settings, label="t")
    best = train(folder=tmp_path, evaluate=evaluate, score_start=True, **run)
    assert scored_at == [0, 7, 12]  # a batch is made while the step before it is taken
    for name, value in narrow.items():
        np.testing.assert_array_equal(best[name], value)
        assert best[name].dtype == np.float32


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
        decay = min(0.4, (1 + step) / (10 + step))
        wanted = {name: decay * value + (1 - decay) * weights[name] for name, value in wanted.items()}

    def interrupted(step: int) -> dict[str, np.ndarray]:
        if step == 7:
            raise KeyboardInterrupt
        return _batch(step)

    averaged = dict(settings=dataclasses.replace(SETTINGS, ema=0.4), folder=tmp_path / "averaged")
    with pytest.raises(KeyboardInterrupt):
        train(make_batch=interrupted, **averaged, **run)
    found = train(make_batch=_batch, **averaged, **run)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5)


def test_an_infinite_loss_ends_the_run(tmp_path: Path):
    with pytest.raises(WorkFailed, match="loss is inf at step 1; the start weights or the data give it"):
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
