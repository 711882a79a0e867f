"""The frame of every program: exit codes, and the one line that says what went wrong."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from bertjax.errors import UserError, WorkFailed
from bertjax.machine import ALLOCATOR


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def run(
    main: Callable[[], None], *, interrupted: str = "interrupted; the same command continues where it stopped"
) -> None:
    """Run a program's `main` and end the process: 0 done, 1 failed, 2 wrong input, 130 and the line `interrupted`,
    143 likewise after SIGTERM.

    On Linux the program first starts itself again with glibc's allocator set to keep freed memory, which can only be
    set from outside; GLIBC_TUNABLES in the environment overrides it. A Ctrl-C that falls into its imports then
    waits for `main`.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": ALLOCATOR})
    sys.unraisablehook = _interrupt_again
    signal.signal(signal.SIGTERM, _terminate)
    try:
        if sys.platform != "win32":
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        main()
        code = 0
    except UserError as error:
        code = _tell(error, 2)
    except WorkFailed as error:
        code = _tell(error, 1)
    except Terminated:
        code = _tell(interrupted, 143)
    except KeyboardInterrupt:
        code = _tell(interrupted, 130)
    sys.stdout.flush()
    if code in (130, 143):
        sys.stderr.flush()
        os._exit(code)  # JAX may still be computing, and crashes where Python is taken down around that
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Deliver a Ctrl-C once more that fell into a destructor or a callback of the garbage collector.

    Python drops what is raised there, and JAX has such a callback. The timer lets it end first.
    """
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def _tell(message: object, code: int) -> int:
    print(f"error: {message}" if code not in (130, 143) else f"\n{message}", file=sys.stderr)
    return code
