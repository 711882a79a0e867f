"""The choice of a span, and answers cut at grapheme clusters whatever the tokenizer drops."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.data.answers import best_span, predict, whole_clusters, write_predictions
from bertjax.data.squad import Answer, Example
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import write_vocabulary
from bertjax.data.windows import Window, WindowSettings, make_windows

TEXTS = {  # the answer between > and <
    "a decomposed accent": "held in a small >cafe\u0301< near the river",
    "two marks on a letter": "Tha\u0300nh pho\u0302\u0301 >Hue\u0302\u0301< na\u0306\u0300m",
    "a vowel sign": "\u0928\u0908 >\u092c\u0902\u0927\u0941< \u0925\u093e",
    "Thai tone marks": "\u0e01 >\u0e17\u0e35\u0e48\u0e19\u0e35\u0e48<",
    "Arabic kasra": "in \u0641\u064a >\u0641\u0627\u0633\u064d< \u0641\u064a",
    "Hebrew points": "\u05d0 >\u05d9\u05b4\u05dd\u05b8< \u05de",
    "a variation selector": "the sign >\u2764\ufe0f< and nothing else",
    "a keycap": "press >1\ufe0f\u20e3< to begin",
    "joined emoji": "the family >\U0001f468\u200d\U0001f469\u200d\U0001f467< came",
    "a skin tone": "she waved >\U0001f44b\U0001f3fd< twice",
    "a flag": "the flag >\U0001f1e8\U0001f1ed< was red",
    "a joiner at the end": "the word >\u0915\u094d\u200d< ended",
    "a soft hyphen inside": "the >Zusam\u00admen\u00adarbeit< went well",
    "a decomposed dakuten": "\u306f >\u30ab\u3099< \u3067",
    "nothing to widen": "the king >was by< the river",
}


@pytest.mark.parametrize("marked", TEXTS.values(), ids=TEXTS.keys())
def test_the_labels_of_an_answer_give_its_text_back(marked: str, tmp_path: Path):
    before, rest = marked.split(">")
    text, after = rest.split("<")
    context = before + text + after
    write_vocabulary(tmp_path / "t", [context] * 3, vocab_size=500)
    example = Example(id="q", question="what", context=context, answers=(Answer(text=text, start=len(before)),))
    (window,) = make_windows([example], load_tokenizer(tmp_path / "t"), WindowSettings(max_seq=200))
    start, end = (np.eye(1, len(window), at)[0] for at in (window.start, window.end))
    assert predict([example], [window], [start], [end]) == {"q": text}


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("ab \r\n\u0301\ufe0f\u200d\u00ad\u0600\u0915\u094d\U0001f468\U0001f1e8\u1100\u1161\u30ab", min_size=1),
    data=st.data(),
)
def test_a_span_grows_to_the_nearest_boundaries(text: str, data: st.DataObject):
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    bounds = [0, *(cluster.end() for cluster in regex.finditer(r"\X", text))]
    if text.isascii():  # no token ends inside a CR LF
        bounds = list(range(len(text) + 1))
    expected = max(b for b in bounds if b <= start), min(b for b in bounds if b >= end)
    assert whole_clusters(text, start, end) == expected


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


def _window(tokens: int) -> Window:
    """A window whose context is all but four of its tokens, each of one character and owned."""
    offsets = np.stack([np.arange(tokens - 4), np.arange(tokens - 4) + 1], axis=1).astype(np.int32)
    return Window(
        example=0,
        input_ids=np.zeros(tokens, np.int32),
        context_start=3,
        offsets=offsets,
        max_context=np.ones(tokens - 4, bool),
        start=0,
        end=0,
    )


@pytest.mark.parametrize("better, found", [(19, (10.5, (21, 23))), (20, (-np.inf, None))])
def test_a_span_is_made_of_the_twenty_best_starts_and_ends(better: int, found: tuple):
    for swap in (False, True):
        window, start, end = _window(70), np.full(70, -9.0), np.full(70, -9.0)
        start[24], end[25] = 1.5, 9.0  # the only start that stands before its end
        start[40 : 40 + better] = 5.0
        end[3:22] = 4.0  # nineteen ends before any start
        if swap:  # the same seen from the other end
            start, end = end[68::-1], start[68::-1]
            found = (found[0], found[1] and (40, 42))
        score, span = best_span(window, start, end) if not swap else best_span(_window(69), start, end)
        assert (score, span) == found


@pytest.mark.parametrize("tokens, allowed", [(30, True), (31, False)])
def test_an_answer_has_thirty_tokens_at_most(tokens: int, allowed: bool):
    window, start, end = _window(60), np.zeros(60), np.zeros(60)
    start[10], end[10 + tokens - 1] = 9.0, 9.0
    assert (best_span(window, start, end)[0] == 18.0) == allowed


@pytest.mark.parametrize("second, answer", [(7.0, "b"), (4.0, "a")])
def test_a_question_is_answered_by_its_best_window(second: float, answer: str):
    example = Example(id="q", question="", context="abcdef", answers=())
    windows, logits = [_window(10), _window(10)], [np.full(10, -5.0), np.full(10, -5.0)]
    logits[0][3], logits[1][4] = 5.0, second
    examples = [example, dataclasses.replace(example, id="unasked")]
    assert predict(examples, windows, logits, logits) == {"q": answer, "unasked": ""}


def test_predictions_are_the_official_scripts_json(tmp_path: Path):
    write_predictions(tmp_path / "p.json", {"q1": "caf\u00e9", "q2": ""})
    assert (tmp_path / "p.json").read_text(encoding="utf-8") == '{\n "q1": "caf\u00e9",\n "q2": ""\n}\n'
