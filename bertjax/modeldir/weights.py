"""Weights in safetensors files: which files, which tensors under which names and dtypes, and their values in float32.

The files are those that transformers would load: `model.safetensors` if it is there, else the parts that
`model.safetensors.index.json` names.
"""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from bertjax.errors import UserError
from bertjax.modeldir.fields import read_object, shown

Tensors = dict[str, np.ndarray]

# Dtypes that are read, and NumPy's type of their bytes; it has none for bfloat16.
FLOATS = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "F64": "<f8"}

_INDEX = "model.safetensors.index.json"
_WRAPPERS = ("module.", "model.", "_orig_mod.")  # put before names by DataParallel, by trainers, by torch.compile


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a safetensors file."""

    file: Path
    name: str  # in the file
    dtype: str  # in safetensors' words: F32, BF16, I8, F8_E4M3, ...
    shape: tuple[int, ...]
    begin: int  # position in the file of its first byte


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a model directory.

    Raises:
      UserError: there are none, or the index is broken.
    """
    whole, index = Path(directory) / "model.safetensors", Path(directory) / _INDEX
    if whole.exists() or not index.exists():
        return [whole]
    names = read_object(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise UserError(f"{index}: weight_map is {shown(names)}; an object of tensor names and file names is wanted")
    wrong = [name for name in names.values() if not _is_name(name)]
    if wrong:
        raise UserError(f"{index}: weight_map names {shown(wrong[0])}; names of files beside it are wanted")
    return [index.with_name(name) for name in sorted(set(names.values()))]


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) < 200 and value.isprintable() and Path(value).name == value


def list_weights(directory: Path) -> dict[str, Entry]:
    """The tensors of a model directory by their standard names.

    An encoder saved without the `bert.` prefix gets it, what wrappers put before a name is dropped, and the old `gamma`
    and `beta` of LayerNorm become `weight` and `bias`.

    Raises:
      UserError: a file is missing, is not a safetensors file, or holds a tensor under two names.
    """
    found: dict[str, Entry] = {}
    for path in weight_files(directory):
        for entry in _read_header(path):
            name = _standard_name(entry.name)
            if name in found and found[name].name != entry.name:
                raise UserError(f"{path}: holds one tensor under two names: {found[name].name} and {entry.name}")
            found[name] = entry
    return found


def read_weights(entries: Mapping[str, Entry]) -> Tensors:
    """The values of floating-point tensors, as float32.

    Raises:
      UserError: a file cannot be read.
    """
    found = {}
    for name, entry in entries.items():
        count = int(np.prod(entry.shape, dtype=np.int64))
        try:
            flat = np.fromfile(entry.file, FLOATS[entry.dtype], count, offset=entry.begin)
        except OSError as error:
            raise UserError(f"{entry.file}: cannot be read ({error.strerror})") from None
        if entry.dtype == "BF16":
            flat = (flat.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # too large for float32 becomes infinity, which is told by name
            found[name] = flat.astype(np.float32, copy=False).reshape(entry.shape)
    return found


def _read_header(path: Path) -> list[Entry]:
    """safetensors' format: an 8-byte length, a JSON header of that length, then the bytes of the tensors."""
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # the library checks that names, dtypes, shapes and positions fit each other and the file
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; bertjax reads safetensors weights") from None
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: not a safetensors file, or cut short ({reason})") from None
    return [
        Entry(
            file=path,
            name=name,
            dtype=about["dtype"],
            shape=tuple(about["shape"]),
            begin=8 + size + about["data_offsets"][0],
        )
        for name, about in header.items()
        if name != "__metadata__"
    ]


def _standard_name(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return f"bert.{name}" if name.startswith(("embeddings.", "encoder.")) else name
