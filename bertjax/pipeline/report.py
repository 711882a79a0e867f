"""The figures of a run, as tables for the terminal and as one page with pictures."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from bertjax.display import count, panels, text_table, to_svg
from bertjax.files import write_file_aside
from bertjax.rundir import STUDENT, made_stages, read_metrics, read_settings

_STAGES = {
    "teacher": "teacher",
    "pruned": "pruned, untrained",
    "distilled": "distilled",
    "ptq": "INT8, calibrated",
    "int8": "INT8, trained",
}
_STAGE_HEADER = ["model", "exact match", "F1", "of teacher", "parameters", "MACs", "fewer", "file", "time"]
_LOADGEN_HEADER = ["model", "backend", "Offline", "Server", "SingleStream p90", "valid"]


def stage_table(run: Path) -> str:
    """One row per stage, and one for the exported graph where LoadGen has scored it."""
    return text_table(_STAGE_HEADER, _stage_rows(run, read_metrics(run)))


def loadgen_table(run: Path) -> str:
    """Throughput and latency of each model that was served, and the ratio of student to teacher."""
    return text_table(_LOADGEN_HEADER, _loadgen_rows(read_metrics(run)))


def _stage_rows(run: Path, metrics: dict[str, Any]) -> list[list[str]]:
    stages = metrics.get("stages", {})
    teacher = stages.get("teacher", {})
    rows = [_stage_row(_STAGES[name], figures, teacher) for name, figures in _own_stages(run, metrics).items()]
    served = metrics.get("loadgen", {}).get(STUDENT, {})
    for entry in (scenario["accuracy"] for scenario in served.values() if "accuracy" in scenario):
        figures = stages["int8"] | {"exact_match": entry["exact_match"], "f1": entry["f1"]}
        graph = Path(run) / STUDENT / "model.cpu.onnx"
        figures |= {"bytes": graph.stat().st_size if graph.exists() else None, "seconds": None}
        rows.append(_stage_row(f"INT8, {entry['backend']} under LoadGen", figures, teacher))
    return rows


def _own_stages(run: Path, metrics: dict[str, Any]) -> dict[str, Any]:
    """The figures of the stages that the run made, in their order."""
    made = made_stages(metrics, read_settings(run))
    return {name: made[name] for name in _STAGES if name in made}


def _stage_row(label: str, figures: dict[str, Any], teacher: dict[str, Any]) -> list[str]:
    def cell(key: str, form: str) -> str:
        return form.format(figures[key]) if figures.get(key) is not None else "-"

    share = f"{100 * figures['f1'] / teacher['f1']:.1f} %" if figures.get("f1") and teacher.get("f1") else "-"
    fewer = f"{teacher['macs'] / figures['macs']:.2f}x" if figures.get("macs") and teacher.get("macs") else "-"
    size = f"{figures['bytes'] / 1e6:.1f} MB" if figures.get("bytes") else "-"
    parameters, macs = (count(figures[key]) if key in figures else "-" for key in ("parameters", "macs"))
    time = cell("seconds", "{:.0f} s")
    return [label, cell("exact_match", "{:.2f}"), cell("f1", "{:.2f}"), share, parameters, macs, fewer, size, time]


def _loadgen_rows(metrics: dict[str, Any]) -> list[list[str]]:
    served = metrics.get("loadgen", {})
    rows = []
    for model, scenarios in sorted(served.items(), key=lambda item: item[0] == STUDENT):  # the student last
        found = {name: entry["performance"] for name, entry in scenarios.items() if "performance" in entry}
        if not found:
            continue
        offline, server, single = (found.get(name) for name in ("Offline", "Server", "SingleStream"))
        rows.append(
            [
                model,
                next(iter(found.values()))["backend"],
                f"{offline['samples_per_second']:.1f}/s" if offline else "-",
                f"{server['samples_per_second']:.1f}/s" if server else "-",
                f"{single['latency_ns']['90.00'] / 1e6:.2f} ms" if single else "-",
                "yes" if all(entry["valid"] for entry in found.values()) else "no",
            ]
        )
    ratios = _ratios(served)
    if ratios:
        rows.append(["student against teacher", "", *[f"{r:.2f}x" if r else "-" for r in ratios], ""])
    return rows


def _ratios(served: dict[str, Any]) -> list[float | None]:
    """The student's speed relative to the teacher's: Offline, Server, SingleStream; empty unless both were served."""
    if "teacher" not in served or STUDENT not in served:
        return []

    def figure(model: str, scenario: str) -> float | None:
        found = served[model].get(scenario, {}).get("performance")
        if found is None:
            return None
        return 1e9 / found["latency_ns"]["90.00"] if scenario == "SingleStream" else found["samples_per_second"]

    pairs = [(figure(STUDENT, name), figure("teacher", name)) for name in ("Offline", "Server", "SingleStream")]
    return [own / other if own and other else None for own, other in pairs]


def write_report(run: Path) -> Path:
    """Write `report.html`, one page that needs no other file, and its first picture apart as `stages.svg`.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    run = Path(run)
    metrics = read_metrics(run)
    parts = [_html_table(_STAGE_HEADER, _stage_rows(run, metrics))]
    picture = _stage_picture(_own_stages(run, metrics))
    if picture:
        write_file_aside(run / "stages.svg", picture)
        parts.append(_inline(picture))
    if metrics.get("loadgen"):
        parts += ["<h2>Under LoadGen</h2>", _html_table(_LOADGEN_HEADER, _loadgen_rows(metrics))]
    kept = run / "pruning.svg"
    if kept.exists():
        parts += ["<h2>What pruning kept</h2>", _inline(kept.read_text())]
    about = {"command": metrics.get("command"), "seed": metrics.get("seed")}
    about |= {f"data: {key}": value for key, value in metrics.get("data", {}).items()}
    about |= {key: value for key, value in metrics.get("machine", {}).items() if key != "memory_bytes"}
    about |= metrics.get("versions", {})
    parts += ["<h2>How it was made</h2>", _html_table(["", ""], [[key, str(value)] for key, value in about.items()])]
    target = run / "report.html"
    write_file_aside(target, _PAGE.format(title=html.escape(run.name), body="\n".join(parts)))
    return target


def _html_table(header: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{line(header, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def _stage_picture(stages: dict[str, Any]) -> str:
    """F1 of every stage beside its multiply-accumulates, as SVG; "" while no stage has been scored."""
    stages = {name: figures for name, figures in stages.items() if "f1" in figures}
    if not stages:
        return ""
    labels = [_STAGES[name] for name in stages]
    figure, axes = panels(2, width=9, height=0.9 + 0.38 * len(stages), share_y=True)
    columns = (("f1", "F1, percent", 1.0, "{:.1f}"), ("macs", "million MACs per sequence", 1e-6, "{:.0f}"))
    for axis, (key, title, factor, form) in zip(axes, columns, strict=True):
        values = [figures[key] * factor for figures in stages.values()]
        colours = ["#8a94a0" if name == "teacher" else "#2f6f8f" for name in stages]
        axis.bar_label(axis.barh(labels, values, color=colours), [form.format(value) for value in values], padding=3)
        axis.set_title(title, fontsize=10)
        axis.margins(x=0.15)
    axes[0].invert_yaxis()
    return to_svg(figure)


def _inline(svg: str) -> str:
    """An SVG file's content without the XML declaration, which HTML has no place for."""
    return svg[svg.index("<svg") :]


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>bertjax: {title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #ddd; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
svg {{ max-width: 100%; height: auto; }}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""
