"""From a model directory to a file: names, records, renewal, external data, and what happens on bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy

from bertjax import version
from bertjax.engines.choose import cpu_graph
from bertjax.errors import UserError
from bertjax.modeldir.untrained import random_model
from bertjax.onnx import export
from bertjax.onnx.export import export_onnx, is_current
from bertjax.onnx.graph import FlavourName
from tests.models import tiny_config, write_random_model
from tests.onnx.test_emit import make_batch


@pytest.fixture
def student(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "student-int8", tiny_config(), seed=0)
    return tmp_path / "student-int8"


@pytest.mark.parametrize("flavour", ["cpu", "trt"])
def test_inputs_outputs_and_axes_are_the_stable_ones(student: Path, flavour: str) -> None:
    model = onnx.load(export_onnx(student, flavour=flavour))
    described = [
        (value.name, value.type.tensor_type.elem_type, [axis.dim_param for axis in value.type.tensor_type.shape.dim])
        for value in [*model.graph.input, *model.graph.output]
    ]
    int64, float32 = onnx.TensorProto.INT64, onnx.TensorProto.FLOAT
    assert described == [
        ("input_ids", int64, ["batch", "seq"]),
        ("attention_mask", int64, ["batch", "seq"]),
        ("token_type_ids", int64, ["batch", "seq"]),
        ("start_logits", float32, ["batch", "seq"]),
        ("end_logits", float32, ["batch", "seq"]),
    ]
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 20)]


def test_files_have_the_names_that_others_read(tmp_path: Path, student: Path) -> None:
    write_random_model(tmp_path / "teacher", tiny_config(quantized=False), seed=0)
    written = [
        export_onnx(tmp_path / folder, flavour=f) for folder in ("student-int8", "teacher") for f in ("cpu", "trt")
    ]
    assert [str(path.relative_to(tmp_path)) for path in written] == [
        "student-int8/model.cpu.onnx",
        "student-int8/model.trt.onnx",
        "teacher/model.onnx",
        "teacher/model.trt.onnx",
    ]


def test_an_export_is_current_until_its_source_changes(student: Path) -> None:
    path = export_onnx(student, flavour="cpu")
    assert is_current(path, student, "cpu")
    assert not is_current(path, student, "trt")
    parameters = random_model(tiny_config(), seed=1).tensors
    safetensors.numpy.save_file(parameters, student / "model.safetensors")
    assert not is_current(path, student, "cpu")
    path.write_bytes(path.read_bytes()[:1000])
    assert not is_current(path, student, "cpu")


OF_0_1 = Path(__file__).parent / "student-0.1"  # written by version 0.1.0: a directory and both of its graphs


@pytest.mark.parametrize("flavour", ["cpu", "trt"])
def test_a_graph_of_version_0_1_is_read_as_it_is(tmp_path: Path, flavour: FlavourName) -> None:
    name = f"model.{flavour}.onnx"
    assert is_current(OF_0_1 / name, OF_0_1, flavour)
    of_today = onnx.load(export_onnx(OF_0_1, flavour=flavour, output=tmp_path / name))
    assert of_today.graph == onnx.load(OF_0_1 / name).graph, "the emitter writes another graph: raise its REVISION"


def test_the_emitters_revision_and_not_the_version_makes_a_graph_stale(
    student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_onnx(student, flavour="cpu")
    written = path.read_bytes()
    monkeypatch.setattr(version, "__version__", "9.9")
    assert is_current(path, student, "cpu")
    assert export_onnx(student, flavour="cpu").read_bytes() == written
    monkeypatch.setattr(export, "REVISION", export.REVISION + 1)
    assert not is_current(path, student, "cpu")


@pytest.mark.parametrize("record", ["kept", "that of version 0.1"])
@pytest.mark.parametrize("flavour", ["cpu", "trt"])
def test_a_graph_that_someone_changed_is_not_current(
    student: Path, flavour: FlavourName, record: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = export_onnx(student, flavour=flavour)
    written = path.read_bytes()
    changed = onnx.load(path)
    if record != "kept":
        del changed.metadata_props[[entry.key for entry in changed.metadata_props].index("content_sha256")]
        onnx.save(changed, path)
        assert is_current(path, student, flavour)
    (head,) = (tensor for tensor in changed.graph.initializer if tensor.name == "qa_outputs.weight")
    head.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(head), head.name))
    onnx.save(changed, path)
    assert not is_current(path, student, flavour)
    if flavour == "cpu":
        assert cpu_graph(student, tiny_config()).read_bytes() == written
        assert "model.cpu.onnx: not what bertjax writes from these weights; exported again" in capsys.readouterr().out


def test_weights_too_large_for_protobuf_go_beside_the_model(student: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_batch(tiny_config(), 2, 9)
    whole = onnxruntime.InferenceSession(export_onnx(student, flavour="cpu")).run(None, inputs)
    with monkeypatch.context() as patched:
        patched.setattr(export, "EXTERNAL_DATA_FROM", 1000)
        path = export_onnx(student, flavour="cpu")
    data = student / "model.cpu.onnx.data"
    assert is_current(path, student, "cpu")
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_current(path, student, "cpu")
    data.unlink()
    assert not is_current(path, student, "cpu")
    data.write_bytes(content)
    assert data.stat().st_size > path.stat().st_size > 1000
    split = onnxruntime.InferenceSession(path).run(None, inputs)
    np.testing.assert_array_equal(split, whole)
    export_onnx(student, flavour="cpu")
    assert not data.exists()


def _lose_scales(directory: Path) -> str:
    parameters = {k: v for k, v in random_model(tiny_config(), seed=0).tensors.items() if not k.endswith("input_scale")}
    safetensors.numpy.save_file(parameters, directory / "model.safetensors")
    return r"8 tensors missing: bert\.encoder\.layer\.0\.attention\.self\.input_scale \[32\], .*, \.\.\."


def _spoil_scale(directory: Path) -> str:
    parameters = random_model(tiny_config(), seed=0).tensors
    parameters["bert.encoder.layer.1.output.dense.weight_scale"][5] = np.nan
    safetensors.numpy.save_file(parameters, directory / "model.safetensors")
    return r"1 tensor with NaN or infinity: bert\.encoder\.layer\.1\.output\.dense\.weight_scale"


def _lose_config(directory: Path) -> str:
    (directory / "config.json").unlink()
    return r"config\.json: no such file"


def _widen_config(directory: Path) -> str:
    raw = json.loads((directory / "config.json").read_text())
    raw["ffn_per_layer"][1] = 48
    (directory / "config.json").write_text(json.dumps(raw))
    return r"layer\.1\.intermediate\.dense\.weight is \[32, 32\], wanted \[48, 32\]"


@pytest.mark.parametrize("spoil", [_lose_scales, _spoil_scale, _lose_config, _widen_config])
def test_a_broken_directory_is_told_in_one_line_and_the_earlier_export_stays(student: Path, spoil) -> None:
    earlier = export_onnx(student, flavour="cpu").read_bytes()
    told = spoil(student)
    with pytest.raises(UserError, match=told) as caught:
        export_onnx(student, flavour="cpu")
    assert "\n" not in str(caught.value)
    assert (student / "model.cpu.onnx").read_bytes() == earlier
    assert not [path for path in student.iterdir() if "writing" in path.name]
