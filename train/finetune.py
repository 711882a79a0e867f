"""Fine-tune a pretrained encoder on SQuAD v1.1 files into a QA model directory.

    python train/finetune.py --encoder DIR --train-file train.json.gz --val-file val.json.gz --output runs/teacher

The best weights by F1 on the validation file are kept. Run the same command again to continue an interrupted run.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

from bertjax.errors import UserError
from bertjax.pipeline.flags import add_setting_flags
from bertjax.pipeline.settings import RunSettings
from bertjax.programs import run

FLAGS = [
    "output",
    "encoder",
    "train_file",
    "val_file",
    "train_questions",
    "val_questions",
    "max_seq",
    "doc_stride",
    "max_query",
    "hidden_dropout",
    "attention_dropout",
    "teacher_epochs",
    "teacher_batch_size",
    "teacher_learning_rate",
    "ema",
    "length_multiple",
    "evaluations",
    "dtype",
    "seed",
]


def parse() -> RunSettings:
    """The flags as settings of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_setting_flags(parser, FLAGS)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    for flag in ("output", "encoder", "train_file"):
        if flag not in given:
            raise UserError(f"--{flag.replace('_', '-')}: not given; see --help")
    # Nothing is reported on the evaluation file here; naming the training file lets the settings be checked as one.
    return dataclasses.replace(RunSettings(eval_file=given["train_file"]), **given)


def main() -> None:
    settings = parse()

    # Imported only once the flags are right: JAX takes seconds.
    from bertjax.data.tokenizer import as_one_file
    from bertjax.model.bert import Model
    from bertjax.model.inference import Evaluator
    from bertjax.modeldir import store
    from bertjax.modeldir.store import model_directory
    from bertjax.pipeline import inputs
    from bertjax.pipeline.stages import fine_tune_encoder

    output, encoder = Path(settings.output), model_directory(str(settings.encoder), "--encoder")
    if output.exists():
        raise UserError(f"{output}: is already there; give another --output")
    files, tokenizer = inputs.resolve_files(settings), inputs.fitting_tokenizer(encoder, settings, encoder=True)
    train, validation = inputs.load_training(settings, files, tokenizer)
    work = output.with_name(f"{output.name}.work")
    model = fine_tune_encoder(settings, Model.of(store.load_encoder(encoder)), train, validation, work)
    with as_one_file(encoder, positions=model.config.max_position_embeddings) as folder:
        store.save(output, model.stored(), tokenizer_from=folder)
    shutil.rmtree(work)
    score = Evaluator(validation)(model).score
    print(f"{output}: exact match {score.exact_match:.2f}, F1 {score.f1:.2f} on the validation part")


if __name__ == "__main__":
    run(main)
