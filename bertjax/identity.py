"""Digests of files, folders, arrays and settings, and their sum in one string: whether two things are the same.

Digests are SHA-256 in hexadecimal.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

_SHOWN = 16  # digits of each digest in an identity: 64 bits


def digest_file(path: Path) -> str:
    """Digest of a file's bytes; its name is no part of it.

    Raises:
      OSError: the file cannot be read.
    """
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(folder: Path, *patterns: str) -> str:
    """Digest of a folder's files, with their names below it, in the order of these names.

    Args:
      patterns: of the files that count, as `Path.glob` takes them; none: every file at any depth.

    Raises:
      OSError: a file cannot be read.
    """
    folder = Path(folder)
    found = {path for pattern in patterns or ("**/*",) for path in folder.glob(pattern) if path.is_file()}
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    return digest_settings([[name, digest_file(folder / name)] for name in names])


def digest_arrays(arrays: Mapping[str, Any]) -> str:
    """Digest of named arrays: their names, dtypes, shapes and bytes, whatever order they come in.

    Args:
      arrays: of NumPy, or anything that `numpy.asarray` takes.
    """
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.asarray(arrays[name], order="C")
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def digest_settings(settings: Any) -> str:
    """Digest of a dataclass or of anything that JSON can say, whatever order its keys come in.

    Raises:
      TypeError: it holds something that JSON cannot say, such as a path.
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=_as_dict).encode()).hexdigest()


def make_identity(**parts: str | int) -> str:
    """One line that stands for all `parts`: `data=1f0c... method=2 start=9a41...`, digests shortened.

    Args:
      parts: digests and revision numbers, by the names that `differing_parts` gives.
    """
    return " ".join(f"{name}={str(value)[:_SHOWN]}" for name, value in sorted(parts.items()))


def differing_parts(found: str, wanted: str) -> list[str]:
    """Names of the parts in which two identities differ, in alphabetical order; empty where they are the same."""
    old, new = _parts(found), _parts(wanted)
    return [name for name in sorted(old | new) if old.get(name) != new.get(name)]


def _parts(identity: str) -> dict[str, str]:
    split = [part.partition("=") for part in identity.split()]
    return {name: value for name, _, value in split}


def _as_dict(value: Any) -> dict[str, Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no digest")
