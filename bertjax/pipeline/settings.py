"""Everything that decides a run of `train/distill.py`, as one flat record whose fields are its flags."""

from __future__ import annotations

import dataclasses
from typing import Any

from bertjax.errors import UserError
from bertjax.pruning.costs import check_reduction

STAGES = ("prune", "distill", "calibrate", "qat", "evaluate")  # those that --skip names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scratch:
    """A teacher from nothing on the embedded corpus: its shape, and its whole-word-masking pre-training."""

    paragraphs: tuple[int, int, int]  # of the train, validation and evaluation parts
    vocab_size: int
    hidden_size: int
    num_layers: int
    heads: int
    ffn: int
    pretrain_steps: int
    pretrain_batch_size: int
    pretrain_learning_rate: float


def _flag(default: Any, help: str, **rest: Any) -> Any:
    return dataclasses.field(default=default, metadata={"help": help, **rest})


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A complete run. Presets (`bertjax.presets`) name useful ones."""

    output: str = _flag("runs/demo", "run directory to write")
    encoder: str | None = _flag(None, "pretrained encoder to fine-tune into a teacher: model directory or hub name")
    teacher: str | None = _flag(None, "finished QA teacher instead: model directory or hub name")
    train_file: str | None = _flag(
        None, "SQuAD v1.1 .json or .json.gz to train on; 'squad-v1.1' fetches the public one"
    )
    val_file: str | None = _flag(None, "file to choose by; without it, one in fifty training paragraphs is held out")
    eval_file: str | None = _flag(None, "file to report scores on; 'squad-v1.1' fetches the public development set")
    train_questions: int | None = _flag(None, "train on this many questions, drawn at random", type=int)
    val_questions: int | None = _flag(None, "choose by this many validation questions, drawn at random", type=int)
    max_seq: int = _flag(384, "longest window in tokens, and the served length at which MACs are counted")
    doc_stride: int = _flag(128, "tokens between the starts of two windows of one paragraph")
    max_query: int = _flag(64, "tokens of the question that are kept")
    hidden_dropout: float = _flag(0.1, "dropout on hidden states while the teacher is fine-tuned")
    attention_dropout: float = _flag(0.0, "dropout on attention weights; it costs a third of the step on a CPU")
    teacher_epochs: float = _flag(2.0, "epochs of fine-tuning")
    teacher_batch_size: int = _flag(32, "windows per step of fine-tuning")
    teacher_learning_rate: float = _flag(1e-4, "peak learning rate of fine-tuning")
    flops_reduction: float = _flag(2.0, "how many times fewer multiply-accumulates the student has")
    latency_table: str | None = _flag(
        None, "prune for measured time: a table that train/latency_table.py made; wants --latency-reduction"
    )
    latency_reduction: float | None = _flag(
        None,
        "in place of --flops-reduction: how many times faster than the dense model in INT8 the table predicts the"
        " student to be",
        type=float,
    )
    ffn_group: int = _flag(32, "FFN widths are kept in multiples of this")
    importance_examples: int = _flag(2048, "training windows whose gradients decide what is cut")
    repair_examples: int = _flag(
        512, "training windows on which cut blocks are refitted in closed form; 0 leaves it out"
    )
    pruning_rounds: int = _flag(
        1, "cut in this many rounds, the last with half of the distillation, the others with the rest; 1: all at once"
    )
    distill_epochs: float = _flag(2.0, "epochs of distillation in floating point, all rounds together")
    distill_batch_size: int = _flag(32, "windows per step of distillation")
    distill_learning_rate: float = _flag(1e-4, "peak learning rate of distillation")
    temperature: float = _flag(2.0, "softness of the span distributions that are distilled")
    label_weight: float = _flag(0.2, "weight of the labels' cross-entropy beside the teacher's distributions")
    hidden_weight: float = _flag(1.0, "weight of the hidden states' distance")
    layer_map: str = _flag(
        "fixed",
        "student layers whose hidden states are matched with the teacher's: the same ones, or the closest at each step",
        choices=("fixed", "dynamic"),
    )
    relation_weight: float = _flag(0.0, "weight of the difference between the tokens' relations in the last layer")
    cache_gib: float = _flag(16.0, "keep the teacher's outputs on disk if they take at most this many GiB")
    calibrator: str = _flag("max", "how activation ranges are chosen", choices=("max", "percentile", "entropy", "mse"))
    activation_scales: str = _flag(
        "feature",
        "INT8 scales of a dense layer's input: one for each feature, folded into the weight, or one per tensor",
        choices=("feature", "tensor"),
    )
    quantize_also: tuple[str, ...] = _flag(
        (),
        "INT8 beside the dense layers: the inputs of the attention products, the residual adds",
        nargs="*",
        choices=("attention", "residual"),
    )
    calibration_examples: int = _flag(256, "training windows that are looked at for the ranges")
    qat_epochs: float = _flag(0.5, "epochs of quantization-aware distillation")
    qat_batch_size: int = _flag(32, "windows per step of quantization-aware distillation")
    qat_learning_rate: float = _flag(3e-5, "peak learning rate of quantization-aware distillation")
    learned_scales: bool = _flag(
        False, "train the activation scales too (LSQ) in quantization-aware distillation", action="store_true"
    )
    ema: float = _flag(0.0, "decay of averaged weights, scored and kept in place of the last ones; 0: no average")
    length_multiple: int = _flag(
        32, "training batches are padded to a multiple of this; a larger one compiles fewer shapes, for a fast GPU"
    )
    evaluations: int = _flag(4, "how often each training stage is scored on the validation file; the best is kept")
    dtype: str = _flag(
        "float32",
        "dtype of the activations in training; bfloat16 pays where the processor has it",
        choices=("float32", "bfloat16"),
    )
    seed: int = _flag(0, "seed of everything random")
    skip: tuple[str, ...] = _flag((), f"stages to leave out: {', '.join(STAGES)}", nargs="*", choices=STAGES)
    scratch: Scratch | None = None
    cache: str | None = None  # where importance and teacher outputs are kept that runs share; None: in work/

    @property
    def reduction(self) -> float:
        """How many times fewer multiply-accumulates, or how many times faster, the student is to be."""
        return self.flops_reduction if self.latency_reduction is None else self.latency_reduction

    def __post_init__(self) -> None:
        """Raises UserError where a number makes no sense for any run."""
        if self.length_multiple < 1:
            raise UserError(f"--length-multiple {self.length_multiple}: must be at least 1")
        if self.pruning_rounds < 1:
            raise UserError(f"--pruning-rounds {self.pruning_rounds}: must be at least 1")
        if not 0.0 <= self.ema < 1.0:
            raise UserError(f"--ema {self.ema:g}: must lie between 0 and 1, 1 left out")
        for name in ("label_weight", "hidden_weight", "relation_weight"):
            if getattr(self, name) < 0.0:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name):g}: must not be negative")


def check_goal(settings: RunSettings) -> None:
    """See that the reduction that is asked for makes sense.

    Raises:
      UserError: it is out of range, or only one of table and latency reduction is given.
    """
    if settings.latency_table and settings.latency_reduction is None:
        raise UserError("--latency-table: give --latency-reduction too: how many times faster the student is to be")
    if settings.latency_reduction is not None and not settings.latency_table:
        raise UserError("--latency-reduction: give --latency-table too: python train/latency_table.py makes one")
    check_reduction(settings.reduction, "--latency-reduction" if settings.latency_table else "--flops-reduction")


def to_dict(settings: RunSettings) -> dict[str, Any]:
    """As JSON holds it."""
    return dataclasses.asdict(settings) | {
        "skip": list(settings.skip),
        "quantize_also": list(settings.quantize_also),
    }
