"""Pictures of runs under LoadGen, as SVG beside its logs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax.mlperf.harness import Result
from bertjax.mlperf.peak import Probe
from bertjax.mlperf.results import Performance
from bertjax.mlperf.timeline import Timing
from bertjax.modeldir import write_file_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LATENCY = "latency.svg"
PEAK = "peak.svg"
_BLUE, _GREY, _RED = "#2f6f8f", "#8a94a0", "#b5483a"
_STEPS = 200  # of a line over the run's time


def draw_run(result: Result, timing: Timing) -> Path:
    """Draw how latencies are spread, and how the run went over its time; returns the file, beside LoadGen's logs.

    Offline has one query, whose latency is the run: of it the rate over time is drawn.

    Raises:
      UserError, WorkFailed: the file cannot be written.
    """
    found = result.performance
    note = " (long windows first)" if result.scenario == "Offline" else ""
    draw = [lambda axis: _rate(axis, timing, note)]
    if result.scenario != "Offline":
        draw.insert(0, lambda axis: _spread(axis, timing, found, result.scenario))
    if result.scenario == "Server":
        draw.append(lambda axis: _inside(axis, timing))
    figure, axes = _panels(len(draw))
    for axis, one in zip(axes, draw, strict=True):
        one(axis)
    verdict = "VALID" if found.valid else "INVALID"
    figure.suptitle(f"{result.model}, {result.scenario}, {verdict}\n{result.description}", fontsize=9)
    return _save(figure, result.log_dir / LATENCY)


def draw_peak(folder: Path, probes: Sequence[Probe], bound_seconds: float, offline: float) -> Path:
    """Draw the p99 of Server runs against their rate; errors as `draw_run`."""
    figure, (axis,) = _panels(1)
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
    return _save(figure, Path(folder) / PEAK)


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
        _note(axis, f"bound of p99, {bound:.0f} ms", (bound, 2), "data", _RED, rotation=90, ha="right")
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


def _panels(count: int) -> tuple[Any, Sequence[Axes]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(0.8 + 4.0 * max(count, 1.6), 3.8), squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    write_file_aside(path, buffer.getvalue())
    return path
