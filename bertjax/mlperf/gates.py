"""The accuracy gates and the reference's F1."""

from __future__ import annotations

from pathlib import Path

from bertjax import rundir
from bertjax.errors import UserError
from bertjax.rundir import run_folder

GATES = {"default": 0.99, "high_accuracy": 0.999}  # shares of the FP32 reference's F1, MLPerf's bert-99 and bert-99.9

# The MLPerf reference: this model on the whole SQuAD v1.1 development set, in FP32.
REFERENCE_MODEL = "bert-large-uncased-whole-word-masking-finetuned-squad"
REFERENCE_QUESTIONS = 10_570
REFERENCE_F1 = 90.874


def reference_f1(model: Path, questions: int) -> tuple[float, str]:
    """The F1 that an accuracy gate is a share of, and whose it is.

    Raises:
      UserError: the model is of no run that scored its teacher, or the run's records are broken.
    """
    folder = run_folder(model)
    if folder and questions == REFERENCE_QUESTIONS and _teacher_name(folder).endswith(REFERENCE_MODEL):
        return REFERENCE_F1, f"the MLPerf reference, {REFERENCE_MODEL}"
    found = rundir.read_metrics(folder).get("stages", {}).get("teacher", {}).get("f1") if folder else None
    if found is None:
        raise UserError(f"{model}: lies in no run directory with the teacher's F1 in metrics.json; give --reference-f1")
    return float(found), f"the teacher of {folder}"


def _teacher_name(folder: Path) -> str:
    return str(rundir.read_settings(folder).get("teacher") or "").rstrip("/")
