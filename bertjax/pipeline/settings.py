"""Everything that decides a run of `train/distill.py`: one flat record whose fields are its flags, and its parts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeVar, get_args

from bertjax.data.windows import WindowSettings
from bertjax.errors import UserError
from bertjax.modeldir.config import ActivationScales, Quantization
from bertjax.pruning.costs import check_reduction
from bertjax.quantization.calibrators import CALIBRATORS, Calibrator
from bertjax.training.settings import LAYER_MAPS, DistillSettings, LayerMap, TrainSettings

STAGES = ("prune", "distill", "calibrate", "qat", "evaluate")  # those that --skip names

# What numbers may be: at least 1, above 0, at least 0.
_COUNTS = (
    *("train_questions", "val_questions", "max_seq", "doc_stride", "max_query", "ffn_group", "importance_examples"),
    *("pruning_rounds", "calibration_examples", "length_multiple"),
    *("teacher_batch_size", "distill_batch_size", "qat_batch_size"),
)
_POSITIVE = ("temperature", "teacher_learning_rate", "distill_learning_rate", "qat_learning_rate")
_NOT_NEGATIVE = (
    *("teacher_epochs", "distill_epochs", "qat_epochs", "evaluations", "repair_examples", "cache_gib", "seed"),
    *("label_weight", "hidden_weight", "relation_weight"),
)

TrainedStage = Literal["teacher", "distill", "qat"]
Dtype = Literal["float32", "bfloat16"]
Part = TypeVar("Part", WindowSettings, DistillSettings)


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class StageSettings:
    """The length and speed of a stage's training."""

    epochs: float
    batch_size: int
    learning_rate: float


def _flag(group: str, default: Any, help: str, **rest: Any) -> Any:
    """A field that is a flag; `rest` goes to argparse as it is."""
    return dataclasses.field(default=default, metadata={"group": group, "help": help, **rest})


def _group(title: str) -> Callable[..., Any]:
    """`_flag` for one group of `--help`."""
    return partial(_flag, title)


_inputs = _group("inputs and output")
_windows = _group("windows")
_teacher = _group("teacher")
_pruning = _group("pruning")
_distillation = _group("distillation")
_int8 = _group("quantization")
_training = _group("training, every stage")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """A complete run. `pipeline.presets` names useful ones.

    Flags, `settings.json` and presets know the flat fields; stages ask for their part: `windows`, `stage`,
    `distillation`, `quantization`. Defaults that a part has too are taken from it.
    """

    output: str = _inputs("runs/demo", "run directory to write", metavar="DIR")
    encoder: str | None = _inputs(
        None, "pretrained encoder to fine-tune into a teacher: model directory or hub name", metavar="DIR"
    )
    teacher: str | None = _inputs(
        None, "use this finished QA teacher and fine-tune none: model directory or hub name", metavar="DIR"
    )
    train_file: str | None = _inputs(
        None, "SQuAD v1.1 .json or .json.gz to train on; 'squad-v1.1' downloads the public one", metavar="FILE"
    )
    val_file: str | None = _inputs(
        None, "file to choose weights by; without it, one in fifty training paragraphs is held out", metavar="FILE"
    )
    eval_file: str | None = _inputs(
        None, "file to report scores on; 'squad-v1.1' downloads the public development set", metavar="FILE"
    )
    train_questions: int | None = _inputs(None, "train on this many questions, drawn at random")
    val_questions: int | None = _inputs(None, "choose weights by this many validation questions, drawn at random")
    max_seq: int = _windows(
        WindowSettings.max_seq, "longest window in tokens, and the served length at which MACs are counted"
    )
    doc_stride: int = _windows(WindowSettings.doc_stride, "tokens between the starts of two windows of one paragraph")
    max_query: int = _windows(WindowSettings.max_query, "tokens of the question that are kept")
    hidden_dropout: float = _teacher(0.1, "dropout on hidden states during fine-tuning")
    attention_dropout: float = _teacher(
        0.0, "dropout on attention weights during fine-tuning; on a CPU it takes a third of the step"
    )
    teacher_epochs: float = _teacher(2.0, "epochs of fine-tuning")
    teacher_batch_size: int = _teacher(32, "windows per step of fine-tuning")
    teacher_learning_rate: float = _teacher(1e-4, "peak learning rate of fine-tuning")
    flops_reduction: float = _pruning(2.0, "how many times fewer multiply-accumulates the student has")
    latency_table: str | None = _pruning(
        None,
        "prune for measured time by this table of train/latency_table.py; needs --latency-reduction",
        metavar="FILE",
    )
    latency_reduction: float | None = _pruning(
        None,
        "how many times faster than the dense INT8 model the student is by --latency-table; replaces --flops-reduction",
    )
    ffn_group: int = _pruning(32, "FFN widths are kept in multiples of this")
    importance_examples: int = _pruning(2048, "training windows whose gradients decide what is cut")
    repair_examples: int = _pruning(
        512, "training windows on which cut blocks are refitted in closed form; 0: no repair"
    )
    pruning_rounds: int = _pruning(
        1, "cut in this many rounds, with half of the distillation after the last and the rest between them"
    )
    distill_epochs: float = _distillation(2.0, "epochs of distillation in floating point, all rounds together")
    distill_batch_size: int = _distillation(32, "windows per step of distillation")
    distill_learning_rate: float = _distillation(1e-4, "peak learning rate of distillation")
    temperature: float = _distillation(
        DistillSettings.temperature, "softness of the span distributions that are distilled"
    )
    label_weight: float = _distillation(
        DistillSettings.label_weight, "weight of the labels' cross-entropy beside the teacher's distributions"
    )
    hidden_weight: float = _distillation(DistillSettings.hidden_weight, "weight of the hidden states' distance")
    layer_map: LayerMap = _distillation(
        DistillSettings.layer_map,
        "student layers whose hidden states are matched with the teacher's: those of the same number, or the closest"
        " at each step",
        choices=LAYER_MAPS,
    )
    relation_weight: float = _distillation(
        DistillSettings.relation_weight, "weight of the difference between the tokens' relations in the last layer"
    )
    cache_gib: float = _distillation(16.0, "keep the teacher's outputs on disk if they take at most this many GiB")
    calibrator: Calibrator = _int8("max", "how activation ranges are chosen", choices=CALIBRATORS)
    activation_scales: ActivationScales = _int8(
        Quantization.activation_scales,
        "INT8 scales of a dense layer's input: one for each feature, folded into the weight, or one per tensor",
        choices=get_args(ActivationScales),
    )
    quantize_also: tuple[str, ...] = _int8(
        (),
        "INT8 beside the dense layers: the inputs of the attention products, the residual adds",
        nargs="*",
        choices=("attention", "residual"),
    )
    calibration_examples: int = _int8(256, "training windows that the ranges are taken from")
    qat_epochs: float = _int8(0.5, "epochs of quantization-aware distillation")
    qat_batch_size: int = _int8(32, "windows per step of quantization-aware distillation")
    qat_learning_rate: float = _int8(3e-5, "peak learning rate of quantization-aware distillation")
    learned_scales: bool = _int8(
        DistillSettings.learned_scales,
        "train the activation scales too (LSQ) in quantization-aware distillation",
        action="store_true",
    )
    ema: float = _training(
        TrainSettings.ema, "decay of averaged weights, which are then scored and kept; 0: the weights themselves"
    )
    length_multiple: int = _training(
        32, "batches are padded to a multiple of this many tokens; a larger one compiles fewer shapes"
    )
    evaluations: int = _training(4, "how often each stage is scored on the validation file; the best weights are kept")
    dtype: Dtype = _training(
        "float32",
        "dtype of the activations; bfloat16 is faster where the processor has it",
        choices=get_args(Dtype),
    )
    seed: int = _training(TrainSettings.seed, "seed of everything random")
    skip: tuple[str, ...] = _inputs((), "stages to leave out", nargs="*", choices=STAGES)
    scratch: Scratch | None = None
    cache: str | None = None  # where runs keep the importance and teacher outputs that they share; None: in work/

    @property
    def reduction(self) -> float:
        """The factor of fewer multiply-accumulates, or of less time, that the student is pruned for."""
        return self.flops_reduction if self.latency_reduction is None else self.latency_reduction

    @property
    def windows(self) -> WindowSettings:
        """The lengths that questions are cut into windows by."""
        return _part(self, WindowSettings)

    @property
    def distillation(self) -> DistillSettings:
        """The loss of the stages `distill` and `qat`."""
        return _part(self, DistillSettings)

    def stage(self, name: TrainedStage) -> StageSettings:
        """The length and speed of a stage's training."""
        if name == "teacher":
            return StageSettings(
                epochs=self.teacher_epochs,
                batch_size=self.teacher_batch_size,
                learning_rate=self.teacher_learning_rate,
            )
        if name == "distill":
            return StageSettings(
                epochs=self.distill_epochs,
                batch_size=self.distill_batch_size,
                learning_rate=self.distill_learning_rate,
            )
        return StageSettings(
            epochs=self.qat_epochs, batch_size=self.qat_batch_size, learning_rate=self.qat_learning_rate
        )

    def quantization(self, *, windows: int) -> Quantization:
        """The record of the student's calibration, before training on the INT8 grid.

        Args:
          windows: how many there are to calibrate on.
        """
        return Quantization.calibrated(
            self.quantize_also,
            activation_scales=self.activation_scales,
            calibrator=self.calibrator,
            calibration_examples=min(self.calibration_examples, windows),
        )

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense for any run.

        Raises:
          UserError: one of them does.
        """
        for name in _COUNTS:
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name.replace('_', '-')} {value}: must be at least 1")
        for name in _POSITIVE:
            if not 0.0 < (value := getattr(self, name)) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {value:g}: must be above 0")
        for name in _NOT_NEGATIVE:
            if not 0.0 <= (value := getattr(self, name)) < math.inf:
                raise UserError(f"--{name.replace('_', '-')} {value:g}: must not be negative")
        for name in ("hidden_dropout", "attention_dropout"):
            if not 0.0 <= (value := getattr(self, name)) < 1.0:
                raise UserError(f"--{name.replace('_', '-')} {value:g}: must be at least 0 and less than 1")
        if not 0.0 <= self.ema < 1.0:
            raise UserError(f"--ema {self.ema:g}: must be at least 0 and less than 1")


def _part(settings: RunSettings, kind: type[Part]) -> Part:
    """A part whose fields have the same names here."""
    return kind(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)})


def check_goal(settings: RunSettings) -> None:
    """Refuse a reduction that no student can have.

    Raises:
      UserError: it is out of range, or only one of table and latency reduction is given.
    """
    if settings.latency_table and settings.latency_reduction is None:
        raise UserError("--latency-table: give --latency-reduction too: how many times faster the student is to be")
    if settings.latency_reduction is not None and not settings.latency_table:
        raise UserError("--latency-reduction: give --latency-table too: python train/latency_table.py makes one")
    check_reduction(settings.reduction, "--latency-reduction" if settings.latency_table else "--flops-reduction")


def to_dict(settings: RunSettings) -> dict[str, Any]:
    """The settings as `settings.json` holds them."""
    return dataclasses.asdict(settings) | {
        "skip": list(settings.skip),
        "quantize_also": list(settings.quantize_also),
    }
