"""Public data and weights, fetched once into the user's cache folder."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from bertjax.errors import UserError
from bertjax.modeldir import write_file_aside

SQUAD = "squad-v1.1"  # the name that stands for the public files below
_SQUAD_ADDRESS = "https://rajpurkar.github.io/SQuAD-explorer/dataset/"


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bertjax"


def squad_file(part: str) -> Path:
    """The public SQuAD v1.1 `train` or `dev` file, downloaded if it is not in the cache.

    Raises:
      UserError: it cannot be fetched.
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
