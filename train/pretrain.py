"""Pre-train a BERT encoder with whole-word masking, from nothing or from an encoder.

    python train/pretrain.py --text-file train.json.gz --encoder DIR --steps 10000 --output runs/encoder
    python train/pretrain.py --text-file book.txt --layers 4 --hidden 256 --heads 4 --ffn 1024 --output runs/encoder

The text is a plain text file (paragraphs between empty lines) or the contexts of a SQuAD file. Run the same command
again to continue an interrupted run.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from pathlib import Path

from bertjax.errors import UserError
from bertjax.programs import run


def parse() -> argparse.Namespace:
    """The flags as they are given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument_group("inputs and output").add_argument
    add("--text-file", type=Path, required=True, metavar="FILE", help="plain text, or a SQuAD .json or .json.gz")
    add("--with-questions", action="store_true", help="read a SQuAD file's questions with its contexts")
    add("--encoder", metavar="DIR", help="continue from this encoder: model directory or hub name")
    add("--output", type=Path, required=True, metavar="DIR", help="model directory to write")
    number = functools.partial(
        parser.add_argument_group("shape, without --encoder").add_argument, metavar="N", type=int
    )
    number("--layers", default=4, help="number of layers (default: %(default)s)")
    number("--hidden", default=256, help="hidden size (default: %(default)s)")
    number("--heads", default=4, help="heads per layer (default: %(default)s)")
    number("--ffn", default=1024, help="FFN width (default: %(default)s)")
    number("--vocab-size", default=8000, help="WordPieces (default: %(default)s)")
    training = parser.add_argument_group("training")
    number = functools.partial(training.add_argument, metavar="N", type=int)
    number("--max-seq", default=384, help="longest sequence in tokens (default: %(default)s)")
    number("--steps", default=10000, help="training steps (default: %(default)s)")
    number("--batch-size", default=32, help="sequences per step (default: %(default)s)")
    number("--learning-rate", type=float, default=1e-4, help="peak learning rate (default: %(default)s)")
    training.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the activations (default: float32)",
    )
    number("--seed", default=0, help="seed of everything random (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.output.exists():
        raise UserError(f"{options.output}: is already there; give another --output")
    if not options.encoder and options.hidden % options.heads:
        raise UserError(f"--hidden {options.hidden}: must be a multiple of --heads {options.heads}")
    from bertjax.data.text import read_corpus
    from bertjax.data.tokenizer import as_one_file, load_tokenizer, tokenizer_size
    from bertjax.model.masked_lm import masked_lm_from_encoder
    from bertjax.modeldir import store
    from bertjax.modeldir.check import check_config
    from bertjax.modeldir.store import model_directory
    from bertjax.training.pretrain import Shape, masked_lm_from_nothing, pretrain
    from bertjax.training.settings import TrainSettings

    work = options.output.with_name(f"{options.output.name}.work")
    if options.encoder:
        source = model_directory(options.encoder, "--encoder")
        size = tokenizer_size(load_tokenizer(source))
        check_config(source, tokenizer_size=size, longest=options.max_seq, floating_point=True)
        start = masked_lm_from_encoder(source, seed=options.seed)
    else:
        source = work / "tokenizer"
        start = masked_lm_from_nothing(
            Shape(
                vocab_size=options.vocab_size,
                hidden_size=options.hidden,
                num_layers=options.layers,
                heads=options.heads,
                ffn=options.ffn,
                positions=options.max_seq,
            ),
            text_file=options.text_file,
            tokenizer=source,
            seed=options.seed,
        )
    tokenizer = load_tokenizer(source)
    trained = pretrain(
        start,
        read_corpus(options.text_file, tokenizer, max_seq=options.max_seq, questions=options.with_questions),
        tokenizer,
        batch_size=options.batch_size,
        settings=TrainSettings(steps=options.steps, learning_rate=options.learning_rate, seed=options.seed),
        folder=work,
        dtype=options.dtype,
    )
    with as_one_file(source, positions=trained.config.max_position_embeddings) as folder:
        store.save(options.output, trained.stored(), tokenizer_from=folder)
    shutil.rmtree(work, ignore_errors=True)
    print(f"{options.output}: pre-trained for {options.steps} steps; fine-tune it with train/finetune.py")


if __name__ == "__main__":
    run(main)
