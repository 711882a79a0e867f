"""The spellings in which auditors ask for benchmarks, versions and scenarios."""

from __future__ import annotations

import pytest

from bertjax.errors import UserError
from bertjax.mlperf import gates
from bertjax.mlperf.conf import MODES, SCENARIOS


@pytest.mark.parametrize(
    ("benchmarks", "versions", "asked"),
    [
        ("bert", None, ["default"]),
        ("BERT", "High-Accuracy,default", ["high_accuracy", "default"]),
        ("bert-99", None, ["default"]),
        ("bert_99.9", None, ["high_accuracy"]),
        ("bert-99, bert-99.9", None, ["default", "high_accuracy"]),
        ("bert,bert-99", "default", ["default"]),
    ],
)
def test_an_auditors_benchmarks_and_versions_name_gates(benchmarks, versions, asked) -> None:
    assert gates.read_gates(benchmarks, versions) == asked


@pytest.mark.parametrize(
    ("benchmarks", "versions", "told"),
    [
        ("resnet50,bert", None, "--benchmarks=resnet50: unknown; choose of bert, bert-99, bert-99.9"),
        ("bert", "maxq", "--config_ver=maxq: unknown; choose of default, high_accuracy"),
        ("bert-99.9", "default", "--benchmarks=bert-99.9: its --config_ver is high_accuracy, not default"),
        (",", None, "--benchmarks=,: unknown"),
    ],
)
def test_what_names_no_gate_is_told(benchmarks, versions, told) -> None:
    with pytest.raises(UserError) as error:
        gates.read_gates(benchmarks, versions)
    assert str(error.value).startswith(told)


def test_names_are_read_in_any_spelling_and_once() -> None:
    found = gates.read_names("--scenarios", "offline, Single-Stream,MULTI_STREAM,OFFLINE", SCENARIOS)
    assert found == ["Offline", "SingleStream", "MultiStream"]
    assert gates.read_name("--test_mode", "performanceonly", MODES) == "PerformanceOnly"
    with pytest.raises(UserError, match="only one at a time"):
        gates.read_name("--test_mode", "PerformanceOnly,AccuracyOnly", MODES)
