"""Models from nothing: fresh weights that train fast at small sizes, and the embedded default's inputs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bertjax import modeldir, tensors
from bertjax.config import BertConfig
from bertjax.data.corpus import write_corpus
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.vocabulary import write_vocabulary
from bertjax.masked_lm import BertForMaskedLM
from bertjax.model import Params, as_arrays, as_params, init_params
from bertjax.settings import RunSettings, Scratch
from bertjax.training.loop import TrainSettings
from bertjax.training.pretrain import pretrain, read_corpus, read_texts


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense BERT to be made from nothing."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    heads: int
    ffn: int
    positions: int


def masked_lm_from_nothing(shape: Shape, *, text_file: Path, tokenizer: Path, seed: int) -> tuple[BertConfig, Params]:
    """A vocabulary learned from `text_file`, written to the folder `tokenizer`, and a fresh masked LM over it.

    Raises:
      UserError: the text cannot be read, or the folder cannot be written.
    """
    if not (tokenizer / "vocab.txt").exists():
        write_vocabulary(tokenizer, read_texts(text_file), vocab_size=shape.vocab_size)
    config = BertConfig.dense(
        vocab_size=load_tokenizer(tokenizer).get_vocab_size(),
        hidden_size=shape.hidden_size,
        num_layers=shape.num_layers,
        heads=shape.heads,
        ffn=shape.ffn,
        max_position_embeddings=shape.positions,
        hidden_dropout=0.0,
        attention_dropout=0.0,
    )
    return config, fan_in_params(config, seed=seed)


def fan_in_params(config: BertConfig, *, seed: int) -> Params:
    """Fresh masked-LM parameters for a small model: embeddings of size 1, dense weights of 1 / sqrt(inputs).

    BERT's own 0.02 is made for a hidden size of 768 and long training. Adam moves every number by about the learning
    rate in a step, so embeddings of 0.02 lose what tells tokens apart within some tens of steps at the rates that
    small models want, and attention never finds equal tokens. The head's LayerNorm starts small, so that its
    logits over embeddings of size 1 start small.
    """
    params = {}
    for name, value in init_params(BertForMaskedLM, config, seed=seed).items():
        if "_embeddings." in name:
            value = value / 0.02
        elif value.ndim == 2:
            value = value / 0.02 / np.sqrt(value.shape[1])
        elif name == "cls.predictions.transform.LayerNorm.weight":
            value = value / np.sqrt(config.hidden_size)
        params[name] = value
    return params


def masked_lm_from_encoder(directory: Path, *, seed: int) -> tuple[BertConfig, Params]:
    """A pretrained encoder with its masked-LM head, or with a fresh one if the checkpoint has none.

    Raises:
      UserError: the directory is no complete encoder.
    """
    config, arrays = modeldir.load_encoder(directory)
    params = init_params(BertForMaskedLM, config, seed=seed)
    head = tensors.masked_lm_head_shapes(config)
    found = modeldir.read_tensors(directory)
    kept = {name: found[name] for name, shape in head.items() if name in found and found[name].shape == shape}
    return config, params | as_params(arrays | kept)


def write_scratch_inputs(settings: RunSettings, scratch: Scratch) -> RunSettings:
    """Generate the embedded corpus and pre-train an encoder on it, inside the run directory, unless that is done.

    Returns:
      The settings with the files and the encoder filled in.

    Raises as `pretrain`.
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
    config, params = masked_lm_from_nothing(
        shape, text_file=text_file, tokenizer=work / "tokenizer", seed=settings.seed
    )
    tokenizer = load_tokenizer(work / "tokenizer")
    params = pretrain(
        config=config,
        params=params,
        corpus=read_corpus(text_file, tokenizer, max_seq=settings.max_seq, questions=True),
        tokenizer=tokenizer,
        batch_size=scratch.pretrain_batch_size,
        settings=TrainSettings(
            steps=scratch.pretrain_steps, learning_rate=scratch.pretrain_learning_rate, seed=settings.seed
        ),
        folder=work,
    )
    modeldir.save(encoder, config, as_arrays(params), tokenizer_from=work / "tokenizer")
