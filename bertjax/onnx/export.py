"""From a model directory to an ONNX file beside it, checked, with a record of what it was made from."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx

from bertjax import files
from bertjax.errors import UserError, WorkFailed
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig
from bertjax.onnx.emit import REVISION, emit
from bertjax.onnx.graph import FLAVOURS, FlavourName
from bertjax.version import __version__

# A protobuf message ends at 2 GiB; past this many bytes of weights they go into a file of their own.
EXTERNAL_DATA_FROM = 2_000_000_000


def default_path(directory: Path, config: BertConfig, flavour: FlavourName) -> Path:
    """Where a directory's export lives: `model.<flavour>.onnx`, or `model.onnx` for plain fp32."""
    plain = flavour == "cpu" and config.quantization is None
    return Path(directory) / ("model.onnx" if plain else f"model.{flavour}.onnx")


def export_onnx(directory: Path, *, flavour: FlavourName, output: Path | None = None) -> Path:
    """Write one flavour of a span-predicting model directory as ONNX.

    Flavour `cpu` is fp32 around uint8 activations (ONNX Runtime, OpenVINO); `trt` is fp16 around int8 activations
    (TensorRT). A model without quantization gets no Q/DQ in either. Weights over 2 GB go to `<file>.data`.

    Args:
      directory: a model directory, read as `store.load_question_answering` does.
      flavour: `cpu` or `trt`.
      output: the file to write; `default_path` where it is None.

    Returns:
      The file's path. Its metadata holds `flavour`, `config` (JSON), `source_sha256` and `bertjax_version`.

    Raises:
      UserError: the directory is no complete model, or the place cannot be written.
      WorkFailed: the disk is full, or ONNX's own checker refuses the graph.
    """
    model = store.load_question_answering(directory)
    graph = emit(model, FLAVOURS[flavour])
    onnx.helper.set_model_props(graph, _record(directory, model.config, flavour))
    target = Path(output) if output else default_path(directory, model.config, flavour)
    _write(graph, target)
    return target


def export_twin(directory: Path, *, output: Path | None = None) -> Path:
    """Write a model directory through TensorFlow and tf2onnx: a witness of what `export_onnx` writes.

    The body is fp32, activations are int8 with zero point 0, weights stay float32 before their Q/DQ.

    Args:
      directory: as for `export_onnx`.
      output: the file to write; `model.tf2onnx.onnx` in the directory where it is None.

    Returns:
      The file's path. Its metadata is that of flavour `cpu`, and `exporter`.

    Raises:
      UserError: TensorFlow or tf2onnx is not installed, and as `export_onnx`.
      WorkFailed: as `export_onnx`.
    """
    try:
        from bertjax.onnx import twin
    except ModuleNotFoundError as error:
        raise UserError(f"--exporter tf2onnx: {error.name} is not installed; run pip install bertjax[tf]") from None
    model = store.load_question_answering(directory)
    graph = twin.convert(model)
    onnx.helper.set_model_props(graph, _record(directory, model.config, "cpu") | {"exporter": "tf2onnx"})
    target = Path(output) if output else Path(directory) / "model.tf2onnx.onnx"
    _write(graph, target)
    return target


def is_current(path: Path, directory: Path, flavour: FlavourName) -> bool:
    """Whether `path` was exported from what `directory` holds now, by this version of bertjax."""
    if not Path(path).exists():
        return False
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception:  # protobuf's DecodeError and whatever else a broken file gives: export again
        return False
    found = {entry.key: entry.value for entry in model.metadata_props}
    return found == _record(directory, BertConfig.from_json(Path(directory) / "config.json"), flavour)


def source_digest(directory: Path) -> str:
    """SHA-256, in hexadecimal, of a directory's weights: `model.safetensors`, or its parts one after the other."""
    digest = hashlib.sha256()
    for path in sorted(Path(directory).glob("model*.safetensors")):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def _record(directory: Path, config: BertConfig, flavour: FlavourName) -> dict[str, str]:
    return {
        "flavour": flavour,
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "source_sha256": source_digest(directory),
        "bertjax_version": __version__,
        "emitter_revision": REVISION,
    }


def _write(model: onnx.ModelProto, target: Path) -> None:
    data_name = f"{target.name}.data"
    weights = sum(len(tensor.raw_data) for tensor in model.graph.initializer)
    if target.is_dir():
        raise UserError(f"{target}: is a folder; --output names a file")
    with _aside(target) as folder:
        written = folder / target.name
        if weights > EXTERNAL_DATA_FROM:
            onnx.save(model, str(written), save_as_external_data=True, location=data_name)
        else:
            onnx.save(model, str(written))
        try:
            onnx.checker.check_model(str(written), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise WorkFailed(f"{target}: ONNX's checker refuses the graph ({error})") from error
        if (folder / data_name).exists():
            os.replace(folder / data_name, target.with_name(data_name))
            os.replace(written, target)
        else:
            os.replace(written, target)
            target.with_name(data_name).unlink(missing_ok=True)


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """A fresh folder beside `target`, gone at the end: external data is found by its name beside the model."""
    folder = target.with_name(f".{target.name}.writing-{os.getpid()}")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        yield folder
    except OSError as error:
        raise files.disk_error(target, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
