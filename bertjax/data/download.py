"""The public SQuAD, fetched once into the user's cache folder."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from bertjax.errors import UserError
from bertjax.files import write_file_aside

SQUAD = "squad-v1.1"  # the name that stands for the public files below
_SQUAD_ADDRESS = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"


def cache_folder() -> Path:
    """The folder for downloads, by the XDG convention."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertjax"


def squad_file(part: str) -> Path:
    """Path of the public SQuAD v1.1 `train` or `dev` file, which is downloaded if it is not in the cache.

    Raises:
      UserError: it cannot be fetched, or the cache cannot be written.
      WorkFailed: the disk is full.
    """
    name = f"{part}-v1.1.json"
    path = cache_folder() / name
    if not path.exists():
        write_file_aside(path, _fetch(_SQUAD_ADDRESS + name))
    return path


def _fetch(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            size, chunks = int(response.headers.get("Content-Length", 0)), []
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=address.rsplit("/", 1)[-1]) as bar:
                while chunk := response.read(1 << 20):
                    chunks.append(chunk)
                    bar.update(len(chunk))
            return b"".join(chunks)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise UserError(
            f"{address}: cannot be fetched ({error}); give the file with --train-file and --eval-file"
        ) from None
