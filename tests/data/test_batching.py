"""Batches of any lengths: no window is lost, padding is as planned, and the same seed gives the same batches."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.batching import batch_maker, collate, filled_batches, padded_length, plan_epoch, plan_inference
from bertjax.data.dataset import Dataset
from bertjax.data.windows import Window

LONGEST = 50
lengths_of_windows = st.lists(st.integers(4, LONGEST), min_size=1, max_size=200).map(lambda x: np.array(x, np.int32))
multiples = st.integers(1, 60)


def _windows(lengths: np.ndarray) -> list[Window]:
    """Windows whose ids are their number + 1, with three tokens before the context."""
    return [
        Window(
            example=number,
            input_ids=np.full(length, number + 1, np.int32),
            context_start=3,
            offsets=np.zeros((length - 4, 2), np.int32),
            max_context=np.ones(length - 4, bool),
            start=number % length,
            end=length - 1,
        )
        for number, length in enumerate(lengths.tolist())
    ]


@settings(max_examples=80, deadline=None)
@given(lengths=lengths_of_windows, multiple=multiples, tokens=st.integers(1, 500))
def test_a_pass_reads_each_window_once_in_batches_of_like_padding(lengths: np.ndarray, multiple: int, tokens: int):
    plans = plan_inference(lengths, tokens=tokens, multiple=multiple, longest=LONGEST)
    assert sorted(np.concatenate([plan.rows for plan in plans]).tolist()) == list(range(len(lengths)))
    for plan in plans:
        assert {padded_length(int(lengths[row]), multiple, LONGEST) for row in plan.rows} == {plan.length}
        assert len(plan.rows) == 1 or len(plan.rows) * plan.length <= tokens
    assert [plan.length for plan in plans] == sorted(plan.length for plan in plans)
    for one, following in zip(plans, plans[1:], strict=False):  # only the last batch of a length may be smaller
        assert one.length < following.length or len(one.rows) >= len(following.rows)


@settings(max_examples=80, deadline=None)
@given(lengths=lengths_of_windows, multiple=multiples, size=st.integers(1, 40), seed=st.integers(0, 9))
def test_an_epoch_reads_every_window_in_batches_of_one_size(lengths: np.ndarray, multiple: int, size: int, seed: int):
    def plan(epoch: int) -> list[tuple[list[int], int]]:
        plans = plan_epoch(lengths, batch_size=size, multiple=multiple, longest=LONGEST, seed=seed, epoch=epoch)
        return [(plan.rows.tolist(), plan.length) for plan in plans]

    plans = plan(0)
    assert len(plans) == -(-len(lengths) // size) and {len(rows) for rows, _ in plans} == {size}
    read = np.bincount([row for rows, _ in plans for row in rows], minlength=len(lengths))
    assert read.min() >= 1 and read.max() <= 1 + -(-size // len(lengths))
    for rows, length in plans:
        assert length == padded_length(int(lengths[rows].max()), multiple, LONGEST) >= lengths[rows].max()
    assert plan(0) == plans and (len(lengths) < 10 or plan(1) != plans)


@settings(max_examples=50, deadline=None)
@given(lengths=lengths_of_windows, seed=st.integers(0, 9))
def test_collated_windows_are_padded_and_nothing_else_changes(lengths: np.ndarray, seed: int):
    windows = _windows(lengths)
    rows = np.random.default_rng(seed).integers(len(windows), size=7)
    batch = collate(windows, rows, LONGEST, pad_id=999)
    for line, row in enumerate(rows):
        size = lengths[row]
        assert batch["input_ids"][line].tolist() == [row + 1] * size + [999] * (LONGEST - size)
        assert batch["attention_mask"][line].tolist() == [1] * size + [0] * (LONGEST - size)
        assert batch["token_type_ids"][line].tolist() == [0] * 3 + [1] * (size - 3) + [0] * (LONGEST - size)
        assert (batch["starts"][line], batch["ends"][line]) == (row % size, size - 1)
    assert {array.dtype for array in batch.values()} == {np.dtype(np.int32)}


@settings(max_examples=50, deadline=None)
@given(lengths=lengths_of_windows, multiple=multiples, tokens=st.integers(1, 300), seed=st.integers(0, 9))
def test_filled_batches_count_each_chosen_window_once(lengths: np.ndarray, multiple: int, tokens: int, seed: int):
    count = 1 + seed * len(lengths) // 10
    chosen = np.random.default_rng(seed).choice(len(lengths), count, replace=False)
    batches = filled_batches(
        _windows(lengths), lengths, chosen, tokens=tokens, multiple=multiple, longest=LONGEST, pad_id=0
    )
    shapes = [batch["input_ids"].shape for batch in batches]
    assert all(rows == max(1, tokens // length) for rows, length in shapes)
    real = [batch["attention_mask"].sum(axis=1) for batch in batches]
    assert sorted(np.concatenate(real)[np.concatenate(real) > 0].tolist()) == sorted(lengths[chosen].tolist())


@settings(max_examples=20, deadline=None)
@given(lengths=lengths_of_windows, size=st.integers(1, 9), step=st.integers(0, 100))
def test_a_step_has_the_same_batch_whatever_came_before_it(lengths: np.ndarray, size: int, step: int):
    dataset = Dataset(examples=[], windows=_windows(lengths), lengths=lengths, longest=LONGEST)
    fresh, used = (batch_maker(dataset, pad_id=0, batch_size=size, multiple=8, seed=1) for _ in range(2))
    used(step + 50)
    for name, value in fresh(step).items():
        np.testing.assert_array_equal(value, used(step)[name])
