"""The figures of a sweep, as a table for the terminal and as one picture to choose a student by."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.display import count, panels, save_svg, text_table, use_log_x

if TYPE_CHECKING:
    from bertjax.display import Axes


GATE = 0.99  # of the teacher's F1, MLPerf's default
_GOALS = {  # colour, label, and how far above its point a student's name stands
    "flops": ("#2f6f8f", "INT8 student, pruned for MACs", 9),
    "latency": ("#c8643c", "INT8 student, pruned for measured time", -18),
}
_GREY = "#6b7580"


def read_sweep(folder: Path) -> dict[str, Any]:
    """`sweep.json`, empty if there is none yet."""
    path = Path(folder) / "sweep.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def sweep_table(folder: Path) -> str:
    """The teacher and one row per student, smallest reduction first."""
    sweep = read_sweep(folder)
    header = ["model", "MACs", "fewer", "parameters", "F1", "of teacher", f"{GATE:.0%} gate", "samples/s", "faster"]
    teacher = sweep["teacher"]
    rows = [_row("teacher", teacher, teacher, sweep)]
    for student in sweep["students"]:
        rows.append(_row(student["name"], student["stages"]["int8"], teacher, sweep))
    return text_table(header, rows)


def _row(name: str, figures: dict[str, Any], teacher: dict[str, Any], sweep: dict[str, Any]) -> list[str]:
    share = figures["f1"] / teacher["f1"] if teacher["f1"] else 0.0
    rate, faster = (sweep["speed"].get(key, {}).get(name) for key in ("samples_per_second", "speedup"))
    return [
        name,
        count(figures["macs"]),
        f"{teacher['macs'] / figures['macs']:.2f}x",
        count(figures["parameters"]),
        f"{figures['f1']:.2f}",
        f"{100 * share:.1f} %",
        "" if name == "teacher" else "yes" if share >= GATE else "no",
        f"{rate:.1f}" if rate else "-",
        f"{faster:.2f}x" if faster else "-",
    ]


def advice(folder: Path) -> str:
    """One line: the fastest student that keeps to the gate, or the nearest to it."""
    sweep = read_sweep(folder)
    least, rates = GATE * sweep["teacher"]["f1"], sweep["speed"]["samples_per_second"]
    passing = [student for student in sweep["students"] if student["stages"]["int8"]["f1"] >= least]
    if passing:
        best = max(passing, key=lambda student: rates[student["name"]])
        what = f"fastest with {GATE:.0%} of the teacher's F1"
    else:
        best = max(sweep["students"], key=lambda student: student["stages"]["int8"]["f1"])
        what = f"none keeps {GATE:.0%} of the teacher's F1; nearest"
    faster = sweep["speed"]["speedup"][best["name"]]
    model = Path(folder) / best["directory"]
    return f"{what}: {best['name']}, {faster:.2f}x the teacher's speed: python serve/loadgen.py --model {model}"


def draw(folder: Path) -> None:
    """Write `sweep.svg`: F1 against multiply-accumulates and, where measured, against samples per second."""
    sweep = read_sweep(folder)
    rates = sweep["speed"].get("samples_per_second", {})
    macs = {one["name"]: one["stages"]["int8"]["macs"] for one in sweep["students"]}
    macs["teacher"] = sweep["teacher"]["macs"]
    columns = [(macs, f"multiply-accumulates per sequence of {sweep['data']['max_seq']} tokens", True)]
    if rates:
        columns.append((rates, f"samples/s, Offline, {sweep['machine']['cores']} cores", False))
    figure, axes = panels(len(columns), width=0.8 + 4.8 * len(columns), height=4.6, share_y=True)
    for axis, (xs, title, fewer_is_better) in zip(axes, columns, strict=True):
        _panel(axis, sweep, xs, fewer_is_better=fewer_is_better)
        axis.set_xlabel(title)
    axes[0].set_ylabel("F1")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False, fontsize=9)
    save_svg(figure, Path(folder) / "sweep.svg", top=0.94)


def _panel(axis: Axes, sweep: dict[str, Any], xs: dict[str, float], *, fewer_is_better: bool) -> None:
    legible: dict[str, Any] = {"bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.7}}
    legible |= {"textcoords": "offset points"}
    teacher = sweep["teacher"]["f1"]
    axis.axhline(GATE * teacher, color=_GREY, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    end, side = (0.01, "left") if fewer_is_better else (0.99, "right")  # where students are too bad to be in the way
    where: dict[str, Any] = {
        "xycoords": axis.get_yaxis_transform(),
        "ha": side,
        "va": "top",
        "fontsize": 8,
        "color": _GREY,
    }
    axis.annotate("99 % of the teacher", (end, GATE * teacher), (0, -3), **where, **legible)
    axis.plot(xs["teacher"], teacher, "D", color=_GREY, markersize=8, label="teacher, FP32")
    axis.annotate("teacher", (xs["teacher"], teacher), (0, 9), ha="center", color=_GREY, **legible)
    for goal, (colour, label, above) in _GOALS.items():
        students = [one for one in sweep["students"] if one["goal"] == goal]
        points = [(xs[one["name"]], one["stages"]["int8"]["f1"]) for one in students]
        best = front(points, fewer_is_better=fewer_is_better)
        axis.plot([x for x, _ in best], [y for _, y in best], color=colour, linewidth=1.8, alpha=0.45)
        if points:
            axis.plot([], [], "o", color=colour, markersize=8, label=label)
        for point, one in zip(points, students, strict=True):
            face = colour if point in best else "white"
            axis.plot(*point, "o", color=colour, markerfacecolor=face, markersize=8, zorder=4)
            axis.annotate(f"{one['reduction']:g}x", point, (0, above), ha="center", color=colour, **legible)
    axis.plot([], [], "o", color=_GREY, markerfacecolor="white", markersize=8, label="beaten by one of its colour")
    use_log_x(axis)
    axis.margins(0.12)
    axis.set_ylim(bottom=min(axis.get_ylim()[0], 0.985 * teacher))  # or noise fills the picture
    axis.grid(axis="y", color="#eceff2")
    axis.set_axisbelow(True)


def front(points: Sequence[tuple[float, float]], *, fewer_is_better: bool) -> list[tuple[float, float]]:
    """The points that no other one beats in both, in order of x."""
    best_first = sorted(points, key=lambda point: (point[0] if fewer_is_better else -point[0], -point[1]))
    front: list[tuple[float, float]] = []
    for x, y in best_first:
        if not front or y > front[-1][1]:
            front.append((x, y))
    return sorted(front)
