"""Masked-LM pre-training: that it learns, and that a checkpoint's own head is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from tokenizers import Tokenizer

from bertjax.data.masking import Vocabulary
from bertjax.data.text import read_corpus
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import write_vocabulary
from bertjax.model import masked_lm
from bertjax.model.bert import bind
from bertjax.model.masked_lm import BertForMaskedLM
from bertjax.modeldir.config import BertConfig
from bertjax.training import pretrain as training_pretrain
from bertjax.training.pretrain import Shape, _batch_maker, masked_lm_from_nothing, pretrain
from bertjax.training.settings import TrainSettings

TEXT = "the red fox runs\nto the hill\n\n\nthe old fox sleeps\n"


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_vocabulary(tmp_path / "tokenizer", [TEXT] * 5, vocab_size=200)
    return load_tokenizer(tmp_path / "tokenizer")


@pytest.fixture
def squad_file(tmp_path: Path) -> Path:
    """One context with two questions."""
    context = "the red fox runs"
    questions = [
        {"id": str(i), "question": q, "answers": [{"text": "fox", "answer_start": 8}]}
        for i, q in enumerate(("who runs", "who is red"))
    ]
    path = tmp_path / "squad.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": questions}]}]}))
    return path


def test_every_epoch_masks_anew_and_a_step_always_the_same(squad_file: Path, tokenizer: Tokenizer):
    corpus = read_corpus(squad_file, tokenizer, max_seq=32, questions=True)
    make = lambda: _batch_maker(corpus, Vocabulary.of(tokenizer), batch_size=2, seed=0)  # noqa: E731
    first, again = make(), make()
    assert len({first(step)["positions"].tobytes() for step in range(20)}) > 3
    for name, value in first(7).items():
        np.testing.assert_array_equal(value, again(7)[name])
    batch, row_types = (
        first(0),
        sorted(len(row) - second for row, second in zip(corpus.rows, corpus.seconds, strict=True)),
    )
    assert sorted(batch["token_type_ids"].sum(axis=1)) == row_types


def test_a_batch_holds_whole_sequences_at_their_padded_length_with_room_for_the_masked(
    tmp_path: Path, tokenizer: Tokenizer
):
    (tmp_path / "text.txt").write_text("red fox runs\n\nold hill sleeps\n\nthe fox\n")
    for longest, padded in ((16, 16), (200, 64)):
        corpus = read_corpus(tmp_path / "text.txt", tokenizer, max_seq=longest, questions=False)
        make = _batch_maker(corpus, Vocabulary.of(tokenizer), batch_size=2, seed=0)
        batches = [make(step) for step in range(2)]
        assert {batch["input_ids"].shape for batch in batches} == {(2, padded)}
        assert {batch["positions"].shape for batch in batches} == {(2, int(padded * 0.225) + 1)}
        read = {int(size) for batch in batches for size in batch["attention_mask"].sum(axis=1)}
        assert read == {len(row) for row in corpus.rows} and not any(batch["token_type_ids"].any() for batch in batches)
    other = _batch_maker(corpus, Vocabulary.of(tokenizer), batch_size=2, seed=1)
    assert any((make(step)["positions"] != other(step)["positions"]).any() for step in range(8))


def test_the_loss_is_the_mean_over_the_masked_tokens(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "text.txt").write_text(TEXT)
    corpus = read_corpus(tmp_path / "text.txt", tokenizer, max_seq=32, questions=False)
    config = dataclasses.replace(_config(tokenizer), hidden_dropout=0.1)
    model, given = masked_lm.fan_in_model(config, seed=0), {}
    monkeypatch.setattr(training_pretrain, "train", lambda **rest: given.update(rest) or rest["params"])
    pretrain(model, corpus, tokenizer, batch_size=2, settings=TrainSettings(steps=1, learning_rate=1), folder=tmp_path)
    batch, key = given["make_batch"](0), jax.random.key(0)
    inputs = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids", "positions"))
    logits = jax.jit(lambda *x: bind(BertForMaskedLM, model)(*x, dropout_key=key))(*inputs)
    each = -np.take_along_axis(log_softmax(np.asarray(logits), axis=-1), batch["labels"][..., None], axis=-1)[..., 0]
    assert 0 < batch["weights"].sum() < batch["weights"].size
    found = jax.jit(given["loss"])(model.params, batch, key)
    assert float(found) == pytest.approx(each[batch["weights"] > 0].mean(), rel=1e-4)


def test_a_model_from_nothing_has_its_shape_and_a_vocabulary_that_is_learned_once(tmp_path: Path):
    (tmp_path / "text.txt").write_text(TEXT * 5)
    shape = Shape(vocab_size=150, hidden_size=32, num_layers=2, heads=4, ffn=48, positions=40)
    place = dict(text_file=tmp_path / "text.txt", tokenizer=tmp_path / "learned")
    model = masked_lm_from_nothing(shape, **place, seed=3)
    learned = load_tokenizer(tmp_path / "learned").get_vocab_size()
    assert 100 < learned <= 150
    dense = dict(hidden_size=32, num_layers=2, heads=4, ffn=48, max_position_embeddings=40)
    config = BertConfig.dense(vocab_size=learned, **dense, hidden_dropout=0.0, attention_dropout=0.0)
    assert model.config == config
    for name, value in masked_lm.fan_in_model(config, seed=3).params.items():
        np.testing.assert_array_equal(model.params[name], value)
    (tmp_path / "text.txt").write_text("")
    assert masked_lm_from_nothing(shape, **place, seed=3).config == config


def test_a_batch_without_a_masked_word_counts_nothing(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "text.txt").write_text("\u10d0\u10d1 \u10d2\n\n\u10d3\n")  # letters that the vocabulary lacks
    config = _config(tokenizer)
    start = masked_lm.fan_in_model(config, seed=0)
    trained = pretrain(
        start,
        read_corpus(tmp_path / "text.txt", tokenizer, max_seq=16, questions=False),
        tokenizer,
        batch_size=1,
        settings=TrainSettings(steps=3, learning_rate=1e-3, weight_decay=0.0),
        folder=tmp_path / "work",
    )
    for name, value in start.params.items():
        np.testing.assert_array_equal(trained.params[name], value)
    assert "2 of 2 sequences hold no word that the tokenizer knows" in capsys.readouterr().out


def test_it_learns_what_the_neighbours_tell(tmp_path: Path, tokenizer: Tokenizer):
    """Of two sentences that differ throughout, each masked word follows from the others."""
    (tmp_path / "text.txt").write_text("red fox runs\n\nold hill sleeps\n")
    corpus = read_corpus(tmp_path / "text.txt", tokenizer, max_seq=16, questions=False)
    config = _config(tokenizer)
    model = pretrain(
        masked_lm.fan_in_model(config, seed=0),
        corpus,
        tokenizer,
        batch_size=8,
        settings=TrainSettings(steps=150, learning_rate=3e-3),
        folder=tmp_path / "work",
    )
    module, mask_id = bind(BertForMaskedLM, model), tokenizer.token_to_id("[MASK]")
    for row in corpus.rows:
        ids = np.array(row)[None]
        position = np.array([[len(row) - 2]], np.int32)
        read = ids.copy()
        read[0, position[0]] = mask_id
        logits = jax.jit(lambda *x: module(*x))(read, np.ones_like(ids), np.zeros_like(ids), position)
        assert int(jnp.argmax(logits[0, 0])) == ids[0, position[0, 0]]


def _config(tokenizer: Tokenizer) -> BertConfig:
    return BertConfig.dense(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=16,
        num_layers=1,
        heads=2,
        ffn=32,
        max_position_embeddings=32,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
