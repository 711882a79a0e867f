"""Whether a model directory fits its config and its user: every program asks here before it reads anything large."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from bertjax.errors import UserError
from bertjax.modeldir import tensors
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.fields import read_object, shown
from bertjax.modeldir.weights import FLOATS, Entry, Tensors, list_weights

Shapes = Callable[[BertConfig], Mapping[str, tuple[int, ...]]]  # names and shapes that a config asks for

Faults = dict[str, list[str]]  # kinds of faults, each with the tensors that have it

_NAMED = 3  # of many like faults
_HEAD = ("qa_outputs.weight", "qa_outputs.bias")


def check_model(
    directory: Path,
    *,
    tokenizer_size: int | None = None,
    longest: int | None = None,
    floating_point: bool = False,
    shapes: Shapes = tensors.question_answering_shapes,
) -> BertConfig:
    """Refuse a model directory that a program could not use, by its config and the headers of its weights.

    Args:
      tokenizer_size: tokens of the tokenizer that goes with it; None: not asked.
      longest: tokens of the longest window that will come (`--max-seq`); None: not asked.
      floating_point: whether an INT8 model is refused, as a teacher or an encoder is.
      shapes: the tensors that have to be there; `tensors.encoder_shapes` for an encoder with any head.

    Returns:
      Its config.

    Raises:
      UserError: one line that names the file, what it holds and what is wanted.
    """
    config = check_config(directory, tokenizer_size=tokenizer_size, longest=longest, floating_point=floating_point)
    refuse(directory, header_faults(directory, list_weights(directory), shapes(config)))
    return config


def check_config(
    directory: Path, *, tokenizer_size: int | None = None, longest: int | None = None, floating_point: bool = False
) -> BertConfig:
    """The part of `check_model` that needs no weights.

    Raises:
      UserError: one line that names the file, what it holds and what is wanted.
    """
    directory = Path(directory)
    path = directory / "config.json"
    config = BertConfig.from_json(path)
    if longest is not None and longest > config.max_position_embeddings:
        positions = config.max_position_embeddings
        raise UserError(f"--max-seq {longest}: {path} has max_position_embeddings {positions}; choose at most that")
    if tokenizer_size is not None and tokenizer_size > config.vocab_size:
        raise UserError(
            f"{directory}: tokenizer has {tokenizer_size} tokens, the model {config.vocab_size} (vocab_size);"
            " the tokenizer is of another model"
        )
    if floating_point and config.quantization:
        raise UserError(f"{directory}: is an INT8 model; a floating-point one is wanted: {_floating_point(directory)}")
    return config


def header_faults(directory: Path, found: Mapping[str, Entry], wanted: Mapping[str, tuple[int, ...]]) -> Faults:
    """The tensors that are missing or of another shape.

    Raises:
      UserError: another tool quantized them.
    """
    _refuse_foreign_quantization(directory, found, wanted)
    return {
        "missing": [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in found],
        "of another shape": [
            f"{name} is {list(found[name].shape)}, wanted {list(shape)}"
            for name, shape in wanted.items()
            if name in found and found[name].shape != shape
        ],
    }


def value_faults(found: Tensors) -> Faults:
    """The tensors that hold NaN or infinity, and the INT8 scales that are not positive."""
    broken = [name for name, value in found.items() if not np.isfinite(value).all()]
    scales = {name: value for name, value in found.items() if name.endswith("_scale") and name not in broken}
    return {
        "with NaN or infinity": broken,
        "with scales that are not positive": [name for name, value in scales.items() if not (value > 0).all()],
    }


def refuse(directory: Path, faults: Faults) -> None:
    """Tell all faulty tensors in one line; nothing where there are none.

    Raises:
      UserError: there are some.
    """
    if told := _told(faults):
        headless = [text.split()[0] for text in faults.get("missing", [])] == list(_HEAD)
        mend = "; train/finetune.py gives an encoder its span head" if headless else ""
        raise UserError(f"{directory}: the weights do not fit config.json: {told}{mend}")


def _told(faults: Faults) -> str:
    """`2 tensors missing: a, b; 5 tensors of another shape: c, d, e, ...`, empty without a fault."""
    parts = []
    for kind, texts in faults.items():
        if texts:
            named = ", ".join(texts[:_NAMED]) + (", ..." if len(texts) > _NAMED else "")
            parts.append(f"{len(texts)} tensor{'s' if len(texts) > 1 else ''} {kind}: {named}")
    return "; ".join(parts)


def _refuse_foreign_quantization(
    directory: Path, found: Mapping[str, Entry], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse weights that another tool quantized: by their dtypes, and by the record that it left in config.json."""
    other = {name: entry.dtype for name, entry in found.items() if name in wanted and entry.dtype not in FLOATS}
    record = read_object(Path(directory) / "config.json").get("quantization_config")
    if not other and record is None:
        return
    parts = []
    if other:
        dtypes = ", ".join(sorted(set(other.values())))
        parts.append(_told({f"of dtype {dtypes}": list(other)}))
    if record is not None:
        method = record.get("quant_method") if isinstance(record, dict) else record
        parts.append(f"config.json has a quantization_config ({shown(method)})")
    raise UserError(
        f"{directory}: quantized by another tool: {'; '.join(parts)};"
        f" weights of dtype {', '.join(FLOATS)} are wanted, as they were before"
    )


def _floating_point(directory: Path) -> str:
    """Where the floating-point model of a run's INT8 student lies, as the end of a message."""
    for folder in (directory.with_name("student"), directory.parent.with_name("student")):
        if (folder / "config.json").exists() and BertConfig.from_json(folder / "config.json").quantization is None:
            return f"take {folder}"
    return "take the one that it was made from"
