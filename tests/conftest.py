"""What several tests share: small models, small data, and the real data where it lies beside the checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


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
