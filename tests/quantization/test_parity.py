"""The same INT8 model on every engine: JAX's fake quantization, ONNX Runtime and OpenVINO."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertjax.engines.choose import open_backend
from bertjax.modeldir.config import Quantization
from tests.models import PLACEMENTS, tiny_config, write_random_model

BFLOAT16_ERROR = 0.06  # relative L2: four layers that each round to 8 bits of mantissa


def _logits(backend: str, directory: Path, inputs: tuple[np.ndarray, ...]) -> tuple[np.ndarray, bool]:
    """Start and end logits of real tokens, and whether the engine computes what is not INT8 in bfloat16."""
    opened = open_backend(backend, directory, streams=1, threads=1, longest=inputs[0].shape[1])
    mask = inputs[1] > 0
    logits = np.concatenate([np.asarray(part)[mask] for part in opened.infer(*inputs)])
    return logits, "BF16" in opened.description


@pytest.mark.parametrize("quantized, bound", [(False, 1e-5), (PLACEMENTS[0], 0.02), (PLACEMENTS[-1], 0.02)])
def test_jax_agrees_with_both_cpu_engines(tmp_path: Path, quantized: bool | Quantization, bound: float):
    config = tiny_config(((2, 64), (0, 32), (1, 0), (2, 96)), quantized=quantized)
    write_random_model(tmp_path / "m", config, seed=11)
    random = np.random.default_rng(0)
    mask = (np.arange(33)[None] < np.array([33, 20, 7, 33])[:, None]).astype(np.int64)
    ids = random.integers(5, config.vocab_size, mask.shape) * mask
    inputs = (ids, mask, (np.arange(33)[None] > 5) * mask)
    ours, _ = _logits("jax", tmp_path / "m", inputs)
    for backend in ("onnxruntime", "openvino"):
        theirs, bfloat16 = _logits(backend, tmp_path / "m", inputs)
        # A difference of 1e-7 can turn a rounding, so the quantized form is compared by relative L2. OpenVINO uses
        # bfloat16 only beside INT8, and only on a CPU that has it.
        allowed = BFLOAT16_ERROR if bfloat16 and quantized else bound
        assert np.linalg.norm(theirs - ours) / np.linalg.norm(ours) < allowed, backend
