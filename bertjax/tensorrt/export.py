"""From a model directory to `model.engine` and `engine.json` beside it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import bertjax
from bertjax.config import BertConfig
from bertjax.errors import UserError, WorkFailed
from bertjax.modeldir import write_file_aside
from bertjax.onnx.export import default_path, export_onnx, is_current, source_digest
from bertjax.tensorrt.account import Account, make_account, read_engine_layers
from bertjax.tensorrt.binding import load_tensorrt
from bertjax.tensorrt.build import BuildSettings, build_engine


def export_engine(directory: Path, settings: BuildSettings) -> tuple[Path, Account]:
    """Build a model directory's TensorRT engine, from its `trt` ONNX, which is written first if absent or stale.

    Returns:
      The path of `model.engine`, and what of it runs in INT8. `engine.json` beside it records versions, target,
      profile, digests and the account; `engine_sha256` there tells whether the two belong together.

    Raises:
      UserError: the directory is no complete model, TensorRT is not installed, or the settings do not fit.
      WorkFailed: TensorRT could not build it, its log lacks the list of layers, or the disk is full.
    """
    directory = Path(directory)
    config = BertConfig.from_json(directory / "config.json")
    if settings.seq[2] > config.max_position_embeddings:
        raise UserError(f"--seq: at most max_position_embeddings = {config.max_position_embeddings} tokens")
    trt = load_tensorrt()
    onnx_path = default_path(directory, config, "trt")
    if not is_current(onnx_path, directory, "trt"):
        export_onnx(directory, flavour="trt")
    built = build_engine(trt, onnx_path, settings)
    layers = read_engine_layers(built.log)
    if not layers:
        raise WorkFailed(f"{onnx_path}: the log of {trt.__name__} {trt.__version__} does not list the engine's layers")
    account = make_account(config, layers)
    path = directory / "model.engine"
    record = {
        "engine_sha256": hashlib.sha256(built.serialized).hexdigest(),
        "engine_bytes": len(built.serialized),
        "source_sha256": source_digest(directory),
        "versions": {trt.__name__: trt.__version__, "bertjax": bertjax.__version__},
        "compute_capability": built.compute_capability,
        "profile": {
            name: dict(zip(("min", "opt", "max"), getattr(settings, name), strict=True)) for name in ("batch", "seq")
        },
        "workspace_bytes": settings.workspace_bytes,
        "build_seconds": round(built.seconds, 3),
        "account": account.to_dict(),
    }
    write_file_aside(path, built.serialized)
    write_file_aside(directory / "engine.json", json.dumps(record, indent=2) + "\n")
    return path, account
