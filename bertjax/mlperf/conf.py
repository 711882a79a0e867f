"""LoadGen's names and mlperf.conf's values for bert, and a check of user.conf and audit.conf."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from bertjax.errors import UserError

MODES = ("SubmissionRun", "AccuracyOnly", "PerformanceOnly", "FindPeakPerformance")  # in LoadGen's own order
SCORED = ("SubmissionRun", "AccuracyOnly")  # those of MODES that give an accuracy
SHORT_SECONDS = 10.0  # a run for people
SERVER_BOUND_MILLISECONDS = 130.0  # mlperf.conf's target_latency of bert in Server, of the 99th percentile
OFFICIAL_SECONDS = 600.0  # mlperf.conf's min_duration: a run for the record

# The keys that LoadGen 6.0 looks up (loadgen/test_settings_internal.cc, TestSettings::FromConfig).
_NAMES = """
    mode min_duration max_duration min_query_count max_query_count qsl_rng_seed sample_index_rng_seed
    schedule_rng_seed accuracy_log_rng_seed accuracy_log_probability accuracy_log_sampling_target print_timestamps
    performance_issue_unique performance_issue_same performance_issue_same_index performance_sample_count_override
    sample_concatenate_permutation accuracy_sample_count_override test05 test05_qsl_rng_seed
    test05_sample_index_rng_seed test05_schedule_rng_seed target_latency_percentile target_latency target_duration
    samples_per_query target_qps coalesce_queries max_async_queries num_issue_query_threads
"""
KEYS = frozenset(_NAMES.split())
# Of these LoadGen 6.0.17 keeps mlperf.conf's value, whatever a file says; its detail log shows it under `effective_`.
FIXED = frozenset({"qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed", "accuracy_log_probability"})
BENCHMARK = "bert"  # LoadGen's name for it in mlperf.conf
SCENARIOS = ("Offline", "SingleStream", "Server", "MultiStream")
_LINE = re.compile(r"^(?P<model>[\w*.-]+)\.(?P<scenario>[\w*]+)\.(?P<key>\w+)\s+=\s+(?P<value>\S+)$")


AUDIT_CONF = Path("audit.config")  # LoadGen takes it from the working folder if it lies there


def find_audit_conf(given: Path | None) -> Path | None:
    """The file that is given, else AUDIT_CONF where it is there."""
    return given or (AUDIT_CONF if AUDIT_CONF.exists() else None)


def read_audit_conf(path: Path, scenario: str) -> dict[str, float]:
    """As `read_user_conf`, of a file whose settings are stronger than all others, by which an auditor changes a run.

    Raises:
      UserError: as `read_user_conf`, or a line names a model: LoadGen passes over these.
    """
    found = read_user_conf(path, scenario, flag="--audit-conf")
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), start=1):
        match = _LINE.match(line.split("#", 1)[0].strip())
        if match and match["model"] != "*":
            raise UserError(
                f"{path}:{number}: model {match['model']!r}: of an audit.conf LoadGen reads only lines of all models,"
                " '*.*.mode = 2'"
            )
    return found


def read_user_conf(path: Path, scenario: str, *, flag: str = "--user-conf") -> dict[str, float]:
    """The settings of a user.conf that hold for this benchmark in a scenario, by key, in the file's own units.

    Raises:
      UserError: the file is missing, or a line is not `model.scenario.key = number` with a key that LoadGen obeys.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text ({error}); {flag} wants a file in LoadGen's form") from None
    found: dict[tuple[int, str], float] = {}
    for number, line in enumerate(lines, start=1):
        text = line.split("#", 1)[0].strip()
        if not text:
            continue
        match = _LINE.match(text)
        value = _number(match["value"]) if match else None
        if match is None or value is None:
            raise UserError(f"{path}:{number}: {text!r}: a line reads 'bert.Server.target_qps = 100', spaces included")
        if match["scenario"] not in (*SCENARIOS, "*"):
            raise UserError(f"{path}:{number}: scenario {match['scenario']!r}: one of {', '.join(SCENARIOS)}, *")
        if match["key"] not in KEYS:
            raise UserError(
                f"{path}:{number}: {match['key']!r} is no setting of LoadGen; see mlperf.conf for the names"
            )
        if match["key"] in FIXED:
            raise UserError(f"{path}:{number}: LoadGen keeps its own {match['key']}; leave the line out")
        if match["model"] in (BENCHMARK, "*") and match["scenario"] in (scenario, "*"):
            # A line that names its model or scenario is stronger than one with a star.
            strength = (match["model"] != "*") + 2 * (match["scenario"] != "*")
            found[strength, match["key"]] = value
    return {key: value for (_, key), value in sorted(found.items())}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def server_bound_seconds(conf: Mapping[str, float]) -> float:
    """The latency that Server's 99th percentile may have, of a user.conf's settings as `read_user_conf` gives them."""
    return conf.get("target_latency", SERVER_BOUND_MILLISECONDS) / 1e3
