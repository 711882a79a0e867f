"""Fixtures of several rooms' tests: small models, small data, and the real data where it lies beside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bertjax.data.windows import Window, WindowSettings
from bertjax.engines.samples import SampleLibrary, read_dataset
from tests.runs import write_run

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    """Let the tests, and the programs that they start, compile each JAX program once, and in less time.

    Compiled programs are kept for the whole run, in JAX_COMPILATION_CACHE_DIR if that is set. XLA's graph passes,
    fusion among them, stay as users have them; only LLVM optimizes no loop, which takes a third of the time.
    """
    ready = {"JAX_COMPILATION_CACHE_DIR", "XLA_FLAGS"} <= os.environ.keys()  # as in benchmarks/mutants.py
    assert ready or "jax" not in sys.modules, "JAX has read its settings already: a plugin or this file imports it"
    folder = tempfile.TemporaryDirectory(prefix="bertjax-compiled-")
    config.add_cleanup(folder.cleanup)
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", folder.name)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with real SQuAD-form data; BERTJAX_DATA names another place. Skips where there is none."""
    folder = Path(os.environ.get("BERTJAX_DATA", SHARED / "data"))
    if not (folder / "dev-v1.1.json.gz").exists():
        pytest.skip("no real SQuAD data here; BERTJAX_DATA can name its folder")
    return folder


@pytest.fixture(scope="session")
def minilm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real pretrained encoder; BERTJAX_ENCODER names its folder. Skips where there is none."""
    if "BERTJAX_ENCODER" in os.environ:
        return Path(os.environ["BERTJAX_ENCODER"])
    tool = SHARED / "tools" / "get-minilm"
    if not tool.exists():
        pytest.skip("no pretrained encoder here; BERTJAX_ENCODER can name its folder")
    folder = tmp_path_factory.mktemp("minilm")
    if subprocess.run([tool, folder], capture_output=True).returncode:
        pytest.skip("the pretrained encoder could not be fetched")
    return folder


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_run(folder, 15, seed=7, stages={"teacher": {"f1": 90.0}})
    return folder


@pytest.fixture(scope="session")
def windows(run_dir: Path) -> list[Window]:
    return read_dataset(run_dir / "eval.json", run_dir / "student-int8", WindowSettings(max_seq=128)).windows


@pytest.fixture
def library(run_dir: Path) -> SampleLibrary:
    """The evaluation file's windows, all loaded."""
    dataset = read_dataset(run_dir / "eval.json", run_dir / "student-int8", WindowSettings(max_seq=128))
    library = SampleLibrary(dataset, pad_id=0)
    library.load(range(len(dataset.windows)))
    return library
