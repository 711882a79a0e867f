"""Confs read by LoadGen's own FromConfig, to compare with how `conf.read_conf` reads them."""

from __future__ import annotations

import math
from pathlib import Path

import mlperf_loadgen

from bertjax.errors import UserError
from bertjax.mlperf.conf import read_conf
from bertjax.mlperf.conf_lines import MalformedLine, split_line

# Where LoadGen keeps a key: its attribute, and the factor from the file's unit to the attribute's.
ATTRIBUTES = {
    ("SingleStream", "target_latency"): ("single_stream_expected_latency_ns", 1e6),
    ("MultiStream", "target_latency"): ("multi_stream_expected_latency_ns", 1e6),
    ("Server", "target_latency"): ("server_target_latency_ns", 10**6),
    ("SingleStream", "target_latency_percentile"): ("single_stream_target_latency_percentile", 0.01),
    ("MultiStream", "target_latency_percentile"): ("multi_stream_target_latency_percentile", 0.01),
    ("Server", "target_latency_percentile"): ("server_target_latency_percentile", 0.01),
    ("MultiStream", "samples_per_query"): ("multi_stream_samples_per_query", 1),
    ("Server", "target_qps"): ("server_target_qps", 1),
    ("Offline", "target_qps"): ("offline_expected_qps", 1),
    ("Server", "coalesce_queries"): ("server_coalesce_queries", 1),
    ("Server", "max_async_queries"): ("server_max_async_queries", 1),
    ("", "min_duration"): ("min_duration_ms", 1),
    ("", "max_duration"): ("max_duration_ms", 1),
}


def loadgen_reads(path: Path, scenario: str, model: str = "bert") -> tuple[int, mlperf_loadgen.TestSettings]:
    """LoadGen's own reading: its return code, 0 if it took the file, and its settings."""
    settings = mlperf_loadgen.TestSettings()
    return settings.FromConfig(str(path), model, scenario, 2), settings  # 2: without mlperf.conf, any number of times


def agreed_values(path: Path, scenario: str, *, audit: bool) -> int | None:
    """Check that our reading is LoadGen's; returns how many settings it found, None for a file that we refuse."""
    text = path.read_bytes().decode("utf-8", "replace")
    code, settings = loadgen_reads(path, scenario, "*" if audit else "bert")
    assert _dropped(text) == (code != 0), text
    try:
        found = read_conf(path, scenario, audit=audit)
    except UserError as error:
        assert str(error).startswith(f"{path}:") and str(error).isprintable()
        return None
    assert code == 0, text
    for key, value in found.values.items():
        name, factor = ATTRIBUTES.get((scenario, key)) or ATTRIBUTES.get(("", key), (key, 1))
        got = getattr(settings, name)
        assert int(got) == value if key == "mode" else math.isclose(got, value * factor, rel_tol=1e-15), text
    unset = mlperf_loadgen.TestSettings()
    for (scenario_of, key), (name, _) in ATTRIBUTES.items():  # and LoadGen found nothing else
        if scenario_of in (scenario, "") and key not in found.values:
            assert getattr(settings, name) == getattr(unset, name), text
    return len(found.values)


def _dropped(text: str) -> bool:
    try:
        for line in text.split("\n"):
            split_line(line)
    except MalformedLine:
        return True
    return False
