"""Every benchmark at its smallest size: it runs, its tables fit a terminal, and its JSON has the one schema."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
import json
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

from bertjax import machine
from bertjax.engines.timing import compare
from bertjax.errors import UserError
from bertjax.pipeline.settings import RunSettings
from bertjax.pruning.importance import Importance, save_importance
from bertjax.pruning.latency import LatencyTable, write_table
from bertjax.rundir import DIRECTORIES, update_metrics
from tests.models import tiny_config, write_random_model
from tests.runs import write_run

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = {"benchmark": str, "command": str, "machine": dict, "versions": dict, "settings": dict, "rows": list}
TEACHER, STUDENT, INT8 = "--model=run/teacher", "--model=run/student", "--model=run/student-int8"
FILES = ["--train-file=run/eval.json", "--data=run/eval.json", "--questions=2"]
ONE = ["--windows=2", "--rounds=1"]
CUT = ["--flops-reduction=2", "--ffn-group=1"]

CASES: dict[str, tuple[list[str], dict[str, int]]] = {  # by benchmark or mode: flags, and rows of each table
    "backends": ([TEACHER, INT8, "--backend=onnxruntime", *ONE], {"batches": 3}),
    "backends --pad-to": ([INT8, "--pad-to", "8", "64", *ONE], {"padding": 2}),
    "backends --signed": ([INT8, "--signed", "--batch", "1x8", "--seconds=0", "--rounds=1"], {"signed": 2}),
    "distillation": (["--run=run", "--output=rows", "--rows=rounds-3,qat", "--seeds=0,1"], {"distillation": 4}),
    "engines": ([INT8], {"engines": 1}),
    "harness": ([INT8, "--backend=onnxruntime", "--duration=0.05", "--offline-only"], {"harness": 2}),
    "pruning": ([TEACHER, *FILES, *CUT, "--importance=magnitude"], {"importances": 2}),
    "pruning --latency-table": (
        [TEACHER, *CUT, "--latency-table=latency.json", "--seconds=0"],
        {"times": 3},
    ),
    "quantization": ([STUDENT, *FILES, "--output=int8", "--placement=dense", "--scales=feature"], {"quantization": 2}),
    "roofline": ([INT8, *ONE], {"rates": 3, "steps": 1}),
    "server_queue": ([INT8, "--cost", "2e-3", "2e-5", "3e-8", "--seconds=1"], {"cost": 1, "queues": 5}),
    "serving": (["--run=run", *ONE], {"steps": 5, "pruning": 4}),
    "train_step": (["--settings", "default", "all-kept", "--batch=2", "--length=8", "--rounds=1"], {"train_step": 2}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a run (teacher, student, INT8 student, evaluation file) and a latency table."""
    folder = tmp_path_factory.mktemp("benchmarks")
    write_run(folder / "run", 2)
    shape = tiny_config(((2, 32),), quantized=False)
    for name in ("teacher", "student"):
        write_random_model(folder / "run" / name, shape, seed=1)
    data = str(folder / "run" / "eval.json")
    settings = RunSettings(train_file=data, val_file=data, eval_file=data, max_seq=128, ffn_group=1)
    (folder / "run" / "settings.json").write_text(json.dumps(dataclasses.asdict(settings)))
    about = {"backend": "onnxruntime", "description": "ONNX Runtime", "quantize_also": []}
    about |= {"batch": 1, "seq": 8, "streams": 1, "threads": 1}
    blocks = {"attention": ((0, 1e-6), (1, 2e-4), (2, 4e-4)), "ffn": ((0, 1e-6), (16, 1e-4), (32, 2e-4))}
    table = LatencyTable(about=about, hidden_size=shape.hidden_size, head_size=shape.head_size, rest=1e-4, **blocks)
    write_table(folder / "latency.json", table)
    whole, heads, units = np.array([2.0]), np.array([100.0, 500.0]), np.arange(1.0, 33.0)
    importance = Importance(heads=(heads,), ffn=(units,), attention_blocks=whole, ffn_blocks=whole, layers=whole)
    save_importance(folder / "run" / "work" / "importance.npz", importance, "made=here")
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, in which benchmarks find their helper module and take no rest."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    monkeypatch.setattr(compare.measure, "REST", 0.0)
    return folder


def leave_scores(settings: RunSettings, command: str) -> None:
    """The record of a pipeline, whose stages score the better the later they come and the higher the seed."""
    made = [stage for stage in DIRECTORIES if not (stage == "int8" and "qat" in settings.skip)]
    update_metrics(
        Path(settings.output), {"stages": {stage: {"f1": 50.0 + i + settings.seed} for i, stage in enumerate(made)}}
    )


def run_here(
    module: types.ModuleType, monkeypatch: pytest.MonkeyPatch, command: list[str], **rest: Any
) -> subprocess.CompletedProcess[str]:
    """A benchmark's own child process, in this process."""
    with monkeypatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", command[1:])
        module.main()
    return subprocess.CompletedProcess(command, 0, printed.getvalue(), "")


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A benchmark's module, made small where flags do not do it."""
    if name == "engines" and not importlib.util.find_spec("tensorrt_rtx"):
        pytest.skip("tensorrt-rtx is not installed")
    module = importlib.import_module(name)
    if name == "roofline":
        monkeypatch.setattr(machine, "saturates_int8", lambda: False)
        monkeypatch.setattr(module, "STACK_TOKENS", (8,))
    if name == "quantization":  # the test of engines.py builds one

        def no_engine(*arguments: Any) -> None:
            raise UserError("no TensorRT here")

        monkeypatch.setattr("bertjax.tensorrt.export.export_engine", no_engine)
    if name == "distillation":  # tests/pipeline runs the stages
        monkeypatch.setattr(
            module.stages, "run_pipeline", mock.create_autospec(module.stages.run_pipeline, side_effect=leave_scores)
        )
    if name == "train_step":
        monkeypatch.setattr(
            module, "ENCODER", {"vocab_size": 30000, "hidden_size": 2, "num_layers": 1, "heads": 1, "ffn": 2}
        )
        monkeypatch.setattr(module, "PARTS", (1,))
        monkeypatch.setattr(module.subprocess, "run", functools.partial(run_here, module, monkeypatch))
    if name == "server_queue":
        monkeypatch.setattr(module, "SEEDS", range(1))
        monkeypatch.setattr(module, "STEP", 0.1)
    return module


@pytest.mark.parametrize("case", CASES)
def test_a_benchmark_prints_narrow_tables_and_writes_the_same_rows(
    case: str, here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    name = case.split()[0]
    flags, rows = CASES[case]
    module = load(name, monkeypatch)
    monkeypatch.setattr(sys, "argv", [f"benchmarks/{name}.py", *flags, "--json=found.json"])
    module.main()
    printed = capfd.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    record = json.loads((here / "found.json").read_text())
    assert {key: type(value) for key, value in record.items()} == SCHEMA
    assert record["benchmark"] == name and record["command"].startswith(f"python benchmarks/{name}.py --")
    assert record["machine"] == machine.describe() and record["versions"] == machine.package_versions()
    assert not record["settings"].keys() & {"benchmark", "json"}
    counted = {table: sum(row["table"] == table for row in record["rows"]) for table in rows}
    assert sum(counted.values()) == len(record["rows"])
    assert all(counted[table] >= least for table, least in rows.items()), counted
    assert all(math.isfinite(value) for row in record["rows"] for value in row.values() if isinstance(value, float))


def test_a_report_keeps_numbers_whole_and_prints_a_dash_for_what_does_not_apply(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = importlib.import_module("bench")
    monkeypatch.setattr(sys, "argv", ["benchmarks/x.py", "--json=x.json"])
    options = bench.flags("x", "").parse_args()
    columns = {"name": "{name}", "speed": "{speed:.1f}", "twice": lambda row: row["name"] * 2}
    rows = [{"name": "a long name " * 8, "speed": None}, {"name": "b", "speed": 1.2345}]
    bench.report(options, bench.Table(name="t", columns=columns, rows=rows, note="a note"))
    printed = capsys.readouterr().out.splitlines()
    assert max(map(len, printed)) <= 80 and printed[0] == "a note"
    assert printed[4].split()[-1] != "-" and " - " in printed[4] and printed[-3].split() == ["b", "1.2", "bb"]
    record = json.loads((here / "x.json").read_text())
    assert record["settings"] == {} and record["rows"] == [{"table": "t"} | row for row in rows]


def test_a_model_of_the_wrong_kind_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, flags in {
        "roofline": [STUDENT],
        "quantization": [INT8, *FILES, "--output=x"],
        "backends": [INT8],
    }.items():
        monkeypatch.setattr(sys, "argv", [name, *flags])
        with pytest.raises(UserError, match="quantized; name an? (INT8|floating-point) model directory"):
            importlib.import_module(name).main()
