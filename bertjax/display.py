"""Tables for a terminal, and pictures as SVG."""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertjax.files import write_file_aside

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None) -> str:
    """Columns padded to their widest cell; the first is flush left, the others flush right.

    Args:
      width: most characters of a line; cells of the widest columns are broken over several lines until they fit.
    """
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    room = sum(widths) if width is None else width - 2 * (len(widths) - 1)
    if sum(widths) > room:  # headings are broken first
        widths = [
            max(map(len, [*header[column].split(), *(row[column] for row in rows)])) for column in range(len(header))
        ]
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1

    def lines(cells: Sequence[str]) -> list[str]:
        broken = [textwrap.wrap(cell, size) for cell, size in zip(cells, widths, strict=True)]
        found = []
        for parts in itertools.zip_longest(*broken, fillvalue=""):
            padded = [
                part.ljust(size) if index == 0 else part.rjust(size)
                for index, (part, size) in enumerate(zip(parts, widths, strict=True))
            ]
            found.append("  ".join(padded).rstrip())
        return found

    ruler = ["-" * size for size in widths]
    return "\n".join(line for cells in (header, ruler, *rows) for line in lines(cells))


def count(number: float) -> str:
    """A large number for people: 22.7M, 1.4G."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return f"{number:.0f}"


def panels(count: int) -> tuple[Any, Sequence[Axes]]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(0.8 + 4.0 * max(count, 1.6), 3.8), squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def save_svg(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot

    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    write_file_aside(path, buffer.getvalue())
    return path
