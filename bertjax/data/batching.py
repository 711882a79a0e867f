"""Batches of windows of similar length, for little padding and few shapes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np

from bertjax.data.dataset import Dataset
from bertjax.data.windows import Window

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchPlan:
    """The windows of one batch, and the length in tokens that they are padded to."""

    rows: np.ndarray  # int32 [batch]: indexes of windows
    length: int


def padded_length(length: int, multiple: int, longest: int) -> int:
    """Round a length up to a multiple, but never past the longest allowed."""
    return min(-(-length // multiple) * multiple, longest)


def padded_lengths(lengths: np.ndarray, multiple: int, longest: int) -> np.ndarray:
    """`padded_length` of each length; shape and dtype as given."""
    return np.minimum(-(-lengths // multiple) * multiple, longest)


def collate(windows: Sequence[Window], rows: Sequence[int] | np.ndarray, length: int, pad_id: int = 0) -> Batch:
    """Pad windows into arrays.

    Returns:
      int32 arrays: `input_ids`, `attention_mask`, `token_type_ids` [batch, length]; `starts`, `ends` [batch].
    """
    shape = (len(rows), length)
    ids, mask, types = np.full(shape, pad_id, np.int32), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    for row, index in enumerate(rows):
        window = windows[index]
        size = len(window)
        ids[row, :size], mask[row, :size] = window.input_ids, 1
        types[row, window.context_start : size] = 1
    starts = np.array([windows[index].start for index in rows], np.int32)
    ends = np.array([windows[index].end for index in rows], np.int32)
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types, "starts": starts, "ends": ends}


def plan_epoch(
    lengths: np.ndarray, *, batch_size: int, multiple: int, longest: int, seed: int, epoch: int
) -> list[BatchPlan]:
    """Plan an epoch: shuffled batches of `batch_size` windows of similar length, the same for the same seed and epoch.

    Windows are shuffled, sorted by length inside pools of 64 batches, cut into batches, and the batches are
    shuffled. The last batch is filled up from the epoch's beginning, so that every batch has one shape per length.
    """
    random = np.random.default_rng((seed, epoch))
    order = random.permutation(len(lengths))
    short = -len(order) % batch_size
    order = np.concatenate([order, np.resize(order, short)])
    plans = []
    for begin in range(0, len(order), 64 * batch_size):
        pool = order[begin : begin + 64 * batch_size]
        pool = pool[np.argsort(lengths[pool], kind="stable")]
        for first in range(0, len(pool), batch_size):
            rows = pool[first : first + batch_size].astype(np.int32)
            plans.append(BatchPlan(rows=rows, length=padded_length(lengths[rows].max(), multiple, longest)))
    return [plans[index] for index in random.permutation(len(plans))]


def plan_inference(lengths: np.ndarray, *, tokens: int, multiple: int, longest: int) -> list[BatchPlan]:
    """Plan a pass: batches in order of length, of at most `tokens` padded tokens, with each window in exactly one.

    All batches of one padded length but the last have the same number of rows. A window longer than `tokens` makes a
    batch of its own.
    """
    order = np.argsort(lengths, kind="stable").astype(np.int32)
    padded = padded_lengths(lengths[order], multiple, longest)
    plans = []
    found, firsts = np.unique(padded, return_index=True)
    for length, rows in zip(found.tolist(), np.split(order, firsts[1:]), strict=True):
        size = max(1, tokens // length)
        plans += [BatchPlan(rows=rows[i : i + size], length=length) for i in range(0, len(rows), size)]
    return plans


def filled_batches(
    windows: Sequence[Window],
    lengths: np.ndarray,
    chosen: np.ndarray,
    *,
    tokens: int,
    multiple: int,
    longest: int,
    pad_id: int,
) -> list[Batch]:
    """Batch the chosen windows in one shape per padded length, for passes in which only real tokens count.

    The last batch of a length is filled up with repeated windows whose `attention_mask` is 0 throughout.

    Args:
      lengths: tokens of every window, int32 [windows].
      chosen: indexes of windows, int [chosen].
      tokens, multiple, longest: as for `plan_inference`.
      pad_id: as for `collate`.
    """
    batches = []
    for plan in plan_inference(lengths[chosen], tokens=tokens, multiple=multiple, longest=longest):
        rows = chosen[np.resize(plan.rows, max(1, tokens // plan.length))]
        batch = collate(windows, rows, plan.length, pad_id)
        batch["attention_mask"][len(plan.rows) :] = 0
        batches.append(batch)
    return batches


def step_planner(
    lengths: np.ndarray, *, batch_size: int, multiple: int, longest: int, seed: int
) -> Callable[[int], BatchPlan]:
    """The plan of any step, over as many epochs as the steps need; each is shuffled anew, see `plan_epoch`."""
    per_epoch = steps_per_epoch(lengths, batch_size)

    @functools.lru_cache(maxsize=1)
    def epoch_plans(epoch: int) -> list[BatchPlan]:
        return plan_epoch(lengths, batch_size=batch_size, multiple=multiple, longest=longest, seed=seed, epoch=epoch)

    return lambda step: epoch_plans(step // per_epoch)[step % per_epoch]


def batch_maker(dataset: Dataset, *, pad_id: int, batch_size: int, multiple: int, seed: int) -> Callable[[int], Batch]:
    """The batch of any step, padded to a multiple of `multiple`, with the indexes of its windows as `rows`."""
    plan_of = step_planner(
        dataset.lengths, batch_size=batch_size, multiple=multiple, longest=dataset.longest, seed=seed
    )

    def make_batch(step: int) -> Batch:
        plan = plan_of(step)
        batch = collate(dataset.windows, plan.rows, plan.length, pad_id)
        return batch | {"rows": plan.rows}

    return make_batch


def steps_per_epoch(lengths: np.ndarray, batch_size: int) -> int:
    """Batches in which every one of these sequences is read once; the last one is filled up."""
    return -(-len(lengths) // batch_size)
