"""Shared by all benchmarks: flags, windows, models, and the report of their figures.

A report is printed as tables and written as JSON:

    {"benchmark": "backends",
     "command": "python benchmarks/backends.py --model runs/minilm/student-int8",
     "machine": {"processor": ..., "cores": ..., "instructions": [...], "memory_bytes": ...},
     "versions": {"python": ..., "onnxruntime": ..., ...},
     "settings": {"model": ["runs/minilm/student-int8"], "windows": 128, ...},
     "rows": [{"table": "batches", "model": ..., "samples_per_second": ...}, ...]}

`settings` holds every flag, given or by default. A row names its table, and its other keys spell out their units; times
are in seconds. A value that does not apply is null.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import string
import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bertjax import machine, rundir
from bertjax.data.dataset import Dataset, load_dataset
from bertjax.data.tokenizer import load_tokenizer
from bertjax.data.windows import WindowSettings
from bertjax.display import text_table
from bertjax.engines.samples import SampleLibrary, open_library
from bertjax.engines.timing.compare import draw_windows
from bertjax.errors import UserError
from bertjax.files import write_file_aside
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig

if TYPE_CHECKING:
    from bertjax.model.bert import Model

WIDTH = 80  # characters of a printed line

Row = dict[str, Any]
Cell = str | Callable[[Row], str]  # a format string of a row's keys, or a function of the row


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of figures, and the columns in which they are printed.

    Attributes:
      columns: what each column shows, by its heading; "-" where a key of its format string is None.
      note: text printed above the table.
    """

    name: str
    columns: Mapping[str, Cell]
    rows: list[Row]
    note: str = ""

    def __str__(self) -> str:
        cells = [[_text(cell, row) for cell in self.columns.values()] for row in self.rows]
        table = text_table(list(self.columns), cells, width=WIDTH)
        return f"{textwrap.fill(self.note, WIDTH)}\n\n{table}" if self.note else table


def _text(cell: Cell, row: Row) -> str:
    if callable(cell):
        return cell(row)
    keys = [name for _, name, _, _ in string.Formatter().parse(cell) if name]
    return "-" if any(row[key] is None for key in keys) else cell.format_map(row)


def flags(name: str, description: str) -> argparse.ArgumentParser:
    """A parser for the benchmark `name`, with the flags that all have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(benchmark=name)
    place = Path("build/benchmarks") / f"{name}.json"
    parser.add_argument("--json", type=Path, default=place, help="JSON file for the figures (default: %(default)s)")
    return parser


def report(options: argparse.Namespace, *tables: Table) -> None:
    """Print the tables and write `options.json`.

    Args:
      options: what the parser of `flags` has read.

    Raises:
      UserError, WorkFailed: the file cannot be written.
    """
    settings = {name: value for name, value in vars(options).items() if name not in ("benchmark", "json")}
    record = {
        "benchmark": options.benchmark,
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine.describe(),
        "versions": machine.package_versions(),
        "settings": settings,
        "rows": [{"table": table.name} | row for table in tables for row in table.rows],
    }
    print(*tables, sep="\n\n", flush=True)
    write_file_aside(options.json, json.dumps(record, indent=2, default=_plain, allow_nan=False) + "\n")
    print(f"\nWritten to {options.json}")


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else str(value)


def load_config(model: Path, *, quantized: bool | None = None, flag: str = "--model") -> BertConfig:
    """The config of a model directory.

    Args:
      quantized: what the benchmark takes: INT8 models or floating-point ones; None: both.

    Raises:
      UserError: the model is of the other kind, or its `config.json` is missing or wrong.
    """
    config = BertConfig.from_json(model / "config.json")
    if quantized is not None and bool(config.quantization) != quantized:
        found, asked = ("not quantized", "an INT8") if quantized else ("quantized", "a floating-point")
        raise UserError(f"{flag}: {model} is {found}; name {asked} model directory")
    return config


def load_windows(
    model: Path, data: Path | None, settings: WindowSettings, *, count: int, tokens: int | None = None
) -> tuple[SampleLibrary, np.ndarray]:
    """A library with some of a file's windows loaded, the same for models of one tokenizer, and their indices.

    Args:
      data: SQuAD v1.1 file; None: the evaluation file of the model's run.
      count: how many windows, drawn at random.
      tokens: draw whole batches of so many padded tokens instead, as Offline makes them, of at least `count` windows.

    Raises:
      UserError: a file is missing or wrong.
    """
    dataset, library = open_library(data or rundir.default_data(model), model, settings)
    if tokens is None:
        size = min(count, len(dataset.windows))
        chosen = np.random.default_rng(0).choice(len(dataset.windows), size, replace=False)
    else:
        chosen = draw_windows(dataset.lengths, count=count, tokens=tokens)
    library.longest = settings.max_seq  # the MLPerf reference pads every window to it
    library.load(chosen.tolist())
    return library, chosen


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subject:
    """A floating-point model in JAX, with what reads text for it."""

    model: Model
    directory: Path
    windows: WindowSettings

    def read(self, data: Path, *, questions: int | None = None) -> Dataset:
        """A SQuAD file's windows, of `questions` drawn at random or of all; raises UserError if the file is wrong."""
        return load_dataset(data, load_tokenizer(self.directory), self.windows, questions=questions)


def load_subject(directory: Path) -> Subject:
    """Read a floating-point model directory.

    Raises:
      UserError: the model is quantized, incomplete or wrong.
    """
    from bertjax.model.bert import Model  # imports JAX

    load_config(directory, quantized=False)
    model = Model.of(store.load_question_answering(directory))
    return Subject(model=model, directory=directory, windows=rundir.window_settings(directory))


def numbers(text: str) -> list[float]:
    """Parse `2,3,5.6`; a type for argparse."""
    return [float(part) for part in text.split(",")]


def name_of(model: Path) -> str:
    """The last two parts of a model directory's path: `minilm/student-int8`."""
    return "/".join(model.resolve().parts[-2:])
