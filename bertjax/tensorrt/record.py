"""`engine.json`: an engine's source, builder and target, which serving checks before it loads the engine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.identity import digest_file
from bertjax.onnx.emit import REVISION as EMITTER

REVISION = 1  # raised by every change to how engines are built: those of another revision are built again

LIBRARIES = {"tensorrt": "pip install tensorrt", "tensorrt_rtx": "pip install tensorrt-rtx-cu13"}


def record_path(engine: Path) -> Path:
    """`engine.json` beside `model.engine`; `NAME.engine.json` beside any other `NAME.engine`."""
    engine = Path(engine)
    return engine.with_name("engine.json" if engine.name == "model.engine" else f"{engine.name}.json")


def read_record(engine: Path, *, source_sha256: str) -> dict[str, Any]:
    """The record of an engine of these weights, made by emitter and builder in their revisions of today.

    Records of version 0.1 hold no revisions: theirs were 4 of the emitter and 1 of the builder.

    Returns:
      `engine.json` with a valid `library` (a key of LIBRARIES), `library_version` and `compute_capability`.

    Raises:
      UserError: engine or record is missing or broken, they do not belong together, the weights are others, or a
        revision is another one.
    """
    engine, path = Path(engine), record_path(engine)
    mend = f"make it with: python export/to_trt.py --model {engine.parent}"
    try:
        digest = digest_file(engine)
        record = _parse(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: no such file; {mend}") from None
    if record is None:
        raise UserError(f"{path}: broken, or of another version of bertjax; {mend}")
    if (digest, source_sha256) != (record["engine_sha256"], record["source_sha256"]):
        raise UserError(f"{engine}: not of these weights; {mend}")
    revisions = record.get("emitter_revision", 4), record.get("builder_revision", 1)
    if revisions != (EMITTER, REVISION):
        raise UserError(f"{engine}: built by an older or newer bertjax in another way than today's; {mend}")
    return record


def _parse(content: bytes) -> dict[str, Any] | None:
    """The record, or None if it is broken."""
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        return None
    texts = "engine_sha256", "source_sha256", "library", "library_version", "compute_capability"
    if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in texts):
        return None
    return record if record["library"] in LIBRARIES else None
