"""A run directory with a tiny student and its teacher, and both as readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bertjax.asking.reader import Reader
from tests.mlperf.conftest import squad
from tests.models import tiny_config, write_random_model


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "runs" / "demo"
    write_random_model(folder / "student-int8", tiny_config(), seed=1)
    write_random_model(folder / "teacher", tiny_config(quantized=False), seed=2)
    (folder / "eval.json").write_text(json.dumps(squad(6)))
    data = {"eval_file": str(folder / "eval.json"), "max_seq": 128, "doc_stride": 64, "max_query": 32}
    (folder / "metrics.json").write_text(json.dumps({"data": data}))
    return folder


@pytest.fixture(scope="session")
def readers(run: Path) -> list[Reader]:
    return [Reader(run / name, backend="onnxruntime") for name in ("student-int8", "teacher")]
