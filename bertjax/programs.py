"""What programs share: exit codes, the one line that tells what went wrong, and flags from settings."""

from __future__ import annotations

import _thread
import argparse
import dataclasses
import os
import sys
import threading
import typing
from collections.abc import Callable, Sequence

from bertjax.errors import UserError, WorkFailed

if typing.TYPE_CHECKING:  # a Ctrl-C while a program imports what takes long must meet `run`
    from bertjax.settings import RunSettings

# Large temporaries are the rule here, and by default glibc asks the kernel for each of them and gives it back, so that
# every step pays for its page faults again. Kept memory and huge pages make training faster by more than a fifth
# (benchmarks/train_step.py). The price is memory: steps of every length want a block of another size, and kept ones lie
# between others, so that few of them can be used again.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_threshold": 1 << 34,
        "trim_threshold": 1 << 34,
        "top_pad": 1 << 28,
        "arena_max": 1,
    }.items()
)


def run(
    main: Callable[[], None], *, interrupted: str = "interrupted; the same command continues where it stopped"
) -> None:
    """Run a program's `main` and end the process: 0 done, 1 failed, 2 wrong input, 130 and the line `interrupted`.

    On Linux the program first starts itself again with glibc's allocator set to keep freed memory, which can only be
    set from outside; whoever sets GLIBC_TUNABLES decides for himself.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | {"GLIBC_TUNABLES": ALLOCATOR})
    sys.unraisablehook = _interrupt_again
    try:
        main()
        code = 0
    except UserError as error:
        code = _tell(error, 2)
    except WorkFailed as error:
        code = _tell(error, 1)
    except KeyboardInterrupt:
        code = _tell(interrupted, 130)
    sys.stdout.flush()
    if code == 130:
        sys.stderr.flush()
        os._exit(code)  # JAX may still be computing, and crashes where Python is taken down around that
    sys.exit(code)


def _interrupt_again(lost: sys.UnraisableHookArgs) -> None:
    """Deliver a Ctrl-C once more that fell into a destructor or a callback of the garbage collector.

    Python drops what is raised there, and JAX has such a callback. The timer lets it end first.
    """
    if isinstance(lost.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(lost)


def _tell(message: object, code: int) -> int:
    print(f"error: {message}" if code != 130 else f"\n{message}", file=sys.stderr)
    return code


def add_setting_flags(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add a flag for each of these fields of `RunSettings`; one that is not given parses as None."""
    from bertjax.settings import RunSettings

    kinds = typing.get_type_hints(RunSettings)
    for field in dataclasses.fields(RunSettings):
        if field.name not in names:
            continue
        rest = {key: value for key, value in field.metadata.items() if key != "help"}
        if "nargs" not in rest and kinds[field.name] in (int, float):
            rest.setdefault("type", kinds[field.name])
        silent = field.default in (None, ()) or field.default is False
        shown = "" if silent else f" (default: {field.default}; presets differ)"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", default=None, help=f"{field.metadata['help']}{shown}", **rest
        )


def parse_run(
    parser: argparse.ArgumentParser, arguments: Sequence[str], *, apart: Sequence[str] = ()
) -> tuple[RunSettings, dict[str, typing.Any]]:
    """Add `--preset` and every setting's flag, and parse.

    Args:
      apart: settings whose flags the program has added itself.

    Returns:
      The preset's settings with the flags given on top, and what was given of the program's own flags, by name.

    Raises:
      UserError: there is no such preset, or two goals are given.
    """
    from bertjax import presets
    from bertjax.settings import RunSettings

    names = ", ".join(presets.PRESETS)
    parser.add_argument(
        "--preset",
        default=None,
        help=f"complete settings by name: {names} (default: demo, or minilm if --encoder or --teacher is given)",
    )
    flags = [field.name for field in dataclasses.fields(RunSettings) if field.metadata and field.name not in apart]
    add_setting_flags(parser, flags)
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value is not None}
    named = "minilm" if given.keys() & {"encoder", "teacher"} else "demo"
    preset = given.pop("preset", named)
    if preset not in presets.PRESETS:
        raise UserError(f"--preset {preset}: unknown; there are {names}")
    own = {name: given.pop(name) for name in list(given) if name not in flags}
    if given.keys() >= {"flops_reduction", "latency_reduction"}:
        raise UserError("--flops-reduction, --latency-reduction: give one of them")
    given |= {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    return dataclasses.replace(presets.PRESETS[preset](), **given), own
