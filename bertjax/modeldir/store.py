"""Model directories in Hugging Face's form: `config.json`, `model.safetensors` and the tokenizer's files.

A directory is complete or absent: it is written beside its place and then renamed. No JAX is imported here,
so that whoever only exports or serves does not pay for it.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from bertjax.errors import UserError
from bertjax.files import write_aside
from bertjax.modeldir import tensors
from bertjax.modeldir.config import BertConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")

Tensors = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredModel:
    """A model as a directory holds it: its config, and its tensors in NumPy under their stored names."""

    config: BertConfig
    tensors: Tensors


def read_tensors(directory: Path) -> Tensors:
    """Read `model.safetensors`, or the parts that `model.safetensors.index.json` names, as NumPy arrays.

    bfloat16 and float16 tensors are widened to float32. An encoder saved without the `bert.` prefix gets it,
    and the old `gamma`/`beta` of LayerNorm become `weight`/`bias`.

    Raises:
      UserError: no such file, or not a safetensors file.
    """
    directory = Path(directory)
    index = directory / "model.safetensors.index.json"
    if index.exists():
        parts = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    else:
        parts = ["model.safetensors"]
    raw: Tensors = {}
    for part in parts:
        path = directory / part
        if not path.exists():
            raise UserError(f"{path}: no such file; bertjax reads safetensors weights")
        try:
            raw.update(_read_safetensors(path))
        except (safetensors.SafetensorError, OSError, ValueError, struct.error) as error:
            raise UserError(f"{path}: not a safetensors file, or cut short ({error})") from None
    return {_standard_name(name): value for name, value in raw.items()}


def _read_safetensors(path: Path) -> Tensors:
    try:
        loaded = safetensors.numpy.load_file(path)
    except KeyError:  # bfloat16, which safetensors does not hand to NumPy
        loaded = _read_with_bfloat16(path)
    return {k: v.astype(np.float32) if v.dtype == np.float16 else v for k, v in loaded.items()}


def _read_with_bfloat16(path: Path) -> Tensors:
    """safetensors' format read by hand: an 8-byte length, a JSON header, then the bytes of the tensors."""
    dtypes = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I64": np.int64}
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    loaded: Tensors = {}
    for name, entry in json.loads(content[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        flat = np.frombuffer(content[8 + size + begin : 8 + size + end], dtypes[entry["dtype"]])
        if entry["dtype"] == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        loaded[name] = flat.reshape(entry["shape"])
    return loaded


def _standard_name(name: str) -> str:
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.")) else name


def check_tensors(found: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Tell every missing, misshapen and non-finite tensor at once.

    Raises:
      UserError: one line that names them all.
    """
    wrong = []
    for name, shape in wanted.items():
        if name not in found:
            wrong.append(f"{name} is missing (wanted {list(shape)})")
        elif found[name].shape != shape:
            wrong.append(f"{name} is {list(found[name].shape)}, wanted {list(shape)}")
        elif not np.isfinite(found[name]).all():
            wrong.append(f"{name} holds NaN or infinity")
        elif name.endswith("_scale") and not (found[name] > 0).all():
            wrong.append(f"{name} holds a scale that is not positive; calibrate again")
    if wrong:
        raise UserError(f"{where}: {len(wrong)} tensors do not fit config.json: {'; '.join(wrong)}")


def load_question_answering(directory: Path) -> StoredModel:
    """Read a span-predicting model directory: its config and exactly the tensors that the config names.

    Raises:
      UserError: a file is missing or broken, or tensors are missing, misshapen or not finite.
    """
    return _load(Path(directory), tensors.question_answering_shapes)


def load_encoder(directory: Path) -> StoredModel:
    """Read a pretrained encoder, without the head that its directory may hold.

    Raises:
      UserError: a file is missing or broken, or tensors are missing, misshapen or not finite.
    """
    return _load(Path(directory), tensors.encoder_shapes)


def _load(directory: Path, shapes: Callable[[BertConfig], Mapping[str, tuple[int, ...]]]) -> StoredModel:
    config = BertConfig.from_json(directory / "config.json")
    wanted, found = shapes(config), read_tensors(directory)
    check_tensors(found, wanted, directory / "model.safetensors")
    return StoredModel(config=config, tensors={name: found[name] for name in wanted})


def save(directory: Path, model: StoredModel, *, tokenizer_from: Path) -> None:
    """Write a complete model directory, with the tokenizer's files of `tokenizer_from`.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    with write_aside(Path(directory)) as aside:
        (aside / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
        arrays = {name: np.asarray(value, order="C") for name, value in model.tensors.items()}
        # Not `save_file`, which leaves a file that nobody but its owner may read.
        content = safetensors.numpy.save(arrays, metadata={"format": "pt"})
        (aside / "model.safetensors").write_bytes(content)
        for name in TOKENIZER_FILES:
            if (Path(tokenizer_from) / name).exists():
                shutil.copyfile(Path(tokenizer_from) / name, aside / name)


def weight_bytes(directory: Path) -> int:
    """Size in bytes of a directory's weights as stored."""
    return sum(path.stat().st_size for path in Path(directory).glob("model*.safetensors"))


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
            "vocab.txt",
        ]
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # the hub's client raises many kinds; each means that the model is not to be had
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"{flag} {name}: no such folder, and not to be had from the hub ({reason})") from None
