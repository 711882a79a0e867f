"""Whole-word masking: whole words, the right shares, and nothing else changed."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.masking import Vocabulary, masked_batch

# Entries 0-4 are special, 5-19 begin words, 20-29 continue them.
VOCABULARY = Vocabulary(
    continues=np.arange(30) >= 20,
    special=np.arange(30) < 5,
    mask_id=4,
)
CLS, SEP = 2, 3


@settings(max_examples=60, deadline=None)
@given(tokens=st.lists(st.integers(5, 29), min_size=1, max_size=60), seed=st.integers(0, 10**6))
def test_only_whole_words_are_masked_and_labels_are_what_stood_there(tokens: list[int], seed: int):
    ids = np.array([CLS, 5, *tokens, SEP], np.int32)
    batch = masked_batch([ids], VOCABULARY, length=64, slots=16, random=np.random.default_rng(seed))
    chosen = batch["positions"][0][batch["weights"][0] > 0]
    np.testing.assert_array_equal(batch["labels"][0][: len(chosen)], ids[chosen])
    others = np.setdiff1d(np.arange(len(ids)), chosen)
    np.testing.assert_array_equal(batch["input_ids"][0, : len(ids)][others], ids[others])
    assert not {0, len(ids) - 1} & set(chosen.tolist())
    for position in chosen:
        if ids[position] >= 20:
            assert position - 1 in chosen
        if ids[position + 1] >= 20:
            assert position + 1 in chosen
    assert batch["attention_mask"][0].sum() == len(ids)


def test_shares_are_those_of_the_paper():
    random = np.random.default_rng(0)
    rows = [np.array([CLS, *random.integers(5, 20, 40), SEP], np.int32) for _ in range(2000)]
    batch = masked_batch(rows, VOCABULARY, length=42, slots=10, random=random)
    real = batch["weights"] > 0
    assert real.sum() == 2000 * 6  # 15 % of 40 words
    read = np.take_along_axis(batch["input_ids"], batch["positions"], axis=1)[real]
    labels = batch["labels"][real]
    assert abs((read == 4).mean() - 0.8) < 0.02
    kept = (read == labels).mean()  # 10 % unchanged, and the random ones that hit the same entry
    assert abs(kept - 0.1 - 0.1 / 25) < 0.02
    assert (read[read != 4] >= 5).all()


def test_a_word_that_does_not_fit_the_slots_is_left_alone():
    ids = np.array([CLS, 5, 20, 21, 22, SEP], np.int32)
    batch = masked_batch([ids], VOCABULARY, length=6, slots=3, random=np.random.default_rng(0))
    assert batch["weights"].sum() == 0
    np.testing.assert_array_equal(batch["input_ids"][0], ids)
