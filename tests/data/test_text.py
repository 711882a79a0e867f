"""Texts for pre-training: plain ones in any Unicode encoding, and SQuAD files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bertjax.data.text import read_corpus, read_texts
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import write_vocabulary
from bertjax.errors import UserError

TEXT = "the red fox runs\nto the hill\n\n \nthe old fox sleeps\n"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer") / "t"
    write_vocabulary(folder, [TEXT] * 5, vocab_size=200)
    return load_tokenizer(folder)


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": "the red fox runs",
                    "qas": [
                        {"id": "0", "question": "who runs", "answers": [{"text": "fox", "answer_start": 8}]},
                        {"id": "1", "question": "who is red", "answers": [{"text": "fox", "answer_start": 8}]},
                    ],
                }
            ]
        }
    ]
}


@pytest.fixture(params=["squad.json", "squad.txt"])  # known by what it holds
def squad_file(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """One context with two questions."""
    (tmp_path / request.param).write_text(json.dumps(SQUAD))
    return tmp_path / request.param


def _words(tokenizer: Tokenizer, row: np.ndarray) -> str:
    return tokenizer.decode(row.tolist(), skip_special_tokens=False)


def test_text_is_split_at_empty_lines_and_long_paragraphs_are_cut(tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / "text.txt").write_text(TEXT)
    corpus = read_corpus(tmp_path / "text.txt", tokenizer, max_seq=32, questions=False)
    wanted = ["[CLS] the red fox runs to the hill [SEP]", "[CLS] the old fox sleeps [SEP]"]
    assert [_words(tokenizer, row) for row in corpus.rows] == wanted
    cut = read_corpus(tmp_path / "text.txt", tokenizer, max_seq=8, questions=False)
    assert cut.lengths.max() <= 8
    assert [i for row in cut.rows for i in row[1:-1]] == [i for row in corpus.rows for i in row[1:-1]]


def test_a_squad_file_gives_each_context_once_or_each_question_with_it(squad_file: Path, tokenizer: Tokenizer):
    contexts = read_corpus(squad_file, tokenizer, max_seq=32, questions=False)
    assert [_words(tokenizer, row) for row in contexts.rows] == ["[CLS] the red fox runs [SEP]"]
    pairs = read_corpus(squad_file, tokenizer, max_seq=32, questions=True)
    assert len(pairs.rows) == 2
    for row, second in zip(pairs.rows, pairs.seconds, strict=True):
        assert _words(tokenizer, row[second:]) == "the red fox runs [SEP]"
    assert read_texts(squad_file) == ["who runs", "the red fox runs", "who is red"]


@pytest.mark.parametrize(
    "content",
    [
        TEXT.replace("\n", "\r\n").encode(),
        TEXT.replace("\n", "\r").encode(),
        TEXT.encode("utf-8-sig"),
        TEXT.encode("utf-16"),
        gzip.compress(TEXT.encode()),
    ],
)
def test_plain_text_is_read_in_every_encoding(tmp_path: Path, content: bytes):
    (tmp_path / "text.txt").write_bytes(content)
    assert read_texts(tmp_path / "text.txt") == ["the red fox runs to the hill", "the old fox sleeps"]


def test_a_window_too_short_for_a_pair_is_told(squad_file: Path, tokenizer: Tokenizer):
    with pytest.raises(UserError, match="--max-seq 7: must be at least 8"):
        read_corpus(squad_file, tokenizer, max_seq=7, questions=True)
    assert read_corpus(squad_file, tokenizer, max_seq=8, questions=True).lengths.max() == 8


@pytest.mark.parametrize(
    ("content", "questions", "told"),
    [
        (None, False, "no such file"),
        (" \n\n", False, "is empty"),
        (TEXT, True, "SQuAD"),
        ("\u200b", False, "the tokenizer finds no token"),
        (b"\xff", False, "UTF-8"),
        ('{"data": [{"title"', False, "cut short or broken"),  # SQuAD, whatever the name
    ],
)
def test_wrong_text_is_told(tmp_path: Path, tokenizer: Tokenizer, content, questions: bool, told: str):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"text\.txt: .*{told}"):
        read_corpus(path, tokenizer, max_seq=32, questions=questions)
