"""A run's result as text, in the form of LoadGen's own summary."""

from __future__ import annotations

from bertjax.mlperf.harness import OFFICIAL_SECONDS, Result
from bertjax.mlperf.peak import Probe
from bertjax.mlperf.pictures import LATENCY
from bertjax.mlperf.results import PERCENTILES, Performance
from bertjax.mlperf.summary import SUMMARY

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
    if result.audit_conf is not None:
        lines.append(f"Audit    : {result.audit_conf}, stronger than all other settings")
    if result.performance is not None:
        lines += _performance(result, result.performance)
    if result.accuracy is not None:
        lines += [f"Exact match : {result.accuracy.exact_match:.3f}", f"F1          : {result.accuracy.f1:.3f}"]
    lines += [f"Logs     : {result.log_dir}", f"Summary  : {result.log_dir / SUMMARY}"]
    if (result.log_dir / LATENCY).exists():
        lines.append(f"Picture  : {result.log_dir / LATENCY}")
    return "\n".join(lines)


def _performance(result: Result, found: Performance) -> list[str]:
    lines = []
    if result.mode == "FindPeakPerformance":
        rate = "none: already the first rate is too high" if result.target_qps is None else f"{result.target_qps:.2f}"
        lines.append(f"Highest rate that LoadGen found : {rate}")
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


PROBE_HEADER = f"{'run':<8}{'queries/s':>12}{'of Offline':>12}{'p99, ms':>12}  LoadGen"


def format_probe(probe: Probe, offline: float) -> str:
    """A line under PROBE_HEADER; `offline`: samples per second of the Offline run."""
    kind, verdict = "full" if probe.confirming else "short", "VALID" if probe.valid else "INVALID"
    return f"{kind:<8}{probe.rate:>12.2f}{probe.rate / offline:>12.1%}{1e3 * probe.p99_seconds:>12.1f}  {verdict}"
