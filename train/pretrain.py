"""Pre-train a BERT encoder with whole-word masking, from nothing or from an encoder.

    python train/pretrain.py --text-file train.json.gz --encoder DIR --steps 10000 --output runs/encoder
    python train/pretrain.py --text-file book.txt --layers 4 --hidden 256 --heads 4 --ffn 1024 --output runs/encoder

The text is a plain text file (paragraphs between empty lines) or the contexts of a SQuAD file. Run the same command
again to continue an interrupted run.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from bertjax.errors import UserError
from bertjax.programs import run


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text-file", type=Path, required=True, help="plain text, or a SQuAD .json or .json.gz")
    parser.add_argument("--with-questions", action="store_true", help="read a SQuAD file's questions with its contexts")
    parser.add_argument("--output", type=Path, required=True, help="model directory to write")
    parser.add_argument("--encoder", help="go on from this encoder: model directory or hub name")
    parser.add_argument("--layers", type=int, default=4, help="without --encoder: number of layers (default: 4)")
    parser.add_argument("--hidden", type=int, default=256, help="without --encoder: hidden size (default: 256)")
    parser.add_argument("--heads", type=int, default=4, help="without --encoder: heads per layer (default: 4)")
    parser.add_argument("--ffn", type=int, default=1024, help="without --encoder: FFN width (default: 1024)")
    parser.add_argument("--vocab-size", type=int, default=8000, help="without --encoder: WordPieces (default: 8000)")
    parser.add_argument("--max-seq", type=int, default=384, help="longest sequence in tokens (default: 384)")
    parser.add_argument("--steps", type=int, default=10000, help="training steps (default: 10000)")
    parser.add_argument("--batch-size", type=int, default=32, help="sequences per step (default: 32)")
    parser.add_argument("--learning-rate", type=float, default=1e-4, help="its peak (default: 1e-4)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the activations")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.output.exists():
        raise UserError(f"{options.output}: is already there; give another --output")
    if not options.encoder and options.hidden % options.heads:
        raise UserError(f"--hidden {options.hidden}: must be a multiple of --heads {options.heads}")
    from bertjax.data.text import read_corpus
    from bertjax.data.tokenizer import load_tokenizer
    from bertjax.model.masked_lm import masked_lm_from_encoder
    from bertjax.modeldir import store
    from bertjax.modeldir.store import model_directory
    from bertjax.training.pretrain import Shape, masked_lm_from_nothing, pretrain
    from bertjax.training.settings import TrainSettings

    work = options.output.with_name(f"{options.output.name}.work")
    if options.encoder:
        source = model_directory(options.encoder, "--encoder")
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
    positions = start.config.max_position_embeddings
    if options.max_seq > positions:
        raise UserError(f"--max-seq {options.max_seq}: the encoder has {positions} positions")
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
    store.save(options.output, trained.stored(), tokenizer_from=source)
    shutil.rmtree(work, ignore_errors=True)
    print(f"{options.output}: pre-trained for {options.steps} steps; fine-tune it with train/finetune.py")


if __name__ == "__main__":
    run(main)
