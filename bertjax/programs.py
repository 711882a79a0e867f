"""What every program shares: exit codes, and the one line that tells what went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable

from bertjax.errors import UserError, WorkFailed


def run(main: Callable[[], None]) -> None:
    """Run a program's `main` and end the process: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    try:
        main()
        code = 0
    except UserError as error:
        code = _tell(error, 2)
    except WorkFailed as error:
        code = _tell(error, 1)
    except KeyboardInterrupt:
        code = _tell("interrupted; the same command continues where it stopped", 130)
    sys.stdout.flush()
    sys.exit(code)


def _tell(message: object, code: int) -> int:
    print(f"error: {message}" if code != 130 else f"\n{message}", file=sys.stderr)
    return code
