"""Processes that work for this one, and end with it."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import IO

from bertjax.machine import ALLOCATOR, HUGE_PAGES


def start(module: str, content: object, fds: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start `python -m MODULE FD ...`, with `content` pickled on its stdin and these file descriptors open.

    It does not have the allocator that `programs.run` sets for training, with whose one arena Server was slower, but
    HUGE_PAGES; GLIBC_TUNABLES in the environment overrides both. It has a session of its own: Ctrl-C reaches only this
    process, which then ends the other one. Its stdin stays open, so that its end tells the other one that this process
    has gone; see `end_with_parent`.
    """
    given = os.environ.get("GLIBC_TUNABLES", ALLOCATOR)
    tunables = {"GLIBC_TUNABLES": HUGE_PAGES if given == ALLOCATOR else given}
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, *map(str, fds)],
        stdin=subprocess.PIPE,
        pass_fds=fds,
        start_new_session=True,
        env=os.environ | tunables | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
    )
    try:
        with contextlib.suppress(BrokenPipeError):  # it has ended already, as the wait for its answer will show
            stdin = _stdin(process)
            stdin.write(pickle.dumps(content))
            stdin.flush()
    except BaseException:
        process.kill()
        raise
    return process


def close_stdin(process: subprocess.Popen[bytes]) -> None:
    """Tell a process of `start` to end."""
    with contextlib.suppress(BrokenPipeError):
        _stdin(process).close()


def _stdin(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdin is not None, "started by `start`, with a pipe"
    return process.stdin


def how_it_ended(code: int) -> str:
    """`signal 9` or `exit code 7`, from what `Popen.wait` gives."""
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def end_with_parent() -> None:
    """End this process when the one that holds the other end of its stdin closes it or is gone."""
    while os.read(0, 1 << 16):  # nothing more comes; not through `sys.stdin`, whose lock Python wants when it ends
        pass
    try:
        if ray_workers := sys.modules.get("bertjax.engines.workers.ray"):
            ray_workers.leave()
    finally:
        os._exit(1)
