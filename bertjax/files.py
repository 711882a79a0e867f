"""Files written aside and renamed: complete or absent."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import safetensors.numpy

from bertjax.errors import UserError, WorkFailed


@contextlib.contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `target` that takes its place when the block ends well, and vanishes otherwise.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    target = Path(target)
    aside = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        old = target.with_name(f".{target.name}.old-{os.getpid()}")
        if target.exists():
            target.rename(old)
        aside.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, safetensors.SafetensorError) as error:
        raise disk_error(target, error) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_file_aside(target: Path, content: bytes | str) -> None:
    """Replace one file in one step; errors as `write_aside`."""
    target = Path(target)
    aside = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content.encode() if isinstance(content, str) else content)
        os.replace(aside, target)
    except OSError as error:
        raise disk_error(target, error) from None
    finally:
        aside.unlink(missing_ok=True)


def disk_error(target: Path, error: Exception) -> Exception:
    """The error to raise when `target` could not be written: a full disk, or a place that refuses."""
    if "No space left" in str(error) or "os error 28" in str(error):
        return WorkFailed(f"{target}: the disk is full; free some space and run the same command again")
    if isinstance(error, (PermissionError, NotADirectoryError, FileExistsError)):
        return UserError(f"{target}: cannot be written ({error.strerror}); choose another place")
    return WorkFailed(f"{target}: cannot be written ({error})")
