"""Windows of the reference's layout, in time and memory linear in the context."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.answers import predict
from bertjax.data.dataset import from_examples, load_dataset
from bertjax.data.metrics import score
from bertjax.data.squad import Answer, Example
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import WindowSettings, make_windows
from tests.models import tiny_config, write_random_model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    write_random_model(folder, tiny_config(), seed=0)
    return load_tokenizer(folder)


def test_windows_of_a_long_context_overlap_and_own_each_token_once(tokenizer):
    context = " ".join(["king", "river", "city"] * 20)
    example = Example(id="q", question="who is the king", context=context, answers=(Answer(text="city", start=11),))
    windows = from_examples([example], tokenizer, WindowSettings(max_seq=30, doc_stride=8, max_query=8)).windows
    room = 30 - 4 - 3
    begins = [int(w.offsets[0, 0]) for w in windows]
    assert all(len(w) <= 30 for w in windows) and len(windows) == 1 + -(-(60 - room) // 8)
    assert begins == [
        context.index(context.split()[0], 0) + len(" ".join(context.split()[: 8 * i])) + (i > 0)
        for i in range(len(windows))
    ]
    owned = np.concatenate([w.offsets[w.max_context][:, 0] for w in windows])
    assert len(owned) == len(set(owned.tolist())) == 60
    assert windows[0].start == windows[0].end == windows[0].context_start + 2
    assert windows[-1].start == windows[-1].end == 0


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(0, 90),
    query=st.integers(1, 9),
    room=st.integers(1, 40),
    stride=st.integers(1, 50),
    at=st.floats(0, 1),
)
def test_windows_are_those_of_the_reference(tokenizer, length: int, query: int, room: int, stride: int, at: float):
    words = ["king"] * length
    begin = min(int(at * length), max(length - 3, 0))
    answers = (Answer(text=" ".join(words[begin : begin + 3]), start=5 * begin),) if length else ()
    example = Example(id="q", question="who " * query, context=" ".join(words) or "\u200b", answers=answers)
    lengths = WindowSettings(max_seq=8 + 4 + room, doc_stride=stride, max_query=8)
    windows = make_windows([example], tokenizer, lengths)
    room, begins = lengths.max_seq - min(query, 8) - 3, [0]  # as run_squad.py cuts spans of a document
    while begins[-1] + room < length:
        begins.append(begins[-1] + min(room, stride))
    assert [len(w.offsets) for w in windows] == [min(room, length - b) for b in begins]
    assert all(
        (w.offsets[:, 0] == 5 * (b + np.arange(len(w.offsets)))).all() for w, b in zip(windows, begins, strict=True)
    )
    for token in range(length):  # as run_squad.py says which span has a token's maximum context
        scores = [
            min(token - b, b + len(w.offsets) - 1 - token) + 0.01 * len(w.offsets)
            if b <= token < b + len(w.offsets)
            else -1
            for b, w in zip(begins, windows, strict=True)
        ]
        owners = [
            b <= token < b + len(w.offsets) and w.max_context[token - b] for b, w in zip(begins, windows, strict=True)
        ]
        assert np.flatnonzero(owners).tolist() == [scores.index(max(scores))]
    for window, b in zip(windows, begins, strict=True):
        last = min(begin + 3, length) - 1
        held = length and b <= begin and last < b + len(window.offsets)
        first = window.context_start
        assert (window.start, window.end) == ((begin - b + first, last - b + first) if held else (0, 0))


def test_a_long_context_is_cut_in_linear_time_and_memory(tokenizer):
    context = "king " * 100_000
    examples = [
        Example(id=str(n), question="who " * n, context=context, answers=(Answer(text="king", start=5 * n),))
        for n in range(1, 11)
    ]
    tracemalloc.start()
    begin = time.process_time()
    windows = make_windows(examples, tokenizer, WindowSettings())
    seconds, (_, peak) = time.process_time() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(windows) == 10 * 780
    # Twenty times as long and eight times as much before windows were shared; tracing slows this down threefold.
    assert seconds < 10 and peak < 150e6


def test_the_development_set_gives_the_references_windows_and_its_answers_back(shared_data: Path, minilm: Path):
    dev = load_dataset(shared_data / "dev-v1.1.json.gz", load_tokenizer(minilm), WindowSettings())
    assert (len(dev.examples), len(dev.windows)) == (10_570, 10_833)
    starts = [np.eye(1, len(w), w.start)[0] for w in dev.windows]
    ends = [np.eye(1, len(w), w.end)[0] for w in dev.windows]
    assert score(dev.examples, predict(dev.examples, dev.windows, starts, ends)).f1 > 99.5
