"""The export programs from the command line: what they write, say and return."""

from __future__ import annotations

import importlib.util
import os
import runpy
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from bertjax import machine
from bertjax.data.metrics import Score
from bertjax.engines.parity import Parity
from bertjax.errors import WorkFailed
from bertjax.onnx.record import read_record, with_record
from tests.models import tiny_config, write_random_model

ROOT = Path(__file__).parent.parent
needs_rtx = pytest.mark.skipif(not importlib.util.find_spec("tensorrt_rtx"), reason="tensorrt-rtx is not installed")


def run(cwd: Path, *command: str, before: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run a program in `cwd`; modules in `before` are found before the installed ones."""
    environment = os.environ | {"PYTHONPATH": f"{before}{os.pathsep}{ROOT}"}
    program, *arguments = command
    return subprocess.run(
        [sys.executable, str(ROOT / "export" / program), *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def test_to_onnx_takes_the_newest_runs_student(tmp_path: Path) -> None:
    for age, name in ((200, "old"), (100, "new")):
        config = tmp_path / "runs" / name / "student-int8" / "config.json"
        write_random_model(config.parent, tiny_config(), seed=0)
        written = config.stat().st_mtime - age
        os.utime(config, (written, written))
    done = run(tmp_path, "to_onnx.py")
    assert done.returncode == 0, done.stderr
    found = sorted(str(path.relative_to(tmp_path / "runs")) for path in tmp_path.glob("runs/**/*.onnx"))
    assert found == ["new/student-int8/model.cpu.onnx", "new/student-int8/model.trt.onnx"]
    assert done.stdout.endswith("  tried on 32 windows of random tokens: all logits are finite\n")


def test_without_a_run_one_line_says_what_to_do(tmp_path: Path) -> None:
    for program in ("to_onnx.py", "to_trt.py"):
        done = run(tmp_path, program)
        assert done.returncode == 2
        assert done.stderr == (
            "error: no finished run under runs/; run python train/distill.py first, or give --model DIR\n"
        )


def test_to_onnx_refuses_one_file_for_two_flavours(tmp_path: Path) -> None:
    done = run(tmp_path, "to_onnx.py", "--output", "model.onnx")
    assert done.returncode == 2
    assert "--output names one file" in done.stderr


def test_tf2onnx_without_tensorflow_is_told_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError('none here', name='tensorflow')\n")
    write_random_model(tmp_path / "model", tiny_config(), seed=0)
    done = run(tmp_path, "to_onnx.py", "--model", "model", "--exporter", "tf2onnx", before=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: --exporter tf2onnx: tensorflow is not installed; run pip install bertjax[tf]\n"
    assert not list(tmp_path.glob("model/*.onnx"))


@pytest.mark.parametrize("flavour", ["trt", "both"])
def test_tf2onnx_refuses_a_flavour_that_it_cannot_write(tmp_path: Path, flavour: str) -> None:
    done = run(tmp_path, "to_onnx.py", "--exporter", "tf2onnx", "--flavour", flavour)
    assert done.returncode == 2
    assert f"--exporter tf2onnx writes --flavour cpu only, not {flavour}" in done.stderr


@pytest.mark.parametrize(("quantized", "code", "share"), [(True, 0, "12 of 12"), (False, 1, "0 of 12")])
def test_check_cpu_tells_and_demands_integer_kernels(tmp_path: Path, quantized: bool, code: int, share: str) -> None:
    write_random_model(tmp_path / "model", tiny_config(quantized=quantized), seed=0)
    done = run(tmp_path, "check_cpu.py", "--model", "model", "--require-int8")
    assert done.returncode == code, done.stderr
    assert f"encoder dense layers on integer kernels: {share}" in done.stdout
    assert ("layer1/ffn/out" in done.stderr) == (not quantized)


def test_check_cpu_demands_no_integer_kernels_where_they_are_switched_off(tmp_path: Path, monkeypatch) -> None:
    write_random_model(tmp_path / "model", tiny_config(), seed=0)
    monkeypatch.setattr(machine, "saturates_int8", lambda: True)
    main = runpy.run_path(str(ROOT / "export" / "check_cpu.py"))["main"]
    arguments = ["check_cpu.py", "--model", str(tmp_path / "model"), "--require-int8"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    monkeypatch.setattr(sys, "argv", [*arguments, "--backend", "openvino"])
    with pytest.raises(WorkFailed, match="12 on openvino"):
        main()


def test_check_parity_prints_every_engine_and_fails_on_one_that_differs(run_dir: Path, monkeypatch, capsys) -> None:
    fields = {"score": Score(exact_match=50.0, f1=60.0), "distance": 0.5, "largest": 1.0, "argmax": 0.9}
    found = [
        Parity(engine="JAX", **fields, faults=()),
        Parity(engine="OpenVINO", **fields, faults=("relative L2 5.0e-01, at most 1e-01 expected",)),
    ]
    monkeypatch.setattr("bertjax.engines.parity.check_parity", lambda *arguments: found)
    main = runpy.run_path(str(ROOT / "export" / "check_parity.py"))["main"]
    monkeypatch.setattr(sys, "argv", ["check_parity.py", "--model", str(run_dir / "student-int8"), "--questions", "5"])
    with pytest.raises(WorkFailed, match="engines differ: OpenVINO: relative L2 5.0e-01, at most 1e-01 expected"):
        main()
    printed = capsys.readouterr().out
    assert "5 questions" in printed and "JAX             50.00  60.00      5.0e-01" in printed


@needs_rtx
def test_to_trt_builds_both_profiles_and_prints_the_account(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", tiny_config(((2, 64), (3, 32))), seed=0)
    done = run(tmp_path, "to_trt.py", "--model", "model", "--require-int8", "--compute-capability", "8.9")
    assert done.returncode == 0, done.stderr
    assert "profile 0: batch 1, 64 to 384 (best at 192) tokens\n" in done.stdout
    assert "profile 1: batch 1 to 32 (best at 8), 64 to 384" in done.stdout
    assert done.stdout.count("INT8 GEMMs: 12 of 12 encoder dense layers, in 8 kernels\n") == 2
    assert done.stdout.count("fused attention: 2 of 2 layers (operands: 2 Half)\n") == 2
    assert done.stdout.splitlines()[-1].endswith("(details: model/engine.json)")


@needs_rtx
def test_to_trt_takes_an_onnx_file_alone_and_fails_where_a_dense_layer_is_not_int8(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", tiny_config(((1, 32),)), seed=0)
    assert run(tmp_path, "to_onnx.py", "--model", "model", "--flavour", "trt", "--output", "x.trt.onnx").returncode == 0
    graph = onnx.load(tmp_path / "x.trt.onnx")
    nodes = {node.name: node for node in graph.graph.node}
    nodes["layer0/ffn/in/MatMul"].input[0] = nodes["layer0/ffn/in/input/CastToFloat"].input[0]  # past its Q and DQ
    record = read_record(graph)
    del graph.metadata_props[:]
    (tmp_path / "x.trt.onnx").write_bytes(with_record(graph, record, data=None))
    flags = ("--onnx", "x.trt.onnx", "--batch", "2", "--seq", "16", "--compute-capability", "8.9", "--require-int8")
    done = run(tmp_path, "to_trt.py", *flags)
    assert done.returncode == 1
    assert done.stderr == "error: 1 encoder dense layers are not INT8 GEMMs: layer0/ffn/in\n"
    assert "profile 0: batch 2, 16 tokens" in done.stdout
    assert (tmp_path / "x.engine").exists() and (tmp_path / "x.engine.json").exists()


def test_to_trt_refuses_int8_of_a_model_without_scales(tmp_path: Path) -> None:
    write_random_model(tmp_path / "model", tiny_config(((1, 32),), quantized=False), seed=0)
    done = run(tmp_path, "to_trt.py", "--model", "model", "--require-int8")
    assert done.returncode == 2
    assert done.stderr == "error: --require-int8: model is not quantized; name a student-int8\n"
    assert not list((tmp_path / "model").glob("*.onnx"))
