"""From a model directory to an ONNX file beside it, checked, with a record of its source."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import onnx

from bertjax.errors import UserError, WorkFailed
from bertjax.files import write_files_aside
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.weights import weight_files
from bertjax.onnx.emit import REVISION, emit
from bertjax.onnx.graph import FLAVOURS, FlavourName
from bertjax.onnx.record import is_untouched, read_record, with_record

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
      The file's path. Its metadata holds `flavour`, `config` (JSON), `source_sha256`, `emitter_revision`, and a digest
      of the rest of the file.

    Raises:
      UserError: the directory is no complete model, or the place cannot be written.
      WorkFailed: the disk is full, or ONNX's own checker refuses the graph.
    """
    model = store.load_question_answering(directory)
    graph = emit(model, FLAVOURS[flavour])
    target = Path(output) if output else default_path(directory, model.config, flavour)
    _write(graph, target, _record(directory, model.config, flavour))
    return target


def export_twin(directory: Path, *, output: Path | None = None) -> Path:
    """Write a model directory through TensorFlow and tf2onnx: a witness of what `export_onnx` writes.

    The body is fp32, activations are int8 with zero point 0, weights stay float32 before their Q/DQ.

    Args:
      directory: a model directory, read as `store.load_question_answering` does.
      output: the file to write; `model.tf2onnx.onnx` in the directory where it is None.

    Returns:
      The file's path. Its metadata is that of flavour `cpu`, and `exporter`.

    Raises:
      UserError: TensorFlow or tf2onnx is not installed, the directory is no complete model, or the place cannot be
        written.
      WorkFailed: the disk is full, or ONNX's own checker refuses the graph.
    """
    try:
        from bertjax.onnx import twin
    except ModuleNotFoundError as error:
        raise UserError(f"--exporter tf2onnx: {error.name} is not installed; run pip install bertjax[tf]") from None
    model = store.load_question_answering(directory)
    graph = twin.convert(model)
    target = Path(output) if output else Path(directory) / "model.tf2onnx.onnx"
    _write(graph, target, _record(directory, model.config, "cpu") | {"exporter": "tf2onnx"})
    return target


def is_current(path: Path, directory: Path, flavour: FlavourName) -> bool:
    """Whether `path` is what `export_onnx` would write from what `directory` holds now, byte for byte.

    The emitter's revision decides, and not the version of bertjax: a file of an earlier version stays current as long
    as today's emitter writes the same graph. Files of 0.1 have no digest of their own and are held against that graph.

    Raises:
      UserError: the directory is no complete model.
    """
    if not Path(path).exists():
        return False
    try:
        model = onnx.load(str(path), load_external_data=False)
        found = read_record(model)
        config = BertConfig.from_dict(json.loads(found.get("config", "")), path)
    except Exception:  # protobuf's DecodeError and whatever else a broken file gives: export again
        return False
    today = BertConfig.from_json(Path(directory) / "config.json")
    wanted = _record(directory, today, flavour)
    del wanted["config"]  # its text may say the same in other words
    if config != today or not wanted.items() <= found.items() or "exporter" in found:
        return False
    untouched = is_untouched(path, found)
    if untouched is None:
        return emit(store.load_question_answering(directory), FLAVOURS[flavour]).graph == model.graph
    return untouched


def source_digest(directory: Path) -> str:
    """SHA-256, in hexadecimal, of a directory's weights: `model.safetensors`, or its parts one after the other.

    Raises:
      UserError: a file is missing, or the index of the parts is broken.
    """
    digest = hashlib.sha256()
    for path in weight_files(directory):
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.hexdigest()


def _record(directory: Path, config: BertConfig, flavour: FlavourName) -> dict[str, str]:
    return {
        "flavour": flavour,
        "config": json.dumps(config.to_dict(), sort_keys=True),
        "source_sha256": source_digest(directory),
        "emitter_revision": str(REVISION),
    }


def _write(model: onnx.ModelProto, target: Path, record: dict[str, str]) -> None:
    """Write and check a model; external data goes beside it under the name that the model knows it by."""
    data_name = f"{target.name}.data"
    external = sum(len(tensor.raw_data) for tensor in model.graph.initializer) > EXTERNAL_DATA_FROM
    if target.is_dir():
        raise UserError(f"{target}: is a folder; --output names a file")
    with write_files_aside(target) as aside:
        written = aside / target.name
        if external:
            onnx.save(model, str(written), save_as_external_data=True, location=data_name)
            model = onnx.load(str(written), load_external_data=False)
        written.write_bytes(with_record(model, record, data=aside / data_name if external else None))
        try:
            onnx.checker.check_model(str(written), full_check=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise WorkFailed(f"{target}: ONNX's checker refuses the graph ({error})") from error
    if not external:
        target.with_name(data_name).unlink(missing_ok=True)  # of an earlier export
