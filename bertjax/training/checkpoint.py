"""The state of training on disk, and to which training it belongs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy

from bertjax.files import repair, write_file_aside
from bertjax.identity import differing_parts, digest_arrays, digest_settings, make_identity
from bertjax.model.bert import Params, as_arrays
from bertjax.modeldir.store import Tensors
from bertjax.training.settings import TrainSettings

FILE = "checkpoint.safetensors"
METHOD = 2  # revision of what training computes; a checkpoint of another one is not continued

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


def training_identity(settings: TrainSettings, start: Params, parts: Mapping[str, str]) -> str:
    """Everything that decides how training ends: settings, start weights, and the caller's digests by name."""
    fields = dataclasses.asdict(settings)
    del fields["checkpoint_seconds"]
    return make_identity(
        method=METHOD, settings=digest_settings(fields), start=digest_arrays(as_arrays(start)), **parts
    )


def save(folder: Path, checkpoint: Checkpoint, identity: str) -> None:
    """Replace the folder's checkpoint.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    leaves = jax.tree.leaves(checkpoint.state)
    arrays: Tensors = {f"state.{index}": np.asarray(leaf) for index, leaf in enumerate(leaves)}
    arrays |= {f"best.{name}": value for name, value in (checkpoint.best or {}).items()}
    about: dict[str, Any] = {"step": checkpoint.step, "scored": checkpoint.scored, "identity": identity}
    about["best_score"] = float(checkpoint.best_score)
    write_file_aside(folder / FILE, safetensors.numpy.save(arrays, metadata={"about": json.dumps(about)}))


def restore(folder: Path, fresh: Checkpoint, identity: str) -> Checkpoint:
    """The checkpoint of this very training in `folder`, or `fresh`; one that is not of it, or broken, is told."""
    path = folder / FILE
    repair(path)
    if not path.exists():
        return fresh
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = json.loads(file.metadata()["about"])
            if about["identity"] != identity:
                others = [part for part in differing_parts(about["identity"], identity) if "=" in about["identity"]]
                print(f"{path}: of other {', '.join(others) or 'rules, of bertjax 0.1'}; training begins anew")
                return fresh
            return _read(file, about, fresh)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path}: broken or cut short ({type(error).__name__}: {error}); training begins anew")
        return fresh


def _read(file: Any, about: dict[str, Any], fresh: Checkpoint) -> Checkpoint:
    leaves, tree = jax.tree.flatten(fresh.state)
    state = [jnp.asarray(file.get_tensor(f"state.{index}")) for index in range(len(leaves))]
    best = {name[5:]: file.get_tensor(name) for name in file.keys() if name.startswith("best.")}  # noqa: SIM118
    return Checkpoint(
        step=int(about["step"]),
        scored=int(about["scored"]),
        state=jax.tree.unflatten(tree, state),
        best_score=float(about["best_score"]),
        best=best or None,
    )
