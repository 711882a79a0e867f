"""The source of an engine: a model directory, or an ONNX file that bertjax exported."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import cast

import onnx

from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig
from bertjax.onnx.emit import REVISION
from bertjax.onnx.export import default_path, export_onnx, is_current, source_digest
from bertjax.onnx.graph import FLAVOURS, FlavourName
from bertjax.onnx.record import is_untouched, read_record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """An ONNX file and the model that it holds."""

    onnx_path: Path
    flavour: FlavourName
    config: BertConfig
    directory: Path | None  # from which a missing or stale `onnx_path` is written; None: the file is taken as it is


def source_from_directory(directory: Path, flavour: FlavourName) -> Source:
    """The export of a model directory.

    Raises:
      UserError: the directory has no valid `config.json`, or TensorRT cannot take the flavour.
    """
    config = BertConfig.from_json(Path(directory) / "config.json")
    _check_flavour(config, flavour, f"--flavour {flavour}: {directory}")
    return Source(
        onnx_path=default_path(directory, config, flavour),
        flavour=flavour,
        config=config,
        directory=Path(directory),
    )


def source_from_onnx(path: Path, *, directory: Path | None, flavour: FlavourName | None) -> Source:
    """An ONNX file that `export/to_onnx.py` wrote.

    Args:
      path: the file.
      directory: the model directory that it has to come from; None: any.
      flavour: the wanted flavour; None: either.

    Raises:
      UserError: it is no such file, of another model, flavour or revision of the emitter, was changed, or TensorRT
        cannot take its flavour.
    """
    path = Path(path)
    mend = f"python export/to_onnx.py --model {directory or 'DIR'} --flavour {flavour or 'trt'}"
    model = _load(path)
    metadata = read_record(model)
    try:
        config, digest = BertConfig.from_dict(json.loads(metadata["config"]), path), metadata["source_sha256"]
        found = FLAVOURS[cast(FlavourName, metadata["flavour"])].name
        revision = int(metadata["emitter_revision"])
    except (AttributeError, KeyError, TypeError, ValueError):  # AttributeError and TypeError: other JSON than an object
        raise UserError(f"--onnx {path}: not an ONNX file that bertjax exported; make one with: {mend}") from None
    if directory is not None:
        same_config = config == BertConfig.from_json(Path(directory) / "config.json")
        if not same_config or digest != source_digest(directory):
            raise UserError(f"--onnx {path}: not of what {directory} holds; export it again with: {mend}")
    if revision != REVISION:
        raise UserError(
            f"--onnx {path}: of emitter revision {revision}, today's is {REVISION}; export it again with: {mend}"
        )
    if flavour not in (None, found):
        raise UserError(f"--onnx {path}: is of flavour {found}, not {flavour}; export it again with: {mend}")
    _check_flavour(config, found, f"--onnx {path}")
    _check_external_data(model, path)
    if is_untouched(path, metadata) is False:
        raise UserError(f"--onnx {path}: changed since bertjax wrote it; export it again with: {mend}")
    return Source(onnx_path=path, flavour=found, config=config, directory=None)


def prepare_onnx(source: Source) -> str:
    """Export the file if that is needed.

    Returns:
      The SHA-256, in hexadecimal, of the weights that it holds.

    Raises:
      UserError: the directory is no complete model, or the place cannot be written.
      WorkFailed: the disk is full, or ONNX's own checker refuses the graph.
    """
    if source.directory is None:
        return read_record(_load(source.onnx_path))["source_sha256"]
    if not is_current(source.onnx_path, source.directory, source.flavour):
        export_onnx(source.directory, flavour=source.flavour)
    return source_digest(source.directory)


def _check_flavour(config: BertConfig, flavour: FlavourName, where: str) -> None:
    if flavour == "cpu" and config.quantization:
        raise UserError(
            f"{where}: a quantized model's cpu flavour has uint8 activations with zero point 128, which TensorRT"
            " refuses; use --flavour trt"
        )


def _load(path: Path) -> onnx.ModelProto:
    """An ONNX file without the weights outside it."""
    try:
        return onnx.load(str(path), load_external_data=False)
    except OSError as error:
        raise UserError(f"--onnx {path}: cannot be read ({error.strerror})") from None
    except Exception:  # protobuf's DecodeError, which is not part of its public interface
        raise UserError(f"--onnx {path}: not an ONNX file") from None


def _check_external_data(model: onnx.ModelProto, path: Path) -> None:
    """Refuse an ONNX file whose weights beside it are missing or cut short: TensorRT would not name that file."""
    ends: dict[str, int] = {}
    for tensor in model.graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where:
            end = int(where.get("offset", 0)) + int(where.get("length", 0))
            ends[where["location"]] = max(end, ends.get(where["location"], 0))
    for name, end in ends.items():
        data = path.with_name(name)
        if not data.exists() or data.stat().st_size < end:
            raise UserError(f"{data}: missing or cut short; {path.name} holds its weights there, so copy both files")
