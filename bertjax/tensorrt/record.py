"""`engine.json`: from what, by what and for what an engine was built, for serving to check before it loads it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from bertjax.errors import UserError

LIBRARIES = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install tensorrt-rtx-cu13"}


def record_path(engine: Path) -> Path:
    """`engine.json` beside `model.engine`; `NAME.engine.json` beside any other `NAME.engine`."""
    engine = Path(engine)
    return engine.with_name("engine.json" if engine.name == "model.engine" else f"{engine.name}.json")


def read_record(engine: Path, *, source_sha256: str) -> dict[str, Any]:
    """The record of an engine that is of these weights.

    Returns:
      `engine.json` with a valid `library` (a key of LIBRARIES), `library_version` and `compute_capability`.

    Raises:
      UserError: engine or record is missing or broken, they do not belong together, or the weights are others.
    """
    engine = Path(engine)
    mend = f"make it with: python export/to_trt.py --model {engine.parent}"
    path = record_path(engine)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        wanted = record["engine_sha256"], record["source_sha256"]
        valid = record["library"] in LIBRARIES and all(
            isinstance(record[name], str) for name in ("library_version", "compute_capability")
        )
        found = hashlib.sha256(engine.read_bytes()).hexdigest(), source_sha256
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; {mend}") from None
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise UserError(f"{path}: broken, or of another version of bertjax; {mend}") from None
    if wanted != found:
        raise UserError(f"{engine}: not of these weights; {mend}")
    return record
