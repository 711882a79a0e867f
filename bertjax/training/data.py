"""The data of a training stage."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import numpy as np

from bertjax.data.batching import Batch, batch_maker, steps_per_epoch
from bertjax.data.dataset import Dataset
from bertjax.identity import digest_settings

StepBatch = Mapping[str, np.ndarray | jax.Array]  # what a step is called with, on the host or already on the device


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """The windows that a stage trains on, in batches of one size, and those that its weights are chosen by."""

    train: Dataset
    validation: Dataset
    batch_size: int  # windows of a step
    length_multiple: int  # batches are padded to a multiple of this many tokens

    @property
    def digest(self) -> str:
        """Digest of everything that decides the batches and the scores."""
        return digest_settings([self.train.digest, self.validation.digest, self.batch_size, self.length_multiple])

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every window is read once."""
        return steps_per_epoch(self.train.lengths, self.batch_size)

    def batches(self, *, pad_id: int, seed: int) -> Callable[[int], Batch]:
        """The batch of any step; the same seed gives the same batches."""
        return batch_maker(
            self.train, pad_id=pad_id, batch_size=self.batch_size, multiple=self.length_multiple, seed=seed
        )
