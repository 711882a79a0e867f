"""Model directories in Hugging Face's form: `config.json`, `model.safetensors` and the tokenizer's files.

A directory is complete or absent: it is written beside its place and then renamed. No JAX is imported here,
so that whoever only exports or serves does not pay for it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import safetensors.numpy

from bertjax import files
from bertjax.errors import UserError
from bertjax.identity import digest_folder
from bertjax.modeldir import tensors
from bertjax.modeldir.check import Shapes, check_config, header_faults, refuse, value_faults
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.weights import FLOATS, Tensors, list_weights, read_weights, weight_files

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model as a directory holds it: its config, and its tensors in NumPy under their stored names."""

    config: BertConfig
    tensors: Tensors


def read_tensors(directory: Path) -> Tensors:
    """All floating-point tensors of a model directory under their standard names, as float32.

    Raises:
      UserError: a file is missing, or is not a safetensors file.
    """
    entries = list_weights(directory)
    return read_weights({name: entry for name, entry in entries.items() if entry.dtype in FLOATS})


def load_question_answering(directory: Path, *, floating_point: bool = False) -> StoredModel:
    """Read a span-predicting model directory: its config and exactly the tensors that the config names.

    Args:
      floating_point: whether an INT8 model is refused, as a teacher is.

    Raises:
      UserError: a file is missing or broken, tensors are missing, misshapen or not finite, or it is an INT8 model where
        none is wanted.
    """
    return _load(Path(directory), tensors.question_answering_shapes, floating_point=floating_point)


def load_encoder(directory: Path) -> StoredModel:
    """Read a pretrained encoder, without the head that its directory may hold.

    Raises:
      UserError: a file is missing or broken, tensors are missing, misshapen or not finite, or it is an INT8 model.
    """
    return _load(Path(directory), tensors.encoder_shapes, floating_point=True)


def _load(directory: Path, shapes: Shapes, *, floating_point: bool) -> StoredModel:
    files.repair(directory)
    config, entries = check_config(directory, floating_point=floating_point), list_weights(directory)
    wanted = shapes(config)
    faults = header_faults(directory, entries, wanted)
    fitting = {
        name: entries[name] for name, shape in wanted.items() if name in entries and entries[name].shape == shape
    }
    found = read_weights(fitting)
    refuse(directory, faults | value_faults(found))
    return StoredModel(config=config, tensors=found)


def save(directory: Path, model: StoredModel, *, tokenizer_from: Path) -> None:
    """Write a complete model directory, with the tokenizer's files of `tokenizer_from`.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    with files.write_aside(Path(directory)) as aside:
        (aside / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
        arrays = {name: np.asarray(value, order="C") for name, value in model.tensors.items()}
        # Not `save_file`, which leaves a file that nobody but its owner may read.
        content = safetensors.numpy.save(arrays, metadata={"format": "pt"})
        (aside / "model.safetensors").write_bytes(content)
        for name in TOKENIZER_FILES:
            if (Path(tokenizer_from) / name).exists():
                shutil.copyfile(Path(tokenizer_from) / name, aside / name)


def digest(directory: Path) -> str:
    """Digest of what makes a model directory's answers: its shape, weights and tokenizer, not what was exported.

    Raises:
      OSError: a file cannot be read.
    """
    return digest_folder(directory, "config.json", "model*.safetensors", "tokenizer*.json", "vocab.txt")


def weight_bytes(directory: Path) -> int:
    """Size in bytes of a directory's weights as stored.

    Raises:
      UserError: the index of a directory with several parts is broken.
    """
    return sum(path.stat().st_size for path in weight_files(directory))


def model_directory(name: str, flag: str) -> Path:
    """A model directory: `name` itself if it is a folder, else the hub's model of that name.

    Raises:
      UserError: it is neither a folder nor to be had from the hub.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith(".") or name.count("/") > 1:
        raise UserError(f"{flag} {name}: no such folder")
    from huggingface_hub import snapshot_download  # imported late: only a download pays for it

    try:
        patterns = [
            "config.json",
            "model*.safetensors",
            "*.index.json",
            "tokenizer*.json",
            "special_tokens_map.json",
            "added_tokens.json",
            "vocab.txt",
        ]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many kinds; each means that the model is not to be had
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{flag} {name}: no such folder, and not to be had from the hub ({reason})") from None
