"""Importance of every head, FFN unit, block and layer, from gradients.

Each pruning unit has a gate of 1 on its output. The empirical Fisher information of a gate, the mean over examples
of its squared loss gradient, is (twice) the second-order estimate of what closing it costs when the model is near
a minimum (LeCun et al. 1990; Kwon et al. 2022, "A Fast Post-Training Pruning Framework for Transformers").
The square is taken for each example before anything is summed: a sum over a batch lets examples cancel each other.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from bertjax.data import batching
from bertjax.data.dataset import Dataset
from bertjax.files import write_file_aside
from bertjax.identity import differing_parts
from bertjax.model.bert import BertForQuestionAnswering, DeviceBatch, Gates, Model, bind
from bertjax.model.inference import padding_multiple
from bertjax.modeldir.config import BertConfig
from bertjax.training.losses import span_cross_entropy

METHOD = 1  # revision of the measure; an importance of another one is measured anew
BATCH_TOKENS = 4096
LENGTH_MULTIPLE = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Importance:
    """Fisher information of every gate, float64, larger is more important.

    heads[i]: [heads of layer i]; ffn[i]: [FFN units of layer i]; attention_blocks, ffn_blocks, layers: [layers],
    those of one common gate on all heads, on all units, and on both blocks of a layer.
    """

    heads: tuple[np.ndarray, ...]
    ffn: tuple[np.ndarray, ...]
    attention_blocks: np.ndarray
    ffn_blocks: np.ndarray
    layers: np.ndarray


def open_gates(config: BertConfig, batch: int) -> Gates:
    """All gates at 1, for `batch` examples."""
    return Gates(
        heads=tuple(jnp.ones((batch, layer.heads)) for layer in config.layers),
        ffn=tuple(jnp.ones((batch, layer.ffn)) for layer in config.layers),
    )


def gate_gradients(model: Model, batch: DeviceBatch) -> Gates:
    """Each example's gradient of its own span loss by its own gates, shaped like `Gates`.

    Gates are per example, so one backward pass over the summed loss gives all examples' gradients apart.
    """

    def total(gates: Gates) -> jax.Array:
        module = bind(BertForQuestionAnswering, model)
        output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"], gates=gates)
        return span_cross_entropy(output, batch["attention_mask"], batch["starts"], batch["ends"]).sum()

    return jax.grad(total)(open_gates(model.config, batch["input_ids"].shape[0]))


def fisher(gradients: jax.Array) -> jax.Array:
    """A batch's part of the Fisher information, [gates], from its gate gradients [B, gates], one row an example."""
    return jnp.square(gradients).sum(axis=0)


def measure_importance(
    model: Model,
    dataset: Dataset,
    *,
    examples: int,
    seed: int,
    summary: Callable[[jax.Array], jax.Array] = fisher,
) -> Importance:
    """Fisher information over `examples` windows of `dataset` that hold their answer, drawn at random.

    Args:
      model: in floating point.
      summary: from a batch's gate gradients [B, gates] to the numbers [gates] that are summed; not `fisher` in
        comparisons only.
    """
    answered = np.array([index for index, window in enumerate(dataset.windows) if window.end > 0])
    chosen = np.random.default_rng(seed).permutation(answered)[:examples]

    @jax.jit
    def summarize(model: Model, batch: DeviceBatch, real: jax.Array) -> dict[str, tuple[jax.Array, ...]]:
        gradients = gate_gradients(model, batch)
        heads = [gradient * real[:, None] for gradient in gradients.heads]
        ffn = [gradient * real[:, None] for gradient in gradients.ffn]
        attention_gate = [gradient.sum(axis=1, keepdims=True) for gradient in heads]
        ffn_gate = [gradient.sum(axis=1, keepdims=True) for gradient in ffn]
        return {
            "heads": tuple(map(summary, heads)),
            "ffn": tuple(map(summary, ffn)),
            "attention_blocks": tuple(summary(gate)[0] for gate in attention_gate),
            "ffn_blocks": tuple(summary(gate)[0] for gate in ffn_gate),
            "layers": tuple(summary(a + f)[0] for a, f in zip(attention_gate, ffn_gate, strict=True)),
        }

    totals = None
    multiple = padding_multiple(LENGTH_MULTIPLE, dataset.longest)
    plans = batching.plan_inference(
        dataset.lengths[chosen], tokens=BATCH_TOKENS, multiple=multiple, longest=dataset.longest
    )
    bar = tqdm(total=len(chosen), desc="importance", unit="example", dynamic_ncols=True)
    for plan in plans:
        size = max(1, BATCH_TOKENS // plan.length)  # one shape per length: the last batch is filled up, weight 0
        rows = chosen[np.resize(plan.rows, size)]
        real = (np.arange(size) < len(plan.rows)).astype(np.float32)
        batch = batching.collate(dataset.windows, rows, plan.length, model.config.pad_token_id)
        found = jax.tree.map(lambda value: np.asarray(value, np.float64), summarize(model, batch, real))
        totals = found if totals is None else jax.tree.map(np.add, totals, found)
        bar.update(len(plan.rows))
    bar.close()
    mean = jax.tree.map(lambda value: value / len(chosen), totals)
    return Importance(
        heads=mean["heads"],
        ffn=mean["ffn"],
        attention_blocks=np.array(mean["attention_blocks"]),
        ffn_blocks=np.array(mean["ffn_blocks"]),
        layers=np.array(mean["layers"]),
    )


def save_importance(path: Path, importance: Importance, identity: str) -> None:
    """Write as `.npz`, with the identity of what it was measured on.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    arrays = {"attention_blocks": importance.attention_blocks, "ffn_blocks": importance.ffn_blocks}
    arrays |= {"layers": importance.layers, "identity": np.array(identity)}
    arrays |= {f"heads.{index}": value for index, value in enumerate(importance.heads)}
    arrays |= {f"ffn.{index}": value for index, value in enumerate(importance.ffn)}
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    write_file_aside(path, buffer.getvalue())


def load_importance(path: Path, identity: str | None = None) -> Importance | None:
    """Read what `save_importance` wrote.

    Args:
      identity: that the file must have; None takes any.

    Returns:
      None, and a line that says why, where the file is of another identity or broken; None where there is no file.
    """
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            found, count = str(file["identity"]), len(file["layers"])
            if identity is not None and found != identity:
                print(f"{path}: of other {', '.join(differing_parts(found, identity))}; measured anew")
                return None
            return Importance(
                heads=tuple(file[f"heads.{index}"] for index in range(count)),
                ffn=tuple(file[f"ffn.{index}"] for index in range(count)),
                attention_blocks=file["attention_blocks"],
                ffn_blocks=file["ffn_blocks"],
                layers=file["layers"],
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        print(f"{path}: broken, or of bertjax 0.1 ({type(error).__name__}: {error}); measured anew")
        return None
