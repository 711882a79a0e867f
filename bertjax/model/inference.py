"""Passes over a dataset without training: scoring a model in JAX."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tqdm import tqdm

from bertjax.data import batching
from bertjax.data.answers import predict
from bertjax.data.dataset import Dataset
from bertjax.data.metrics import Score, score
from bertjax.model.bert import BertForQuestionAnswering, DeviceBatch, Model, bind

INFERENCE_TOKENS = 4096  # padded tokens in a batch
LENGTH_MULTIPLE = 64  # fewer shapes compile; finer padding pays only where nothing is compiled


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A model's answers to a dataset's questions, and how they score."""

    score: Score
    answers: dict[str, str]  # by question id
    start_logits: list[np.ndarray]  # float32 [length of the window], in the windows' order
    end_logits: list[np.ndarray]


class Evaluator:
    """Scores models on one dataset; compiles once for each config and padded length, however often it is called."""

    def __init__(self, dataset: Dataset, *, dtype: DTypeLike = jnp.float32):
        self.dataset = dataset
        multiple = padding_multiple(LENGTH_MULTIPLE, dataset.longest)
        self.plans = batching.plan_inference(
            dataset.lengths, tokens=INFERENCE_TOKENS, multiple=multiple, longest=dataset.longest
        )

        @jax.jit
        def logits(model: Model, batch: DeviceBatch) -> tuple[jax.Array, jax.Array]:
            module = bind(BertForQuestionAnswering, model, dtype=dtype)
            output = module(batch["input_ids"], batch["attention_mask"], batch["token_type_ids"])
            return output.start_logits, output.end_logits

        self._logits = logits

    def __call__(self, model: Model, *, label: str = "evaluate") -> Evaluation:
        """Answer and score every question; `label` names the progress bar."""
        count = len(self.dataset.windows)
        starts: list[np.ndarray] = [np.empty(0)] * count
        ends: list[np.ndarray] = [np.empty(0)] * count
        bar = tqdm(total=count, desc=label, unit="window", dynamic_ncols=True, leave=False)
        for plan in self.plans:
            size = max(1, INFERENCE_TOKENS // plan.length)
            rows = np.resize(plan.rows, size)  # the last batch of a length is filled up: one shape per length
            batch = batching.collate(self.dataset.windows, rows, plan.length, model.config.pad_token_id)
            with jax.default_matmul_precision("highest"):  # float32 is not rounded to TF32 where a GPU would
                start, end = (np.asarray(value) for value in self._logits(model, batch))
            for row, index in enumerate(plan.rows):
                length = self.dataset.lengths[index]
                starts[index], ends[index] = start[row, :length], end[row, :length]
            bar.update(len(plan.rows))
        bar.close()
        answers = predict(self.dataset.examples, self.dataset.windows, starts, ends)
        return Evaluation(
            score=score(self.dataset.examples, answers), answers=answers, start_logits=starts, end_logits=ends
        )


def padding_multiple(fine: int, longest: int) -> int:
    """The multiple of tokens that passes without training pad windows to: `fine` on a CPU, else one length for all.

    An accelerator computes the padding of such a pass in less time than it takes to compile one more shape.
    """
    return fine if jax.default_backend() == "cpu" else longest
