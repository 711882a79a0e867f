"""Where finished runs are found."""

from __future__ import annotations

from pathlib import Path

from bertjax.errors import UserError


def newest_student(root: Path = Path("runs")) -> Path:
    """The INT8 student of the run under `root` that finished last.

    A model directory is complete or absent, so its `config.json` is the sign of a finished one.

    Raises:
      UserError: no run under `root` has one.
    """
    found = [path for path in Path(root).glob("*/student-int8/config.json") if not path.parent.name.startswith(".")]
    if not found:
        raise UserError(f"no finished run under {root}/; run python train/distill.py first, or give --model DIR")
    return max(found, key=lambda path: path.stat().st_mtime).parent
