"""A result for people: text in the form of LoadGen's own summary, and pictures as SVG beside its logs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.display import panels, save_svg
from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf.logs import PERCENTILES, Performance
from bertjax.mlperf.peak import Probe
from bertjax.mlperf.result import SUMMARY, Result, write_summary
from bertjax.mlperf.timeline import Timing

if TYPE_CHECKING:
    from bertjax.display import Axes

LATENCY = "latency.svg"
PEAK = "peak.svg"
_BLUE, _GREY, _RED = "#2f6f8f", "#8a94a0", "#b5483a"
_STEPS = 200  # of a line over the run's time

_RULE = "=" * 48


def format_result(result: Result) -> str:
    """The text that a person reads after a session."""
    lines = [
        _RULE,
        "MLPerf Results Summary",
        _RULE,
        f"Model    : {result.model}{f' of run {result.run}' if result.run else ''}, {_digest(result.model_digest)}",
        f"Data     : {result.data}, {_digest(result.data_digest)}",
        f"Samples  : {result.windows} windows of {result.questions} questions",
        f"Versions : {', '.join(f'{name} {version}' for name, version in result.versions.items())}",
        f"Backend  : {result.description}",
        f"Layout   : {result.layout}",
        f"Scenario : {result.scenario}",
        f"Mode     : {result.mode}",
    ]
    if result.audit_conf is not None:
        lines.append(f"Audit    : {result.audit_conf}, stronger than all other settings")
    lines += [f"Note     : {note}" for note in result.notes]
    lines += non_finite_lines(result)
    if result.performance is not None:
        lines += _performance(result, result.performance)
    if result.accuracy is not None:
        lines += [f"Exact match : {result.accuracy.exact_match:.3f}", f"F1          : {result.accuracy.f1:.3f}"]
    lines.append(f"Logs     : {result.log_dir}")
    for title, name in (("Summary", SUMMARY), ("Picture", LATENCY)):
        if (result.log_dir / name).exists():
            lines.append(f"{title:<9}: {result.log_dir / name}")
    lines += [f"Not kept : {what}" for what in result.not_kept]
    return "\n".join(lines)


def non_finite_lines(result: Result) -> list[str]:
    """A warning if logits of the session were NaN or infinite, else nothing."""
    if not result.non_finite:
        return []
    return [f"Warning  : {result.non_finite} answers hold NaN or infinite logits: do not trust figures of this model"]


def keep_result(result: Result, timing: Timing | None) -> Result:
    """Write the session's summary, and draw the session if there is something to draw.

    The result of a run is worth more than files about it: one that cannot be made fails nothing. The summary comes
    first, while there is room on the disk, and again if it has to tell of the picture.

    Returns:
      The result with what could not be kept, in `not_kept`.
    """
    with contextlib.suppress(OSError):  # of an earlier session in this folder
        for name in (SUMMARY, LATENCY):
            (result.log_dir / name).unlink(missing_ok=True)
    try:
        write_summary(result, timing)
    except (UserError, WorkFailed) as error:
        result = _without(result, f"the summary: {error}")
    if timing is None:
        return result
    try:
        draw_run(result, timing)
        return result
    except (UserError, WorkFailed) as error:
        result = _without(result, f"the picture: {error}")
    except Exception as error:  # whatever a drawing library meets
        result = _without(result, f"the picture: {type(error).__name__}: {error}")
    with contextlib.suppress(UserError, WorkFailed):  # the first one stays where there is no room for this one
        write_summary(result, timing)
    return result


def _without(result: Result, what: str) -> Result:
    return dataclasses.replace(result, not_kept=(*result.not_kept, what))


def _digest(digest: str) -> str:
    return f"sha256 {digest[:16]}"


def _performance(result: Result, found: Performance) -> list[str]:
    lines = []
    if result.mode == "FindPeakPerformance":
        rate = "none: even the first rate is too high" if result.target_qps is None else f"{result.target_qps:.2f}"
        lines.append(f"Highest rate that LoadGen found : {rate}")
    if result.scenario == "Offline":
        lines.append(f"Samples per second: {found.samples_per_second:.2f}")
    elif result.scenario == "Server":
        lines.append(f"Completed samples per second    : {found.samples_per_second:.2f}")
        lines.append(f"Scheduled samples per second    : {found.scheduled_samples_per_second:.2f}")
    else:
        latency = found.latency_ns.get(f"{result.percentile:.2f}", "in mlperf_log_summary.txt")
        lines.append(f"{result.percentile:.1f}th percentile latency (ns) : {latency}")
    lines.append(f"Result is : {'VALID' if found.valid else 'INVALID'}")
    lines += [f"  {name} satisfied : {'Yes' if met else 'NO'}" for name, met in found.checks.items()]
    lines += [f"  * {reason}" for reason in (*found.reasons, *found.early_stopping)]
    if result.official_length:
        lines.append(f"Run length: official, at least {result.duration_seconds:g} s")
    else:
        lines.append(f"Run length: short, {', '.join(result.shortfalls)}; not for a submission (--duration 600 is)")
    lines += [f"Not as in mlperf.conf: {departure}" for departure in result.departures]
    lines += [_RULE, "Additional Stats", _RULE]
    lines.append(f"Queries                         : {found.queries}")
    for name, key in (("Min", "min"), ("Max", "max"), ("Mean", "mean")):
        lines.append(f"{f'{name} latency (ns)':<32}: {found.latency_ns[key]}")
    for name in PERCENTILES:
        lines.append(f"{f'{name} percentile latency (ns)':<32}: {found.latency_ns[name]}")
    if found.target_latency_ns is not None:
        lines.append(f"{f'Bound of the {result.percentile:.2f} percentile':<32}: {found.target_latency_ns}")
    return lines


PROBE_HEADER = f"{'run':<8}{'queries/s':>12}{'of Offline':>12}{'p99, ms':>12}  LoadGen"


def format_probe(probe: Probe, offline: float) -> str:
    """A line under PROBE_HEADER; `offline`: samples per second of the Offline run."""
    kind, verdict = "full" if probe.confirming else "short", "VALID" if probe.valid else "INVALID"
    return f"{kind:<8}{probe.rate:>12.2f}{probe.rate / offline:>12.1%}{1e3 * probe.p99_seconds:>12.1f}  {verdict}"


def draw_run(result: Result, timing: Timing) -> Path:
    """Draw the spread of latencies and the course of the run; returns the file, beside LoadGen's logs.

    Offline has one query, whose latency is the whole run, so only its rate over time is drawn.

    Raises:
      UserError, WorkFailed: the file cannot be written.
    """
    found = result.measured
    note = " (long windows first)" if result.scenario == "Offline" else ""
    draw = [lambda axis: _rate(axis, timing, note)]
    if result.scenario != "Offline":
        draw.insert(0, lambda axis: _spread(axis, timing, found, result.scenario))
    if result.scenario == "Server":
        draw.append(lambda axis: _inside(axis, timing))
    figure, axes = panels(len(draw), width=0.8 + 4.0 * max(len(draw), 1.6), height=3.8)
    for axis, one in zip(axes, draw, strict=True):
        one(axis)
    verdict = "VALID" if found.valid else "INVALID"
    figure.suptitle(f"{result.model}, {result.scenario}, {verdict}\n{result.description}", fontsize=9)
    return save_svg(figure, result.log_dir / LATENCY)


def draw_peak(folder: Path, probes: Sequence[Probe], bound_seconds: float, offline: float) -> Path:
    """Draw the p99 of Server runs against their rate; returns the file.

    Raises:
      UserError, WorkFailed: the file cannot be written.
    """
    figure, (axis,) = panels(1, width=7.2, height=3.8)
    for confirming, marker in ((False, "o"), (True, "D")):
        for valid, colour in ((True, _BLUE), (False, _RED)):
            chosen = [probe for probe in probes if (probe.valid, probe.confirming) == (valid, confirming)]
            if chosen:
                label = f"{'full run' if confirming else 'short run'}, {'VALID' if valid else 'INVALID'}"
                xs, ys = [probe.rate for probe in chosen], [1e3 * probe.p99_seconds for probe in chosen]
                axis.scatter(xs, ys, color=colour, marker=marker, s=50 if confirming else 24, label=label, zorder=3)
    ordered = sorted(probes, key=lambda probe: probe.rate)
    axis.plot([p.rate for p in ordered], [1e3 * p.p99_seconds for p in ordered], color=_GREY, linewidth=0.8)
    axis.axhline(1e3 * bound_seconds, color=_RED, linewidth=1, linestyle="--")
    _note(axis, f"bound {1e3 * bound_seconds:.0f} ms", (0.01, 1e3 * bound_seconds), ("axes fraction", "data"), _RED)
    axis.axvline(offline, color=_GREY, linewidth=1, linestyle=":")
    _note(axis, "Offline ", (offline, 0.02), ("data", "axes fraction"), _GREY, ha="right")
    axis.set_yscale("log")
    for axis_part in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
        axis_part(lambda value, _: f"{value:g}")
    axis.set_xlabel("queries/s issued")
    axis.set_title("99th percentile latency, ms", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    return save_svg(figure, Path(folder) / PEAK)


def _spread(axis: Axes, timing: Timing, found: Performance, scenario: str) -> None:
    shares = np.concatenate([np.linspace(0, 99, 300), np.linspace(99, 100, 100)])
    axis.plot(1e3 * np.percentile(timing.latencies, shares), shares, color=_BLUE)
    for name in ("90.00", "99.00"):
        value = found.latency_ns[name] / 1e6
        axis.plot([value], [float(name)], "o", color=_BLUE, markersize=4)
        axis.annotate(
            f"p{name[:2]} {value:.3g} ms", (value, float(name)), (6, -9), textcoords="offset points", fontsize=8
        )
    if found.target_latency_ns is not None:
        bound = found.target_latency_ns / 1e6
        axis.axvline(bound, color=_RED, linewidth=1, linestyle="--")
        _note(axis, f"bound, {bound:g} ms", (bound, 2), "data", _RED, rotation=90, ha="right")
    axis.set_ylim(0, 101)
    axis.set_xlim(left=0)
    axis.set_xlabel("latency, ms")
    axis.set_title("queries answered within, percent", fontsize=10)


def _rate(axis: Axes, timing: Timing, note: str) -> None:
    times, rates = timing.samples_per_second(min(_STEPS, max(2, len(timing.answered) // 50)))
    axis.fill_between(times, rates, step="mid", color=_BLUE, alpha=0.15, linewidth=0)
    axis.step(times, rates, where="mid", color=_BLUE, linewidth=1)
    mean = len(timing.answered) / timing.answered[-1]
    axis.axhline(mean, color=_GREY, linewidth=1, linestyle="--")
    _note(axis, f"mean {mean:.4g}", (1, mean), ("axes fraction", "data"), _GREY, ha="right")
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
    axis.set_xlabel("seconds into the run")
    axis.set_title(f"samples answered per second{note}", fontsize=10)


def _inside(axis: Axes, timing: Timing) -> None:
    times, counts = timing.samples_inside(10 * _STEPS)
    axis.plot(times, counts, color=_BLUE, linewidth=0.6)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("seconds into the run")
    axis.set_title("queries waiting or running", fontsize=10)


def _note(axis: Axes, text: str, at: tuple[float, float], coordinates: Any, colour: str, **rest: Any) -> None:
    """Write beside a line."""
    axis.annotate(text, at, (0, 3), xycoords=coordinates, textcoords="offset points", fontsize=8, color=colour, **rest)
