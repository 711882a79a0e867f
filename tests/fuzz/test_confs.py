"""Mutated user.confs and audit.confs are read as LoadGen reads them, or refused in one line with file and line."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given

from bertjax.mlperf.conf import SCENARIOS
from tests.fuzz.budget import bounded, draws
from tests.fuzz.mutations import mutate_bytes
from tests.mlperf.loadgen_conf import agreed_values

TEXT = b"""# times are in milliseconds
*.*.min_duration = 5000
*.Server.target_latency = 130
*.Server.target_latency_percentile = 99
*.Offline.target_qps = 12.5
*.SingleStream.target_latency = 0x10
*.MultiStream.samples_per_query = 8
*.*.min_query_count = 100
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("confs")


@bounded
@given(draw=draws)
def test_confs(folder: Path, draw: random.Random):
    path, content = folder / "a.conf", TEXT
    if draw.random() < 0.5:
        content = content.replace(b"*.", b"bert.", draw.randint(0, 9))
    for _ in range(draw.randint(1, 3)):
        content = mutate_bytes(content, draw)
    path.write_bytes(content)
    agreed_values(path, draw.choice(SCENARIOS), audit=draw.random() < 0.3)
