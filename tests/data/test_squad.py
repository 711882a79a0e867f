"""The reader's one-line refusals, and the official counts and scores on the real files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bertjax.data.answers import best_span, predict
from bertjax.data.dataset import from_examples, load_dataset
from bertjax.data.metrics import score
from bertjax.data.squad import Answer, Example, read_squad
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import Window, WindowSettings
from bertjax.errors import UserError
from tests.models import tiny_config, write_random_model


def _squad(context: str, answer: str, start: int) -> dict:
    qas = [{"id": "q1", "question": "who?", "answers": [{"text": answer, "answer_start": start}]}]
    return {"version": "1.1", "data": [{"title": "t", "paragraphs": [{"context": context, "qas": qas}]}]}


GOOD = _squad("the king was by the river", "king", 4)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "model"
    write_random_model(folder, tiny_config(), seed=0)
    return load_tokenizer(folder)


def test_plain_and_gzipped_files_read_the_same(tmp_path: Path):
    plain, zipped = tmp_path / "a.json", tmp_path / "a.json.gz"
    plain.write_text(json.dumps(GOOD))
    zipped.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_squad(plain) == read_squad(zipped)
    assert read_squad(plain)[0].answers == (Answer(text="king", start=4),)


@pytest.mark.parametrize(
    "content, told",
    [
        (json.dumps(GOOD)[:-9], "cut short"),
        ("[1, 2]", "'data'"),
        ('{"data": []}', "no question"),
        ('{"data": [{"title": "x"}]}', "'paragraphs'"),
        (json.dumps(_squad("the king", "queen", 4)), "'q1'.*does not stand"),
        (json.dumps(_squad("the king", "king", 3)), "answer_start 3"),
        (json.dumps({"data": GOOD["data"] * 2}), "stands twice"),
        (gzip.compress(json.dumps(GOOD).encode())[:-12], "cut short"),
    ],
)
def test_a_bad_file_is_told_in_one_line(tmp_path: Path, content: str | bytes, told: str):
    path = tmp_path / ("bad.json.gz" if isinstance(content, bytes) else "bad.json")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=told) as caught:
        read_squad(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path):
    with pytest.raises(UserError, match="no such file"):
        read_squad(tmp_path / "none.json")


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


def test_best_span_keeps_to_the_context_the_length_and_the_windows_own_tokens():
    offsets = np.stack([np.arange(40) * 2, np.arange(40) * 2 + 1], axis=1).astype(np.int32)
    owned = np.ones(40, bool)
    owned[0] = False
    window = Window(
        example=0, input_ids=np.zeros(44, np.int32), context_start=3, offsets=offsets, max_context=owned, start=0, end=0
    )
    start, end = np.zeros(44), np.zeros(44)
    start[[1, 3, 5]] = [9, 8, 7]  # in the question; not owned; the best that is left
    end[[43, 40, 4, 8]] = [9, 8, 7, 6]  # the final [SEP]; too far; before the start; the best that is left
    assert best_span(window, start, end) == (13.0, (4, 11))


def test_scores_follow_the_official_normalization():
    examples = [
        Example(id="a", question="", context="", answers=(Answer(text="The  Denver Broncos!", start=0),)),
        Example(
            id="b", question="", context="", answers=(Answer(text="in 1999", start=0), Answer(text="1999", start=3))
        ),
        Example(id="c", question="", context="", answers=(Answer(text="a red house", start=0),)),
    ]
    found = score(examples, {"a": "denver broncos", "b": "1999", "c": "red car"})
    assert found.exact_match == pytest.approx(200 / 3)
    assert found.f1 == pytest.approx(100 * (1 + 1 + 0.5) / 3)


def test_the_development_set_gives_the_references_windows_and_its_answers_back(shared_data: Path, minilm: Path):
    dev = load_dataset(shared_data / "dev-v1.1.json.gz", load_tokenizer(minilm), WindowSettings())
    assert (len(dev.examples), len(dev.windows)) == (10_570, 10_833)
    starts = [np.eye(1, len(w), w.start)[0] for w in dev.windows]
    ends = [np.eye(1, len(w), w.end)[0] for w in dev.windows]
    assert score(dev.examples, predict(dev.examples, dev.windows, starts, ends)).f1 > 99.5
