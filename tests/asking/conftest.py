"""A run directory with a tiny student and its teacher, and both as readers."""

from __future__ import annotations

from pathlib import Path

import pytest

from bertjax.asking.reader import Reader
from tests.models import tiny_config, write_random_model
from tests.runs import write_run


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work") / "runs" / "demo"
    write_run(folder, 6)
    write_random_model(folder / "teacher", tiny_config(quantized=False), seed=2)
    return folder


@pytest.fixture(scope="session")
def readers(run: Path) -> list[Reader]:
    return [Reader(run / name, backend="onnxruntime") for name in ("student-int8", "teacher")]
