"""The training programs as a person calls them: exit codes, one-line errors, and a chain of two."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bertjax.data.corpus import write_corpus
from bertjax.modeldir import store
from bertjax.modeldir.tensors import masked_lm_head_shapes
from bertjax.pipeline.presets import PRESETS
from bertjax.pruning.latency import read_table
from tests.models import tiny_config

ROOT = Path(__file__).resolve().parents[1]


def _call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def _program(name: str) -> str:
    return str(ROOT / "train" / name)


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["distill.py", "--preset", "huge"], "--preset huge: unknown; there are demo, minilm, wwm-large"),
        (["distill.py", "--latency-table", "t.json"], "--latency-table: give --latency-reduction too"),
        (["distill.py", "--flops-reduction", "2", "--latency-reduction", "2"], "--latency-reduction: give one of"),
        (["sweep.py", "--flops-reduction", "0.5,abc"], "--flops-reduction 0.5,abc: must be numbers with commas"),
        (["sweep.py", "--flops-reduction", "0.5,2"], "--flops-reduction 0.5: must lie between 1 and 32"),
        (["distill.py", "--pruning-rounds", "0"], "--pruning-rounds 0: must be at least 1"),
        (["distill.py", "--ema", "1"], "--ema 1: must be at least 0 and less than 1"),
        (["finetune.py", "--output", "x"], "--encoder: not given"),
        (["pretrain.py", "--text-file", "none.txt", "--output", "x", "--hidden", "30", "--heads", "4"], "--hidden 30"),
    ],
)
def test_wrong_flags_are_told_in_one_line_with_exit_code_2(tmp_path: Path, arguments: list[str], told: str):
    done = _call(_program(arguments[0]), *arguments[1:], cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["distill.py", "finetune.py", "latency_table.py", "pretrain.py", "sweep.py"])
def test_help_answers(tmp_path: Path, name: str):
    done = _call(_program(name), "--help", cwd=tmp_path)
    assert done.returncode == 0 and "--output" in done.stdout


def test_every_preset_tells_its_command():
    for name, preset in PRESETS.items():
        assert "Command: `python train/distill.py" in preset.__doc__, name
        assert preset().output == f"runs/{name}"


def test_pretraining_leads_to_finetuning(tmp_path: Path):
    files = write_corpus(tmp_path / "corpus", seed=0, train=30, val=4, evaluation=4)
    shape = [
        "--layers",
        "1",
        "--hidden",
        "16",
        "--heads",
        "2",
        "--ffn",
        "32",
        "--vocab-size",
        "300",
        "--max-seq",
        "64",
        "--steps",
        "4",
        "--batch-size",
        "8",
    ]
    done = _call(_program("pretrain.py"), "--text-file", str(files.train), "--output", "encoder", *shape, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    config = store.load_encoder(tmp_path / "encoder").config
    assert masked_lm_head_shapes(config).keys() <= store.read_tensors(tmp_path / "encoder").keys()
    flags = [
        "--max-seq",
        "64",
        "--max-query",
        "24",
        "--teacher-epochs",
        "0.2",
        "--teacher-batch-size",
        "8",
        "--evaluations",
        "1",
    ]
    sources = ["--encoder", "encoder", "--train-file", str(files.train), "--val-file", str(files.val)]
    done = _call(_program("finetune.py"), *sources, *flags, "--output", "teacher", cwd=tmp_path)
    assert done.returncode == 0 and "F1" in done.stdout, done.stderr
    store.load_question_answering(tmp_path / "teacher")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "encoder", "teacher"]


def test_a_latency_table_is_timed_on_an_engine(tmp_path: Path):
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(tiny_config(quantized=False).to_dict()))
    flags = ["--widths", "2", "--rounds", "1", "--seconds", "0", "--seq", "16", "--batch", "2"]
    done = _call(_program("latency_table.py"), "--model", "teacher", *flags, cwd=tmp_path)
    assert done.returncode == 0 and "whole model" in done.stdout, done.stderr
    table = read_table(tmp_path / "latency.json")
    assert [size for size, _ in table.attention] == [0, 1, 2] and [size for size, _ in table.ffn] == [0, 32, 64]
    assert len(table.checks) == 4 and table.about["seq"] == 16


def test_ctrl_c_ends_with_130_and_one_line(tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, _program("distill.py"), "--output", "r"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "r" / "work" / "pretrain" / "tokenizer").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "the same command continues" in told and "Traceback" not in told
    assert json.loads((tmp_path / "r" / "settings.json").read_text())["output"] == "r"
    assert not (tmp_path / "r" / "teacher").exists()
