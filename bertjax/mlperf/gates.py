"""The accuracy gates: which F1 a model has to reach, and whether it does."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path

from bertjax import rundir
from bertjax.errors import UserError
from bertjax.rundir import run_folder

GATES = {"default": 0.99, "high_accuracy": 0.999}  # shares of the FP32 reference's F1, MLPerf's bert-99 and bert-99.9

# The MLPerf reference: this model on the whole SQuAD v1.1 development set, in FP32.
REFERENCE_MODEL = "bert-large-uncased-whole-word-masking-finetuned-squad"
REFERENCE_QUESTIONS = 10_570
REFERENCE_F1 = 90.874


BENCHMARKS = {"bert-99": "default", "bert-99.9": "high_accuracy"}  # MLPerf's names for a model at a gate


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """An F1 against a gate. Scores in percent."""

    gate: str  # one of GATES
    f1: float
    reference: float  # the F1 that the gate is a share of
    whose: str  # that reference's owner

    @property
    def target(self) -> float:
        """The least F1 that passes."""
        return GATES[self.gate] * self.reference

    @property
    def passed(self) -> bool:
        return self.f1 >= self.target

    def __str__(self) -> str:
        return (
            f"Accuracy gate {self.gate}: F1 {self.f1:.3f}, target {self.target:.3f} = {GATES[self.gate]:.1%} of"
            f" {self.reference:.3f} ({self.whose}): {'passed' if self.passed else 'MISSED'}"
        )


def read_names(flag: str, text: str, known: Iterable[str]) -> list[str]:
    """Known names out of a comma list, in its order; case, hyphens, underscores and blanks may differ.

    Raises:
      UserError: a name is unknown, or there is none.
    """
    spellings = {_plain(name): name for name in known}
    parts = [part for part in text.split(",") if part.strip()]
    unknown = [part.strip() for part in parts if _plain(part) not in spellings]
    if unknown or not parts:
        raise UserError(f"{flag}={','.join(unknown) or text}: unknown; choose of {', '.join(spellings.values())}")
    return list(dict.fromkeys(spellings[_plain(part)] for part in parts))


def read_name(flag: str, text: str, known: Iterable[str]) -> str:
    """The one known name that is meant, in any spelling as for `read_names`.

    Raises:
      UserError: the name is unknown, or there are several.
    """
    found = read_names(flag, text, known)
    if len(found) > 1:
        raise UserError(f"{flag}={text}: only one at a time")
    return found[0]


def _plain(name: str) -> str:
    return re.sub(r"[-_\s]", "", name.lower())


def read_gates(benchmarks: str, versions: str | None) -> list[str]:
    """The gates that an auditor's --benchmarks and --config_ver ask for.

    `bert` is held to the gates of --config_ver (by default `default`), `bert-99` and `bert-99.9` to their own.

    Raises:
      UserError: a name is unknown, or a benchmark's gate is not among the versions that are given.
    """
    given = read_names("--config_ver", versions, GATES) if versions else []
    found: list[str] = []
    for name in read_names("--benchmarks", benchmarks, ("bert", *BENCHMARKS)):
        if name == "bert":
            found += given or ["default"]
        elif given and BENCHMARKS[name] not in given:
            raise UserError(f"--benchmarks={name}: its --config_ver is {BENCHMARKS[name]}, not {versions}")
        else:
            found.append(BENCHMARKS[name])
    return list(dict.fromkeys(found))


def judge(f1: float, gate: str, *, model: Path, questions: int, reference: float | None) -> Verdict:
    """Hold an F1 against a gate.

    Args:
      gate: one of GATES.
      questions: how many the F1 was scored on.
      reference: the F1 that the gate is a share of; None: `reference_f1`.

    Raises:
      UserError: there is no such gate; or without a `reference`, as `reference_f1`.
    """
    if gate not in GATES:
        raise UserError(f"--config_ver={gate}: unknown; choose one of {', '.join(GATES)}")
    found, whose = (reference, "--reference-f1") if reference else reference_f1(model, questions)
    return Verdict(gate=gate, f1=f1, reference=found, whose=whose)


def check_percent(f1: float | None, flag: str) -> None:
    """Refuse a share where a percentage is meant.

    Raises:
      UserError: it does not lie above 1 and up to 100.
    """
    if f1 is not None and not 1 < f1 <= 100:
        raise UserError(f"{flag} {f1:g}: wanted in percent, such as {REFERENCE_F1}")


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
