"""Latency tables: an engine's time for an attention block by its heads and for an FFN block by its width.

`train/latency_table.py` makes a table from whole small models (`probe_shapes`) that an engine has run, so that the
engine's fusions are in it. It assumes that the times of blocks add up; the table's `checks` show how well they do.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bertjax.errors import UserError
from bertjax.files import write_file_aside
from bertjax.modeldir.config import BertConfig, LayerShape, Quantization
from bertjax.pruning.costs import Costs, largest_blocks

LAYERS = 4  # of a probe: enough for blocks to outweigh everything else
PROBE_VOCABULARY = 1000  # the lookup of a row takes about the same time whatever the vocabulary's size


@dataclasses.dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """Measured seconds of a batch; `attention` and `ffn` are in order of size and begin with a gone block, 0."""

    about: dict[str, Any]  # backend, quantize_also, clock, batch, seq, streams, threads, versions, ...
    hidden_size: int
    head_size: int
    rest: float  # embeddings and span head
    attention: tuple[tuple[int, float], ...]  # (heads, seconds), LayerNorm included
    ffn: tuple[tuple[int, float], ...]  # (units, seconds), LayerNorm included
    checks: tuple[dict[str, Any], ...] = ()  # whole models: heads, ffn, predicted and measured seconds

    def costs(self, teacher: BertConfig, name: str) -> Costs:
        """Costs in seconds for a teacher's layers, of every width.

        They may fall where blocks grow: an engine can take longer for 544 units than for 576. The search then keeps
        the 576.

        Args:
          name: the table's name in an error.

        Raises:
          UserError: the table is of another model.
        """
        heads, units = largest_blocks(teacher)
        timed = f"hidden size {self.hidden_size}, heads of {self.head_size}, {self.attention[-1][0]} heads"
        timed += f" and {self.ffn[-1][0]} FFN units at most"
        same = (self.hidden_size, self.head_size) == (teacher.hidden_size, teacher.head_size)
        if not same or self.attention[-1][0] < heads or self.ffn[-1][0] < units:
            raise UserError(f"{name}: was timed for {timed}, which is not this teacher; time this teacher")
        return Costs(
            goal="latency",
            rest=self.rest,
            attention=_every_size(self.attention, heads),
            ffn=_every_size(self.ffn, units),
        )


def _every_size(points: tuple[tuple[int, float], ...], largest: int) -> np.ndarray:
    sizes, seconds = np.array(points).T
    return np.interp(np.arange(largest + 1), sizes, seconds)


def probe_shapes(config: BertConfig, quantization: Quantization, *, group: int, widths: int) -> list[BertConfig]:
    """The models to time for `table_from`: without layers, with empty layers, then of single kinds of blocks.

    Args:
      group: FFN widths are multiples of it.
      widths: number of FFN widths to time, evenly spread, beside the full one.
    """
    heads, units = largest_blocks(config)
    groups = np.unique(np.linspace(1, units // group, min(widths, units // group)).round().astype(int))
    attention = [(count, 0) for count in range(1, heads + 1)]
    ffn = [(0, width) for width in sorted({*(groups * group).tolist(), units})]
    kinds = [[], *([kind] * LAYERS for kind in [(0, 0), *attention, *ffn])]
    return [probe(config, quantization, kind) for kind in kinds]


def check_shapes(config: BertConfig, quantization: Quantization, *, group: int) -> list[BertConfig]:
    """Whole models to compare predictions with: the dense one, one halved evenly, and two of mixed layers."""
    layers = [(layer.heads, layer.ffn) for layer in config.layers]
    random = np.random.default_rng(0)

    def cut(shares: np.ndarray) -> list[tuple[int, int]]:
        pairs = zip(layers, shares, strict=True)
        return [(round(heads * a), round(ffn * b / group) * group) for (heads, ffn), (a, b) in pairs]

    shapes = [layers, cut(np.full((len(layers), 2), 0.5))]
    shapes += [cut(random.uniform(0.0, high, (len(layers), 2))) for high in (1.0, 0.5)]
    return [probe(config, quantization, shape) for shape in shapes]


def probe(config: BertConfig, quantization: Quantization, layers: Sequence[tuple[int, int]]) -> BertConfig:
    """A model like `config` with these (heads, units) and a small vocabulary."""
    return dataclasses.replace(
        config,
        vocab_size=min(config.vocab_size, PROBE_VOCABULARY),
        layers=tuple(LayerShape(heads=heads, ffn=ffn) for heads, ffn in layers),
        quantization=quantization,
    )


def table_from(probes: Sequence[BertConfig], seconds: Sequence[float], about: dict[str, Any]) -> LatencyTable:
    """The table that follows from the seconds of each of `probe_shapes`.

    A layer of a probe has the block in question and an empty one, `LayerNorm(x + bias)`; an empty layer has two.
    """
    rest, empty, *others = map(float, seconds)
    gone = max(empty - rest, 0.0) / (2 * LAYERS)
    attention, ffn = [(0, gone)], [(0, gone)]
    for config, found in zip(probes[2:], others, strict=True):
        layer = config.layers[0]
        block = max(found - empty, 0.0) / LAYERS + gone
        if layer.heads:
            attention.append((layer.heads, block))
        else:
            ffn.append((layer.ffn, block))
    return LatencyTable(
        about=about,
        hidden_size=probes[0].hidden_size,
        head_size=probes[0].head_size,
        rest=rest,
        attention=tuple(attention),
        ffn=tuple(ffn),
    )


def with_checks(table: LatencyTable, shapes: Sequence[BertConfig], seconds: Sequence[float]) -> LatencyTable:
    """The table with its predictions for whole models beside their measured seconds."""
    checks = tuple(
        {
            "heads": [layer.heads for layer in shape.layers],
            "ffn": [layer.ffn for layer in shape.layers],
            "predicted": table.costs(shape, "table").total(shape),
            "measured": float(found),
        }
        for shape, found in zip(shapes, seconds, strict=True)
    )
    return dataclasses.replace(table, checks=checks)


def write_table(path: Path, table: LatencyTable) -> None:
    """Write as JSON.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    write_file_aside(Path(path), json.dumps(dataclasses.asdict(table), indent=1) + "\n")


def read_table(path: Path) -> LatencyTable:
    """Read a table.

    Raises:
      UserError: no such file, or its content is no latency table.
    """
    mend = "make one with python train/latency_table.py"
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--latency-table {path}: {error.strerror}; {mend}") from None
    except ValueError as error:
        raise UserError(f"--latency-table {path}: not valid JSON ({error}); {mend}") from None
    names = {field.name for field in dataclasses.fields(LatencyTable)}
    if not isinstance(raw, dict) or raw.keys() != names:
        raise UserError(f"--latency-table {path}: not a latency table, which has {', '.join(sorted(names))}; {mend}")
    for name in ("attention", "ffn"):
        raw[name] = _points(raw[name], f"--latency-table {path}: {name}", mend)
    sizes = [raw["rest"], raw["hidden_size"], raw["head_size"]]
    if not all(isinstance(size, (int, float)) and size > 0 for size in sizes) or not isinstance(raw["about"], dict):
        raise UserError(f"--latency-table {path}: rest, hidden_size and head_size must be above 0; {mend}")
    return LatencyTable(**raw | {"checks": tuple(raw["checks"])})


def _points(found: Any, where: str, mend: str) -> tuple[tuple[int, float], ...]:
    try:
        points = np.array(found, np.float64).reshape(-1, 2)
    except (TypeError, ValueError):
        points = np.empty((0, 2))
    sizes = points[:, 0]
    rises = len(points) > 1 and sizes[0] == 0 and (np.diff(sizes) > 0).all()
    if not rises or not np.isfinite(points).all() or (points < 0).any():
        raise UserError(f"{where}: must be pairs of size and seconds, sizes rising from 0; {mend}")
    return tuple((int(size), float(seconds)) for size, seconds in points)
