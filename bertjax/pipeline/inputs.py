"""The data files of a run, and its training and validation windows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from bertjax.data import download
from bertjax.data.dataset import Dataset, draw_questions, from_examples, load_dataset
from bertjax.data.squad import Example, read_squad
from bertjax.data.tokenizer import load_tokenizer, tokenizer_size
from bertjax.errors import UserError
from bertjax.modeldir.check import check_config, check_model
from bertjax.modeldir.tensors import encoder_shapes, question_answering_shapes
from bertjax.pipeline.settings import RunSettings

HELD_OUT_SHARE = 0.02  # of the training paragraphs, where no validation file is given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Files:
    """The files of a run; `val` None means that a part of `train` is held out."""

    train: Path
    val: Path | None
    eval: Path


def resolve_files(settings: RunSettings) -> Files:
    """Local paths of the settings' files, downloaded where they name the public SQuAD.

    Raises:
      UserError: a file is not named, absent or not to be fetched.
    """
    train, evaluation = _file(settings.train_file, "--train-file"), _file(settings.eval_file, "--eval-file")
    val = Path(settings.val_file) if settings.val_file else None
    files = Files(
        train=download.squad_file("train") if train is None else train,
        val=val,
        eval=download.squad_file("dev") if evaluation is None else evaluation,
    )
    for path in (files.train, files.val, files.eval):
        if path is not None and not path.is_file():
            raise UserError(f"{path}: no such file; give a SQuAD v1.1 .json or .json.gz")
    return files


def _file(name: str | None, flag: str) -> Path | None:
    """The file of a flag; None for the public SQuAD."""
    if name is None:
        raise UserError(f"{flag}: not given; name a SQuAD v1.1 file, or 'squad-v1.1'")
    return None if name == download.SQUAD else Path(name)


def load_training(settings: RunSettings, files: Files, tokenizer: Tokenizer) -> tuple[Dataset, Dataset]:
    """The training and the validation windows.

    Raises:
      UserError: a file is no SQuAD v1.1, or holds too little.
    """
    windows = settings.windows
    if files.val is not None:
        train = load_dataset(files.train, tokenizer, windows, questions=settings.train_questions, seed=settings.seed)
        validation = load_dataset(files.val, tokenizer, windows, questions=settings.val_questions, seed=settings.seed)
        return train, validation
    kept, held = _hold_out(read_squad(files.train), settings.seed)
    kept = draw_questions(kept, settings.train_questions, settings.seed)
    held = draw_questions(held, settings.val_questions, settings.seed)
    return from_examples(kept, tokenizer, windows), from_examples(held, tokenizer, windows)


def _hold_out(examples: list[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """Split by paragraph, so that no held-out paragraph is trained on."""
    contexts = list(dict.fromkeys(example.context for example in examples))
    count = max(1, round(HELD_OUT_SHARE * len(contexts)))
    chosen = np.random.default_rng(seed).choice(len(contexts), count, replace=False)
    held = {contexts[index] for index in chosen}
    parts = [e for e in examples if e.context not in held], [e for e in examples if e.context in held]
    if not parts[0]:
        raise UserError("--val-file: not given, and the training file has too few paragraphs to hold some out")
    return parts


def fitting_tokenizer(directory: Path, settings: RunSettings, *, encoder: bool) -> Tokenizer:
    """The tokenizer of a teacher, or of an encoder, after the directory was found to fit it and the windows.

    Raises:
      UserError: the tokenizer is missing or wrong, or the model is wrong, in INT8, or does not fit.
    """
    check_config(directory, longest=settings.max_seq, floating_point=True)
    tokenizer = load_tokenizer(directory)
    shapes = encoder_shapes if encoder else question_answering_shapes
    check_model(directory, tokenizer_size=tokenizer_size(tokenizer), floating_point=True, shapes=shapes)
    return tokenizer
