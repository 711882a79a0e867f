"""The embedded corpus: what its evaluation part shares with training, and what guessing by kind scores on it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from bertjax.data.corpus import FACTS, make_paragraphs, part_values, random_value_answers, write_corpus
from bertjax.data.metrics import score
from bertjax.data.squad import read_squad
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import write_vocabulary


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), seed=0, train=300, val=20, evaluation=200)


def test_it_is_squad_and_the_same_for_the_same_seed(files, tmp_path: Path):
    again = write_corpus(tmp_path, seed=0, train=300, val=20, evaluation=200)
    assert files.train.read_bytes() == again.train.read_bytes()
    assert [path.relative_to(tmp_path).name for path in (again.train, again.val, again.eval)] == [
        "train.json",
        "val.json",
        "eval.json",
    ]
    assert len(read_squad(files.eval)) == 200 * FACTS
    other = write_corpus(tmp_path, seed=1, train=300, val=20, evaluation=200)
    assert files.train.read_bytes() != other.train.read_bytes()


def test_it_is_word_for_word_the_corpus_that_the_docs_figures_are_of(files):
    """A change of it, meant or not (NumPy's generator may change too), makes all measured scores another corpus's."""
    written = b"".join(path.read_bytes() for path in (files.train, files.val, files.eval))
    assert hashlib.sha256(written).hexdigest() == "a9f654ef0220086d92d433f56e7c625ff22247aa50a4f1423cb386127bc5eccc"
    values = json.dumps([part_values(part, seed=0) for part in ("train", "val", "eval")]).encode()
    assert hashlib.sha256(values).hexdigest() == "cb2a9ad52a378dc489a8546a399a338d5d1e8a7ce2782f0c3a3824472dec431c"


def test_no_name_or_value_of_evaluation_occurs_in_training():
    parts = {part: part_values(part, seed=3) for part in ("train", "val", "eval")}
    for kind in parts["train"]:
        for part in ("val", "eval"):
            assert parts[part][kind] and not set(parts[part][kind]) & set(parts["train"][kind])
    texts = " ".join(paragraph.context for paragraph in make_paragraphs("train", 300, seed=3))
    for paragraph in make_paragraphs("eval", 50, seed=3):
        assert paragraph.subject not in texts.replace(".", "").split()


def test_every_answer_stands_among_others_of_its_kind_and_the_question_does_not_quote_its_sentence():
    for paragraph in make_paragraphs("eval", 100, seed=0):
        assert len(set(paragraph.values)) == FACTS == len(paragraph.questions)
        for question in paragraph.questions:
            begin = question.answer_start
            assert paragraph.context[begin : begin + len(question.answer)] == question.answer
            sentence = next(part for part in paragraph.context.split(". ") if question.answer in part)
            shared = set(sentence.lower().split()) & set(question.text.lower().strip("?").split())
            assert shared <= {paragraph.subject.lower(), "a", "the", "was", "of", "to", "in", "is", "on", "for"}


def test_guessing_by_kind_scores_below_sixty_and_the_first_value_no_better(files):
    examples, paragraphs = read_squad(files.eval), make_paragraphs("eval", 200, seed=0)
    guessed = score(examples, random_value_answers(paragraphs, prefix="eval", seed=0))
    assert 15 < guessed.f1 < 60
    first = {f"eval-{n}-{i}": p.values[0] for n, p in enumerate(paragraphs) for i in range(FACTS)}
    assert score(examples, first).f1 < 60


def test_the_vocabulary_of_training_spells_evaluation_without_unknowns(files, tmp_path: Path):
    texts = [text for example in read_squad(files.train) for text in (example.question, example.context)]
    size = write_vocabulary(tmp_path / "t", texts, vocab_size=700)
    tokenizer = load_tokenizer(tmp_path / "t")
    assert size <= 700 and size == tokenizer.get_vocab_size()
    write_vocabulary(tmp_path / "again", texts, vocab_size=700)
    name = "tokenizer.json"
    assert (tmp_path / "again" / name).read_text() == (tmp_path / "t" / name).read_text()
    unknown = tokenizer.token_to_id("[UNK]")
    for example in read_squad(files.eval)[:50]:
        assert unknown not in tokenizer.encode(example.context).ids
