"""A submission's statements about its model, read from the model's files and its run directory."""

from __future__ import annotations

import collections
import re
from pathlib import Path
from typing import Any

import onnx

from bertjax import rundir
from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig, count_macs
from bertjax.rundir import run_folder, window_settings

INPUT_TYPE = "int64"  # of the token arrays that every backend is handed: `samples.SampleLibrary.gather`
_TYPE_NAMES = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}  # ONNX's name -> MLPerf's


def measurements(model: Path, description: str | None) -> dict[str, str]:
    """The content of a measurements.json.

    Args:
      description: the backend's own, which names the file that it served; None for logs of unknown origin.

    Raises:
      UserError: the model lies in no run directory with its settings.json, or a file is broken.
    """
    origin = _origin(_settings(model))
    return {
        "input_data_types": INPUT_TYPE,
        "retraining": _retraining(model, origin),
        "starting_weights_filename": _starting_weights(origin),
        "weight_data_types": weight_types(model, description),
        "weight_transformations": _transformations(model),
    }


def weight_types(model: Path, description: str | None) -> str:
    """The data types of the served graph's weight matrices, the most frequent first, as in `int8, fp32`.

    Where the description names no graph that is still there, the model's own record decides.
    """
    named = re.search(r"model[\w.]*\.(?:onnx|engine)", description or "")
    graph = Path(model) / ("model.trt.onnx" if named and named[0].endswith(".engine") else named[0] if named else "-")
    if not graph.exists():
        quantized = BertConfig.from_json(Path(model) / "config.json").quantization is not None
        return "int8, fp32" if quantized else "fp32"
    counts: collections.Counter[str] = collections.Counter()
    for tensor in onnx.load(graph, load_external_data=False).graph.initializer:
        if len(tensor.dims) == 2:
            name = onnx.TensorProto.DataType.Name(tensor.data_type)
            counts[_TYPE_NAMES.get(name, name.lower())] += tensor.dims[0] * tensor.dims[1]
    return ", ".join(name for name, _ in counts.most_common())


def stages_table(model: Path) -> list[tuple[str, dict[str, Any]]]:
    """The stages that the model's run made and scored, in the order in which they were made."""
    return [(name, stage) for name, stage in _made_stages(model).items() if "f1" in stage]


def _made_stages(model: Path) -> dict[str, Any]:
    folder = run_folder(model)
    return rundir.made_stages(rundir.read_metrics(folder), _settings(model)) if folder else {}


def _settings(model: Path) -> dict[str, Any]:
    folder = run_folder(model)
    settings = rundir.read_settings(folder) if folder else {}
    if not settings:
        raise UserError(
            f"{Path(model).resolve().parent}: no run directory with a settings.json; a submission says how its weights"
            " came to be, so --model has to lie in a run directory of train/distill.py"
        )
    return settings


def _origin(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of the run that made the teacher, where a run began with the finished teacher of another one."""
    met: set[Path] = set()
    while teacher := settings.get("teacher"):
        folder = Path(teacher).resolve().parent
        found = rundir.read_settings(folder)
        if not found or folder in met:
            break
        met.add(folder)
        settings = found
    return settings


def _starting_weights(settings: dict[str, Any]) -> str:
    source = settings.get("teacher") or settings.get("encoder")
    if not source:
        return "none: pretrained from random weights"
    # Of a local folder only its name is anybody's business; a name on the hub has one slash and no folder behind it.
    is_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source) and not Path(source).exists()
    return f"model.safetensors of {source if is_hub_name else Path(source).resolve().name}"


def _retraining(model: Path, settings: dict[str, Any]) -> str:
    done = []
    if not settings.get("teacher"):
        origin = "a pretrained encoder" if settings.get("encoder") else "an encoder pretrained from random weights"
        done.append(f"fine-tuning of {origin}")
    if Path(model).resolve().name in ("student", "student-int8") and "distilled" in _made_stages(model):
        done.append("distillation from the unpruned teacher")
    quantization = BertConfig.from_json(Path(model) / "config.json").quantization
    if quantization and quantization.trained:
        done.append("quantization-aware training")
    return f"yes: {', '.join(done)}" if done else "no"


def _transformations(model: Path) -> str:
    config, folder = BertConfig.from_json(Path(model) / "config.json"), run_folder(model)
    found = []
    teacher_path = folder / "teacher" / "config.json" if folder else None
    if teacher_path and teacher_path.exists():
        teacher, seq = BertConfig.from_json(teacher_path), window_settings(model).max_seq
        if teacher.layers != config.layers:
            heads, units = (
                [sum(getattr(layer, kind) for layer in each.layers) for each in (teacher, config)]
                for kind in ("heads", "ffn")
            )
            macs = [count_macs(each, seq) for each in (teacher, config)]
            found.append(
                f"structured pruning: attention heads {heads[0]} -> {heads[1]}, FFN units {units[0]} -> {units[1]},"
                f" multiply-accumulates of {seq} tokens {macs[0]:.4g} -> {macs[1]:.4g}"
            )
    if config.quantization:
        parts = ["dense layers of the encoder", "attention products", "residual adds"]
        chosen = [True, config.quantization.attention, config.quantization.residual]
        what = ", ".join(part for part, is_chosen in zip(parts, chosen, strict=True) if is_chosen)
        found.append(
            f"symmetric INT8 of the {what}: weights per output channel, activations per"
            f" {config.quantization.activation_scales}, calibrator"
            f" {config.quantization.calibrator} over {config.quantization.calibration_examples} examples"
        )
    return "; ".join(found) or "none"
