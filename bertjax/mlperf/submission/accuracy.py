"""LoadGen's logs in the form a submission has them: truncated accuracy logs, accuracy.txt, and the user.conf."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from typing import Any

from bertjax.data.metrics import Score
from bertjax.mlperf.conf import BENCHMARK

_KEPT_BYTES = 4096  # of each end of an accuracy log (tools/submission/truncate_accuracy_log.py)
_CUT = b"\n\n...\n\n"
# The forms that the official checker matches (constants.py, ACC_PATTERN; checks/accuracy_check.py).
_SCORE = re.compile(r"^{[\"']exact_match[\"']:\s*([\d.]+),\s*[\"']f1[\"']:\s*([\d.]+)}")
_PERCENT = re.compile(r"\d+(\.\d+)?")
_HASH = re.compile(r"^hash=([0-9a-f]{64})$")


def truncate(content: bytes) -> bytes:
    """Both ends of an accuracy log; one that is shorter than both together stays whole."""
    if len(content) <= 2 * _KEPT_BYTES:
        return content
    return content[:_KEPT_BYTES] + _CUT + content[-_KEPT_BYTES:]


def is_truncated(content: bytes) -> bool:
    """Whether `truncate` has cut this log."""
    return content[_KEPT_BYTES : _KEPT_BYTES + len(_CUT)] == _CUT


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def format_accuracy(score: Score, digest: str) -> str:
    """The text of an accuracy.txt: the scores in percent and the SHA-256 of the whole accuracy log."""
    return f'{{"exact_match": {score.exact_match:.6f}, "f1": {score.f1:.6f}}}\n\nhash={digest}\n'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parsed:
    """The contents of an accuracy.txt; None for what is absent, and its faults in words."""

    score: Score | None
    digest: str | None  # SHA-256 of the whole accuracy log
    faults: tuple[str, ...]


def parse_accuracy(text: str) -> Parsed:
    """Read the scores and the hash of an accuracy.txt in the official checker's form, each of which stands there once.

    That checker reads on past a first score, and stumbles over what its pattern takes for a number and Python does not.
    """
    lines = text.split("\n")
    scores = [match.groups() for match in map(_SCORE.match, lines) if match]
    digests = [match[1] for match in map(_HASH.match, lines) if match]
    score, faults = None, []
    if len(scores) != 1:
        faults.append(f'{len(scores) or "no"} line {{"exact_match": ..., "f1": ...}}')
    elif not all(_PERCENT.fullmatch(number) and float(number) <= 100 for number in scores[0]):
        faults.append(f"exact_match {scores[0][0]} and f1 {scores[0][1]}: wanted percents, each one number")
    else:
        score = Score(exact_match=float(scores[0][0]), f1=float(scores[0][1]))
    if len(digests) != 1:
        faults.append(f"{len(digests) or 'no'} line hash= with the SHA-256 of the whole accuracy log")
    return Parsed(score=score, digest=digests[0] if len(digests) == 1 else None, faults=tuple(faults))


def user_conf(scenario: str, logged: Mapping[str, Any]) -> str:
    """The user.conf that asks LoadGen for this run again.

    Args:
      logged: the values of the run's `mlperf_log_detail.txt`, as `logs.read_detail_log` gives them.
    """
    lines = {
        "min_duration": logged["effective_min_duration_ms"],
        "min_query_count": logged["effective_min_query_count"],
    }
    if scenario in ("Offline", "Server"):
        lines["target_qps"] = logged["effective_target_qps"]
    else:  # the expected latency, which LoadGen logs in nanoseconds and reads in milliseconds
        key = {"SingleStream": "single_stream", "MultiStream": "multi_stream"}[scenario]
        lines["target_latency"] = logged[f"requested_{key}_expected_latency_ns"] / 1e6
    if scenario == "Server":
        lines["target_latency"] = logged["effective_target_latency_ns"] / 1e6
    return "".join(f"{BENCHMARK}.{scenario}.{key} = {value:.12g}\n" for key, value in lines.items())
