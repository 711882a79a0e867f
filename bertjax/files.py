"""Files and folders that are complete or absent, and that a power failure leaves so.

Everything is written beside its place, under a name that only this process uses, brought to the disk, and then renamed.
What a killed writer leaves beside `NAME` is `.NAME.writing-PID`, and in the middle of a replacement `.NAME.old-PID`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bertjax.errors import UserError, WorkFailed


@contextlib.contextmanager
def write_aside(target: Path) -> Iterator[Path]:
    """Yield a fresh folder beside `target` that takes its place when the block ends well, and vanishes otherwise.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    target = Path(target)
    with _fresh_folder(target) as aside:
        yield aside
        _sync_tree(aside)
        if target.exists():
            target.rename(_old(target, os.getpid()))
        aside.rename(target)
        _sync(target.parent)


@contextlib.contextmanager
def write_files_aside(target: Path) -> Iterator[Path]:
    """Yield a fresh folder whose files take their places beside `target` when the block ends well; none do otherwise.

    `target` is one of them. Of several files it is taken away first and comes back last, so that it is never there
    without those that it needs.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    target = Path(target)
    with _fresh_folder(target) as aside:
        yield aside
        _sync_tree(aside)
        others = [path for path in aside.iterdir() if path.name != target.name]
        if others:
            target.unlink(missing_ok=True)
        for path in (*others, aside / target.name):
            os.replace(path, target.with_name(path.name))
        _sync(target.parent)


def write_file_aside(target: Path, content: bytes | str) -> None:
    """Replace one file in one step; text is written as UTF-8.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    target = Path(target)
    with write_files_aside(target) as aside:
        (aside / target.name).write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def locked(target: Path) -> Iterator[None]:
    """Keep other processes that call this for the same `target` waiting until the block ends.

    The lock is one on `.NAME.lock` beside it, an empty file that stays. A process that dies lets go of it. File systems
    that know no locks keep nobody waiting.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    path = Path(target).with_name(f".{Path(target).name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise disk_error(path, error) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise disk_error(path, error) from None
        yield
    finally:
        os.close(descriptor)


def repair(target: Path) -> None:
    """Finish or undo what killed writers of `target` had begun, and remove what they left; running ones are let be.

    A replacement that was cut off between its two renames gets the new folder in place, which was complete before the
    old one moved away. Where the place cannot be written nothing happens.
    """
    target = Path(target)
    marks = f".{target.name}.writing-", f".{target.name}.old-"
    with contextlib.suppress(OSError):
        names = [entry.name for entry in os.scandir(target.parent) if entry.name.startswith(marks)]
        numbers = {name.rsplit("-", 1)[1] for name in names}
        for number in sorted(numbers):
            if number.isdecimal() and not _runs(int(number)):
                _clear(target, int(number))


def claim_disk(path: Path) -> None:
    """Give every byte of a file that was made with holes its place on the disk, or remove the file.

    A memory map that meets a full disk ends the process with a bus error; after this call it cannot meet one.

    Raises:
      WorkFailed: the disk is full.
    """
    path = Path(path)
    try:
        with path.open("r+b") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise disk_error(path, error) from None


def disk_error(target: Path, error: OSError) -> UserError | WorkFailed:
    """The error to raise when `target` could not be written: a full disk, or a place that refuses."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return WorkFailed(f"{target}: the disk is full; free some space and run the same command again")
    if isinstance(error, PermissionError | NotADirectoryError | FileExistsError) or error.errno == errno.EROFS:
        return UserError(f"{target}: cannot be written ({error.strerror}); choose another place")
    return WorkFailed(f"{target}: cannot be written ({error})")


@contextlib.contextmanager
def _fresh_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside `target`, gone at the end whatever happens; a replacement that was begun is finished."""
    aside = _writing(target, os.getpid())
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        repair(target)
        _clear(target, os.getpid())  # of an earlier process that had this one's number
        aside.mkdir()
        yield aside
    except OSError as error:
        raise disk_error(target, error) from None
    finally:
        with contextlib.suppress(OSError):
            _clear(target, os.getpid())


def _clear(target: Path, process: int) -> None:
    """Remove what a writer left; the replacement that it was cut off in is finished first."""
    new, old = _writing(target, process), _old(target, process)
    if old.exists() and not target.exists():
        (new if new.exists() else old).rename(target)
    for path in (old, new):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _writing(target: Path, process: int) -> Path:
    return target.with_name(f".{target.name}.writing-{process}")


def _old(target: Path, process: int) -> Path:
    return target.with_name(f".{target.name}.old-{process}")


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:  # someone else's
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True


def _sync_tree(folder: Path) -> None:
    """Bring every file and folder under `folder` to the disk, and its own name."""
    for place, _, names in os.walk(folder):
        for name in names:
            _sync(Path(place) / name)
        _sync(Path(place))
    _sync(folder.parent)


def _sync(path: Path) -> None:
    """Bring a file's content, or a folder's names, to the disk; file systems that know no such thing are let be."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)
