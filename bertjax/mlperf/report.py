"""A run's result as text, in the form of LoadGen's own summary."""

from __future__ import annotations

from bertjax.mlperf.harness import OFFICIAL_SECONDS, Result
from bertjax.mlperf.results import PERCENTILES, Performance

_RULE = "=" * 48


def format_result(result: Result) -> str:
    """The lines that a person reads after a run."""
    lines = [
        _RULE,
        "MLPerf Results Summary",
        _RULE,
        f"Model    : {result.model}",
        f"Backend  : {result.description}",
        f"Layout   : {result.layout}",
        f"Scenario : {result.scenario}",
        f"Mode     : {result.mode}",
    ]
    if result.performance is not None:
        lines += _performance(result, result.performance)
    if result.accuracy is not None:
        lines += [f"Exact match : {result.accuracy.exact_match:.3f}", f"F1          : {result.accuracy.f1:.3f}"]
    return "\n".join([*lines, f"Logs     : {result.log_dir}"])


def _performance(result: Result, found: Performance) -> list[str]:
    lines = []
    if result.scenario == "Offline":
        lines.append(f"Samples per second: {found.samples_per_second:.2f}")
    elif result.scenario == "Server":
        lines.append(f"Completed samples per second    : {found.samples_per_second:.2f}")
        lines.append(f"Scheduled samples per second    : {found.scheduled_samples_per_second:.2f}")
    else:
        percentile = "90.00" if result.scenario == "SingleStream" else "99.00"
        lines.append(f"{percentile[:4]}th percentile latency (ns) : {found.latency_ns[percentile]}")
    lines.append(f"Result is : {'VALID' if found.valid else 'INVALID'}")
    lines += [f"  {name} satisfied : {'Yes' if met else 'NO'}" for name, met in found.checks.items()]
    lines += [f"  * {reason}" for reason in (*found.reasons, *found.early_stopping)]
    if result.official_length:
        lines.append(f"Run length: official, at least {result.duration_seconds:.0f} s")
    else:
        lines.append(
            f"Run length: short, at least {result.duration_seconds:g} s instead of {OFFICIAL_SECONDS:.0f} s, without"
            " the official minimum of queries; not for a submission (--duration 600 is)"
        )
    lines += [_RULE, "Additional Stats", _RULE]
    lines.append(f"Queries                         : {found.queries}")
    for name, key in (("Min", "min"), ("Max", "max"), ("Mean", "mean")):
        lines.append(f"{f'{name} latency (ns)':<32}: {found.latency_ns[key]}")
    for name in PERCENTILES:
        lines.append(f"{f'{name} percentile latency (ns)':<32}: {found.latency_ns[name]}")
    if found.target_latency_ns is not None:
        lines.append(f"{'Bound of the 99.00 percentile':<32}: {found.target_latency_ns}")
    return lines
