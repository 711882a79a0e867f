"""What a model's run directory knows of how it is to be served, and what serving adds to its `metrics.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bertjax import records
from bertjax.config import BertConfig
from bertjax.data.features import WindowSettings
from bertjax.errors import UserError
from bertjax.mlperf.harness import Result

GATES = {"default": 0.99, "high_accuracy": 0.999}  # shares of the FP32 reference's F1, MLPerf's bert-99 and bert-99.9

# The MLPerf reference: this model on the whole SQuAD v1.1 development set, in FP32.
REFERENCE_MODEL = "bert-large-uncased-whole-word-masking-finetuned-squad"
REFERENCE_QUESTIONS = 10_570
REFERENCE_F1 = 90.874


def run_folder(model: Path) -> Path | None:
    """The run directory that a model directory lies in; None where it lies in none."""
    parent = Path(model).resolve().parent
    return parent if (parent / "metrics.json").exists() else None


def default_data(model: Path) -> Path:
    """The evaluation file of the model's run.

    Raises:
      UserError: the model is of no run, or the run does not say.
    """
    recorded = _data_record(model).get("eval_file")
    if recorded is None:
        raise UserError(f"{model}: lies in no run directory that names an evaluation file; give --data FILE")
    return Path(recorded)


def window_settings(
    model: Path, *, max_seq: int | None = None, doc_stride: int | None = None, max_query: int | None = None
) -> WindowSettings:
    """The given window settings, else those of the model's run, else MLPerf's within the model's positions.

    Raises:
      UserError: the model's `config.json` is missing or wrong.
    """
    recorded, usual = _data_record(model), WindowSettings()
    positions = BertConfig.from_json(Path(model) / "config.json").max_position_embeddings
    return WindowSettings(
        max_seq=max_seq or recorded.get("max_seq", min(usual.max_seq, positions)),
        doc_stride=doc_stride or recorded.get("doc_stride", usual.doc_stride),
        max_query=max_query or recorded.get("max_query", usual.max_query),
    )


def record_result(model: Path, result: Result) -> Path | None:
    """Add a result to the `metrics.json` of the model's run, if it is of one; returns that file.

    Raises:
      UserError, WorkFailed: the file is broken or cannot be written.
    """
    folder = run_folder(model)
    if folder is None:
        return None
    records.update_metrics(folder, {"loadgen": {result.model: {result.scenario: result.record()}}})
    return folder / "metrics.json"


def reference_f1(model: Path, questions: int) -> tuple[float, str]:
    """The F1 that an accuracy gate is a share of, and whose it is.

    Raises:
      UserError: the model is of no run that scored its teacher, or the run's records are broken.
    """
    folder = run_folder(model)
    if folder and questions == REFERENCE_QUESTIONS and _teacher_name(folder).endswith(REFERENCE_MODEL):
        return REFERENCE_F1, f"the MLPerf reference, {REFERENCE_MODEL}"
    found = records.read_metrics(folder).get("stages", {}).get("teacher", {}).get("f1") if folder else None
    if found is None:
        raise UserError(f"{model}: lies in no run directory with the teacher's F1 in metrics.json; give --reference-f1")
    return float(found), f"the teacher of {folder}"


def _teacher_name(folder: Path) -> str:
    return str(records.read_settings(folder).get("teacher") or "").rstrip("/")


def _data_record(model: Path) -> dict[str, Any]:
    folder = run_folder(model)
    return records.read_metrics(folder).get("data", {}) if folder else {}
