"""LoadGen's logs in the form a submission has them: truncated accuracy logs, accuracy.txt, and the user.conf."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from bertjax.data.metrics import Score
from bertjax.mlperf.conf import BENCHMARK

_KEPT_BYTES = 4096  # of each end of an accuracy log (tools/submission/truncate_accuracy_log.py)
_CUT = b"\n\n...\n\n"
# The forms that the official checker matches (constants.py, ACC_PATTERN; checks/accuracy_check.py).
_SCORE = re.compile(r"^{[\"']exact_match[\"']:\s*([\d.]+),\s*[\"']f1[\"']:\s*([\d.]+)}", re.MULTILINE)
_HASH = re.compile(r"^hash=([0-9a-f]{64})$", re.MULTILINE)


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


def parse_accuracy(text: str) -> tuple[Score | None, str | None]:
    """The scores and the hash of an accuracy.txt; None for what is not there in the official checker's form."""
    scores, digest = _SCORE.search(text), _HASH.search(text)
    found = Score(exact_match=float(scores[1]), f1=float(scores[2])) if scores else None
    return found, digest[1] if digest else None


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
