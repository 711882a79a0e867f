"""A graph whose float16 cannot hold the model is told when it is written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from bertjax.engines.trial import try_graph
from bertjax.modeldir import store
from bertjax.onnx.export import export_onnx
from tests.models import tiny_config, write_random_model


@pytest.fixture
def overflowing(tmp_path: Path) -> Path:
    """A model whose weights float16 holds, and whose second LayerNorm gives numbers that it does not."""
    write_random_model(tmp_path / "start", tiny_config(quantized=False), seed=0)
    model = store.load_question_answering(tmp_path / "start")
    name = next(name for name in model.tensors if name.endswith("layer.1.output.LayerNorm.weight"))
    tensors = model.tensors | {name: np.full_like(model.tensors[name], 6e4)}
    changed = dataclasses.replace(model, tensors=tensors)
    store.save(tmp_path / "teacher", changed, tokenizer_from=tmp_path / "start")
    return tmp_path / "teacher"


def test_float16_that_overflows_is_told_and_float32_of_the_same_weights_is_not(overflowing: Path) -> None:
    half = try_graph(export_onnx(overflowing, flavour="trt"), overflowing)
    assert half.non_finite == half.windows == 32
    assert str(half).startswith("warning: NaN or infinite logits in 32 of 32 windows of random tokens")
    full = try_graph(export_onnx(overflowing, flavour="cpu"), overflowing)
    assert str(full) == "tried on 32 windows of random tokens: all logits are finite"


def test_a_runs_graph_is_tried_on_windows_of_its_training_file(run_dir: Path, tmp_path: Path) -> None:
    write_random_model(tmp_path / "run" / "student-int8", tiny_config(), seed=1)
    train = tmp_path / "run" / "train.json"
    train.write_bytes((run_dir / "eval.json").read_bytes())
    data = {"train_file": "train.json", "max_seq": 128, "doc_stride": 64, "max_query": 32}
    (tmp_path / "run" / "metrics.json").write_text(json.dumps({"data": data}))
    student = tmp_path / "run" / "student-int8"
    tried = try_graph(export_onnx(student, flavour="trt"), student)
    assert (tried.source, tried.windows, tried.non_finite) == (str(train), 32, 0)
    train.write_text("not of SQuAD's form")
    assert try_graph(student / "model.trt.onnx", student).source == "random tokens"
