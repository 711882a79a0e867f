"""From a text and a question to an answer, without a terminal and without HTTP."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from bertjax.asking import terminal
from bertjax.asking.reader import EXAMPLE, Reader, Reply, example_for, teacher_of
from bertjax.data.dataset import load_dataset
from bertjax.data.squad import read_squad
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import WindowSettings
from bertjax.engines.choose import open_backend
from bertjax.errors import UserError
from bertjax.model.bert import Model
from bertjax.model.inference import Evaluator
from bertjax.modeldir.store import load_question_answering


def test_answers_are_those_of_the_evaluation(run, readers):
    windows = WindowSettings(max_seq=128, doc_stride=64, max_query=32)  # as the run says
    dataset = load_dataset(run / "eval.json", load_tokenizer(run / "teacher"), windows)
    teacher = Model.of(load_question_answering(run / "teacher"))
    answers = Evaluator(dataset)(teacher).answers
    replies = {e.id: readers[1].answer(e.context, e.question) for e in dataset.examples}
    assert {key: reply.answer for key, reply in replies.items()} == answers
    assert max(reply.windows for reply in replies.values()) > 2 and len(set(answers.values())) > 5
    for example in dataset.examples:
        reply = replies[example.id]
        assert reply.answer == example.context[reply.start : reply.end]


def test_score_is_the_probability_over_the_candidate_spans(run, readers):
    text, question = "the king of the city was by the river", "who was king"
    reply = readers[1].answer(text, question)
    tokenizer = load_tokenizer(run / "teacher")
    asked, context = (tokenizer.encode(part, add_special_tokens=False).ids for part in (question, text))
    first = len(asked) + 2
    ids = np.array([[tokenizer.token_to_id("[CLS]"), *asked, tokenizer.token_to_id("[SEP]"), *context]])
    ids = np.append(ids, [[tokenizer.token_to_id("[SEP]")]], axis=1)
    assert ids.size <= 20  # so that every start and end is among the best 20
    types = (np.arange(ids.size) >= first).astype(np.int64)[None]
    backend = open_backend("onnxruntime", run / "teacher", streams=1, threads=1, longest=128)
    (start,), (end,) = backend.infer(ids, np.ones_like(ids), types)
    last = first + len(context)
    sums = [start[i] + end[j] for i in range(first, last) for j in range(i, last)]
    assert reply.logit_sum == pytest.approx(max(sums), abs=1e-4)
    assert reply.score == pytest.approx(np.exp(max(sums)) / np.exp(sums).sum(), rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_windows_with_nan_or_infinite_logits_are_counted_and_give_no_answer(readers, monkeypatch, bad):
    text, infer = "the king of the old city built a bridge " * 30, readers[1]._backend.infer
    sound = readers[1].answer(text, "who was king")
    assert sound.windows > 2 and sound.non_finite == 0 and sound.start is not None

    def spoilt(rows, *feed):
        starts, ends = infer(rows, *feed)
        whole = feed[0].all(1)  # the last window alone is shorter than the others
        return np.where(whole[:, None], bad, starts), ends

    monkeypatch.setattr(readers[1]._backend, "infer", spoilt)
    reply = readers[1].answer(text, "who was king")
    assert reply.non_finite == sound.windows - 1 and np.isfinite([reply.score, reply.logit_sum]).all()
    monkeypatch.setattr(readers[1]._backend, "infer", lambda *feed: (np.full(feed[0].shape, bad), infer(*feed)[1]))
    reply = readers[1].answer(text, "who was king")
    assert (reply.non_finite, reply.start, reply.score) == (sound.windows, None, 0.0)


@pytest.mark.parametrize("word", ["cafe\u0301", "e\u0301", "\u2764\ufe0f", "\U0001f469\u200d\U0001f680", "M\u00fcller"])
def test_an_answer_keeps_what_belongs_to_its_last_letter(readers, word):
    reply = readers[0].answer(f"\U0001f600{word} ", "who")  # one word, however it is cut
    assert reply.answer == f"\U0001f600{word} "[reply.start : reply.end]
    rest = f"\U0001f600{word} "[reply.end :]
    assert not rest.startswith(("\u0301", "\ufe0f", "\u200d"))


@pytest.mark.parametrize(
    ("text", "question", "told"),
    [(" \n", "who", "text: is empty"), ("a", "", "question: is empty"), ("a \ud83d", "who", "text: holds half of")],
)
def test_what_cannot_be_read_is_told(readers, text, question, told):
    with pytest.raises(UserError, match=told):
        readers[0].answer(text, question)


def test_a_text_of_no_words_has_no_answer(readers):
    reply = readers[0].answer("\u200b", "who")
    assert (reply.answer, reply.start, reply.end, reply.score, reply.logit_sum) == ("", None, None, 0.0, None)


def test_a_run_brings_its_teacher_and_an_example(run, tmp_path):
    assert teacher_of(run / "student-int8") == (run / "teacher").resolve()
    assert teacher_of(run / "teacher") is None and teacher_of(tmp_path / "model") is None
    assert example_for(run / "student-int8") == read_squad(run / "eval.json")[0]
    assert example_for(tmp_path / "model") == EXAMPLE


def test_a_reply_is_shown_in_its_context_and_cannot_steer_the_terminal():
    text = "word " * 60 + "built\nby \x1b[2JIda Keller in 1871 " + "word " * 60
    start = text.index("Ida")
    reply = Reply(
        answer="Ida Keller",
        start=start,
        end=start + 10,
        score=0.5,
        logit_sum=3.0,
        non_finite=0,
        windows=2,
        tokenize_ms=1,
        infer_ms=2,
    )
    shown = terminal.format_reply(reply, text, color=False).splitlines()
    assert shown[0] == f"Ida Keller   (score 50.0%, characters {start} to {start + 10})"
    assert "built by  [2J>>Ida Keller<< in 1871 word" in shown[1]
    assert shown[1].startswith("  ... word") and shown[1].endswith("word ...") and len(shown[1]) < 250
    assert shown[2] == "  1.0 ms tokenization + 2.0 ms inference, 2 windows"
    unsound = terminal.format_reply(dataclasses.replace(reply, non_finite=1), text, color=False).splitlines()
    assert unsound[:3] == shown and unsound[3].startswith("  warning: NaN or infinite logits in 1 of them")
    nothing = dataclasses.replace(reply, answer="", start=None, end=None)
    assert terminal.format_reply(nothing, text, color=False).startswith("no answer")


def test_asking_imports_no_training_library(run):
    code = f"""
import sys
from pathlib import Path
from bertjax.asking import server, terminal
from bertjax.asking.reader import Reader
Reader(Path({str(run / "student-int8")!r}), backend="onnxruntime").answer("the king", "who")
print(sorted({{"jax", "flax", "torch", "tensorflow", "transformers"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_a_model_that_cannot_be_asked_is_told(run, tmp_path):
    with pytest.raises(UserError, match="config.json: no such file"):
        Reader(tmp_path, backend="onnxruntime")
    (tmp_path / "config.json").write_bytes((run / "student-int8/config.json").read_bytes())
    with pytest.raises(UserError, match=r"no tokenizer.json and no vocab.txt"):
        Reader(tmp_path, backend="onnxruntime")
