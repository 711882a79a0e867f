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
    cells = [[*header[column].split(), *(row[column] for row in rows)] for column in range(len(header))]
    words = [max(map(len, column), default=0) for column in cells]
    while width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        # Headings are broken between words before cells are.
        columns = [column for column, least in enumerate(words) if widths[column] > least] or range(len(widths))
        widths[max(columns, key=widths.__getitem__)] -= 1

    def lines(cells: Sequence[str]) -> list[str]:
        pairs = zip(cells, widths, strict=True)
        broken = [textwrap.wrap(cell, size) if len(cell) > size else [cell] for cell, size in pairs]
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


def panels(count: int, *, width: float, height: float, share_y: bool = False) -> tuple[Any, Sequence[Axes]]:
    """A figure of `width` x `height` inches, and its axes side by side."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(width, height), sharey=share_y, squeeze=False)
    for axis in axes[0]:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def use_log_x(axis: Axes) -> None:
    """Make the x axis logarithmic, with ticks that fit less than a decade, labelled with SI prefixes: 1.5M."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.xaxis.set_minor_formatter(NullFormatter())


def to_svg(figure: Any, *, top: float = 1.0) -> str:
    """The figure as an SVG file's text; it is closed.

    Args:
      top: share of its height that the axes fill; a legend of the whole figure stands above.
    """
    from matplotlib import pyplot

    figure.tight_layout(rect=(0, 0, 1, top))
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    pyplot.close(figure)
    return buffer.getvalue()


def save_svg(figure: Any, path: Path, *, top: float = 1.0) -> Path:
    """Write the figure, as `to_svg` gives it; returns `path`.

    Raises:
      UserError: the place cannot be written.
      WorkFailed: the disk is full.
    """
    write_file_aside(path, to_svg(figure, top=top))
    return path
