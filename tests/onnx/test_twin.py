"""TensorFlow and tf2onnx, which know nothing of the emitter, come to the logits of its graph."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from bertjax.modeldir import store
from bertjax.modeldir.config import Quantization
from bertjax.modeldir.store import StoredModel
from bertjax.modeldir.untrained import random_model
from bertjax.onnx.export import export_onnx, export_twin, source_digest
from tests.models import PLACEMENTS, tiny_config, write_random_model
from tests.onnx.reference import Reference
from tests.onnx.test_emit import make_batch, relative_l2

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("tensorflow", "tf2onnx")),
    reason="the extra tf is not installed",
)


def both_logits(folder: Path, model: StoredModel, inputs: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The twin's and the emitter's logits, each `[2, batch, seq]`."""
    directory = folder / "model"
    store.save(directory, model, tokenizer_from=folder)
    options = onnxruntime.SessionOptions()
    # The graphs as they are written, in floats between Q and DQ: fused, integer products would round elsewhere.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    sessions = (
        onnxruntime.InferenceSession(str(path), options)
        for path in (export_twin(directory), export_onnx(directory, flavour="cpu"))
    )
    twin, emitter = (np.stack(session.run(["start_logits", "end_logits"], inputs)) for session in sessions)
    return twin, emitter


def test_unquantized_logits_are_the_emitters(tmp_path: Path) -> None:
    config = tiny_config(((2, 64), (0, 32), (1, 0), (0, 0), (3, 96)), quantized=False)
    twin, emitter = both_logits(tmp_path, random_model(config, seed=0), make_batch(config, 3, 17))
    np.testing.assert_allclose(twin, emitter, atol=1e-4)


@pytest.mark.parametrize("placement", [PLACEMENTS[0], PLACEMENTS[-1]])
def test_quantized_logits_are_the_emitters_on_a_tiny_shape(tmp_path: Path, placement: Quantization) -> None:
    config = tiny_config(((2, 64), (0, 32), (1, 0)), quantized=placement)
    for seed in range(100):
        model = random_model(config, seed=seed)
        model.tensors["bert.encoder.layer.0.output.dense.weight"][0, :2] = (-100.0, 100.0)  # beyond the scale: clipped
        inputs = make_batch(config, 2, 5, seed=seed)
        reference = Reference(model)
        reference.run(**inputs)
        if reference.margin > 2e-4:
            break
    assert reference.margin > 2e-4  # no activation is so near a rounding boundary that float32 could turn it
    twin, emitter = both_logits(tmp_path, model, inputs)
    np.testing.assert_allclose(twin, emitter, atol=2e-5)


def test_quantized_logits_are_near_the_emitters_on_a_larger_shape(tmp_path: Path) -> None:
    config = tiny_config(((4, 256), (2, 512), (1, 64), (3, 96)), head_size=64)
    twin, emitter = both_logits(tmp_path, random_model(config, seed=0), make_batch(config, 16, 64))
    assert relative_l2(twin, emitter) < 0.03  # 0.008 measured: roundings that fell to the other side
    assert (twin.argmax(-1) == emitter.argmax(-1)).mean() > 0.8


def test_the_file_has_the_stable_names_and_says_who_wrote_it(tmp_path: Path) -> None:
    config = tiny_config(((0, 32), (1, 0)))
    write_random_model(tmp_path / "model", config, seed=0)
    path = export_twin(tmp_path / "model")
    assert path == tmp_path / "model" / "model.tf2onnx.onnx"
    model = onnx.load(path)
    described = [
        (value.name, value.type.tensor_type.elem_type, [axis.dim_param for axis in value.type.tensor_type.shape.dim])
        for value in [*model.graph.input, *model.graph.output]
    ]
    inputs, outputs = ("input_ids", "attention_mask", "token_type_ids"), ("start_logits", "end_logits")
    assert described == [
        *((name, onnx.TensorProto.INT64, ["batch", "seq"]) for name in inputs),
        *((name, onnx.TensorProto.FLOAT, ["batch", "seq"]) for name in outputs),
    ]
    record = {entry.key: entry.value for entry in model.metadata_props}
    assert (record["exporter"], record["flavour"]) == ("tf2onnx", "cpu")
    assert record["source_sha256"] == source_digest(tmp_path / "model")
    assert json.loads(record["config"]) == config.to_dict()
