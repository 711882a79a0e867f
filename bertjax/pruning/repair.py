"""Repair without training: each cut block's output projection is fitted to the output of the teacher's whole block.

Blocks are taken in the order in which they run. A block of the student reads the output of the repaired blocks before
it; its output projection `W, b` becomes the ridge solution of

    min ||h W^T + b - (t - x)||^2 + ridge ||W - W_cut||^2

over the tokens of training windows, where `h` are the student's kept heads or FFN units, `x` its residual and `t` the
teacher's sum at the same place, before LayerNorm. So a block also corrects the errors of earlier ones. Closed form,
after Kwon et al. 2022 ("A Fast Post-Training Pruning Framework for Transformers", section 4.3, which fits one factor
for each unit) and Park et al. 2024 (K-prune, "Accurate Retraining-free Pruning for Pretrained Encoder-based Language
Models", which fits whole projections).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from bertjax.data import batching
from bertjax.data.dataset import Dataset
from bertjax.model.bert import BertForQuestionAnswering, Context, Layer, Model, bind, mask_bias
from bertjax.model.inference import padding_multiple
from bertjax.modeldir.tensors import layer_prefix

RIDGE = 1e-4  # times the mean square of the kept units
BATCH_TOKENS = 4096
LENGTH_MULTIPLE = 128  # every layer compiles for every padded length: few lengths


def repair(teacher: Model, student: Model, dataset: Dataset, *, examples: int, seed: int) -> Model:
    """The student with refitted output projections.

    Args:
      student: cut out of `teacher`, same hidden size and number of layers.
      dataset: `examples` of its windows, drawn at random, are used.
    """
    repaired = student
    batches = batching.filled_batches(
        dataset.windows,
        dataset.lengths,
        np.random.default_rng(seed).permutation(len(dataset.windows))[:examples],
        tokens=BATCH_TOKENS,
        multiple=padding_multiple(LENGTH_MULTIPLE, dataset.longest),
        longest=dataset.longest,
        pad_id=teacher.config.pad_token_id,
    )
    states = [_State.start(teacher, batch) for batch in batches]
    blocks = [(index, block) for index in range(len(teacher.config.layers)) for block in ("attention", "ffn")]
    for index, block in tqdm(blocks, desc="repair", unit="block", dynamic_ncols=True):
        name = f"{layer_prefix(index)}.{'attention.output' if block == 'attention' else 'output'}"
        found = [_run_block(index, block, teacher, repaired, state) for state in states]
        moments = [
            _moments(hidden, target, state.mask) for (hidden, target, _), state in zip(found, states, strict=True)
        ]
        gram, moment = (_sum(parts) for parts in zip(*moments, strict=True))
        weight, bias = fit(gram, moment, repaired.params.get(f"{name}.dense.weight"))
        fitted = {f"{name}.dense.bias": jnp.asarray(bias, jnp.float32)}
        if weight is not None:
            fitted[f"{name}.dense.weight"] = jnp.asarray(weight, jnp.float32)
        repaired = repaired.with_params(repaired.params | fitted)
        finish = partial(_finish_block, index, block, repaired)
        states = [
            dataclasses.replace(state, teacher=after, student=finish(hidden, state.student))
            for (hidden, _, after), state in zip(found, states, strict=True)
        ]
    return repaired


def fit(
    gram: np.ndarray, moment: np.ndarray, cut: np.ndarray | jax.Array | None
) -> tuple[np.ndarray | None, np.ndarray]:
    """The ridge solution for a projection, from sums over tokens; a last unit that is always 1 stands for the bias.

    Args:
      gram: float64 [K + 1, K + 1], the sum of `h h^T`.
      moment: float64 [K + 1, D], the sum of `h target^T`.
      cut: the weight [D, K] that the ridge pulls the solution to, None where K is 0.

    Returns:
      weight [D, K] (None where K is 0) and bias [D], float64.
    """
    units = len(gram) - 1
    if cut is None or not units:
        return None, moment[-1] / gram[-1, -1]
    pull = np.zeros(units + 1)
    pull[:units] = RIDGE * np.trace(gram[:units, :units]) / units
    drawn = np.vstack([np.asarray(cut, np.float64).T, np.zeros((1, moment.shape[1]))])
    solution = np.linalg.solve(gram + np.diag(pull), moment + pull[:, None] * drawn)
    return solution[:units].T, solution[units]


def _sum(parts: Iterable[jax.Array]) -> np.ndarray:
    """The sum in float64, one after the other: at BERT-large's size a copy of all would not fit memory."""
    total = np.zeros((), np.float64)
    for part in parts:
        total = total + np.asarray(part, np.float64)
    return total


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class _State:
    """One batch on its way through the layers: both models' hidden states [B, S, D], and the mask [B, S]."""

    mask: jax.Array
    teacher: jax.Array
    student: jax.Array

    @classmethod
    def start(cls, model: Model, batch: batching.Batch) -> _State:
        embeddings = bind(BertForQuestionAnswering, model).bert.embeddings
        x = embeddings(jnp.asarray(batch["input_ids"]), jnp.asarray(batch["token_type_ids"]))
        return cls(mask=jnp.asarray(batch["attention_mask"]), teacher=x, student=x)


def _layer(model: Model, index: int) -> Layer:
    return bind(BertForQuestionAnswering, model).bert.encoder.layer[index]


def _inner(layer: Layer, block: str, x: jax.Array, mask: jax.Array, index: int) -> jax.Array | None:
    context = Context(bias=mask_bias(mask))
    return layer.mix(x, context, index) if block == "attention" else layer.widen(x, context, index)


@partial(jax.jit, static_argnums=(0, 1))
def _run_block(
    index: int, block: str, teacher: Model, student: Model, state: _State
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One block of both models.

    Returns:
      The student's units [B, S, K] (K 0 where gone), the target of their projection and the teacher's output, both
      [B, S, D].
    """
    layer = _layer(teacher, index)
    inner = _inner(layer, block, state.teacher, state.mask, index)
    end = layer.attention.output if block == "attention" else layer.output
    summed = state.teacher + (end.dense.bias[...] if inner is None else end.dense(inner))
    hidden = _inner(_layer(student, index), block, state.student, state.mask, index)
    if hidden is None:
        hidden = jnp.zeros((*state.mask.shape, 0))
    return hidden, summed - state.student, end.LayerNorm(summed)


@jax.jit
def _moments(hidden: jax.Array, target: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums over real tokens of `h h^T` and `h target^T`, with a unit that is always 1 after the others."""
    ones = jnp.ones((*mask.shape, 1))
    rows = (jnp.concatenate([hidden, ones], axis=-1) * mask[..., None]).reshape(-1, hidden.shape[-1] + 1)
    with jax.default_matmul_precision("highest"):  # sums that a system is solved with; a GPU would round to TF32
        return rows.T @ rows, rows.T @ target.reshape(-1, target.shape[-1])


@partial(jax.jit, static_argnums=(0, 1))
def _finish_block(index: int, block: str, student: Model, hidden: jax.Array, x: jax.Array) -> jax.Array:
    """The student's hidden states after a block, [B, S, D], from its units and its residual `x`."""
    layer = _layer(student, index)
    end = layer.attention.output if block == "attention" else layer.output
    return end(hidden if hidden.shape[-1] else None, x, Context(bias=jnp.zeros(())), 0)
