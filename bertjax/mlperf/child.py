"""The process that makes one LoadGen run: settings in on stdin, a result or an error out on a pipe."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import traceback

from bertjax.engines.workers import processes
from bertjax.errors import UserError, WorkFailed


def main() -> None:
    """Serve once, for `harness.run`. The pipe's file descriptor is the only argument."""
    settings = pickle.load(sys.stdin.buffer)
    threading.Thread(target=processes.end_with_parent, daemon=True).start()
    try:
        from bertjax.mlperf.session import serve

        outcome: object = serve(settings)
    except (UserError, WorkFailed) as error:
        outcome = type(error)(*error.args)
    except Exception as error:
        traceback.print_exc()
        outcome = WorkFailed(f"serving {settings.model} met a bug: {type(error).__name__}: {error}")
    with open(int(sys.argv[1]), "wb") as answer:
        pickle.dump(outcome, answer)
    sys.stderr.flush()
    os._exit(0)  # after a failure LoadGen's thread still waits in C++, and Python's own way out would abort


if __name__ == "__main__":
    main()
