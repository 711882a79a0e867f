"""The embedded default's inputs: a generated corpus, and an encoder pre-trained on it from nothing."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from bertjax.data.corpus import write_corpus
from bertjax.data.text import read_corpus
from bertjax.data.tokenizer import as_one_file, load_tokenizer
from bertjax.modeldir import store
from bertjax.pipeline.settings import RunSettings, Scratch
from bertjax.training.pretrain import Shape, masked_lm_from_nothing, pretrain
from bertjax.training.settings import TrainSettings


def write_scratch_inputs(settings: RunSettings, scratch: Scratch) -> RunSettings:
    """Generate the embedded corpus and pre-train an encoder on it, inside the run directory, unless that is done.

    Returns:
      The settings with the files and the encoder filled in.

    Raises:
      UserError: the run directory cannot be written.
      WorkFailed: the loss is no longer finite, or the disk is full.
    """
    folder = Path(settings.output)
    data, encoder = folder / "corpus", folder / "encoder"
    files = {name: data / f"{name}.json" for name in ("train", "val", "eval")}
    if not files["eval"].exists():  # the last one written
        train, val, evaluation = scratch.paragraphs
        write_corpus(data, seed=settings.seed, train=train, val=val, evaluation=evaluation)
    if not (encoder / "config.json").exists():
        _pretrain_encoder(settings, scratch, files["train"], encoder)
    return dataclasses.replace(
        settings,
        train_file=str(files["train"]),
        val_file=str(files["val"]),
        eval_file=str(files["eval"]),
        encoder=str(encoder),
    )


def _pretrain_encoder(settings: RunSettings, scratch: Scratch, text_file: Path, encoder: Path) -> None:
    work = Path(settings.output) / "work" / "pretrain"
    shape = Shape(
        vocab_size=scratch.vocab_size,
        hidden_size=scratch.hidden_size,
        num_layers=scratch.num_layers,
        heads=scratch.heads,
        ffn=scratch.ffn,
        positions=settings.max_seq,
    )
    start = masked_lm_from_nothing(shape, text_file=text_file, tokenizer=work / "tokenizer", seed=settings.seed)
    tokenizer = load_tokenizer(work / "tokenizer")
    trained = pretrain(
        start,
        read_corpus(text_file, tokenizer, max_seq=settings.max_seq, questions=True),
        tokenizer,
        batch_size=scratch.pretrain_batch_size,
        settings=TrainSettings(
            steps=scratch.pretrain_steps, learning_rate=scratch.pretrain_learning_rate, seed=settings.seed
        ),
        folder=work,
    )
    with as_one_file(work / "tokenizer", positions=settings.max_seq) as folder:
        store.save(encoder, trained.stored(), tokenizer_from=folder)
