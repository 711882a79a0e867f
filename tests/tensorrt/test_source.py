"""Which ONNX files an engine is built from, and which are refused. Without TensorRT."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from bertjax.errors import UserError
from bertjax.onnx import export as onnx_export
from bertjax.onnx.emit import REVISION
from bertjax.onnx.export import export_onnx, source_digest
from bertjax.tensorrt.source import prepare_onnx, source_from_directory, source_from_onnx
from tests.models import tiny_config, write_random_model

CONFIG = tiny_config(((1, 32),))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_random_model(tmp_path / "model", CONFIG, seed=0)
    return tmp_path / "model"


def test_a_file_of_ours_says_what_it_holds(model: Path, tmp_path: Path) -> None:
    path = export_onnx(model, flavour="trt", output=tmp_path / "x.onnx")
    for directory in (None, model):
        source = source_from_onnx(path, directory=directory, flavour=None)
        assert (source.config, source.flavour) == (CONFIG, "trt")
        assert prepare_onnx(source) == source_digest(model)


def test_a_file_of_another_model_is_refused(model: Path, tmp_path: Path) -> None:
    path = export_onnx(model, flavour="trt", output=tmp_path / "x.onnx")
    write_random_model(tmp_path / "weights", CONFIG, seed=1)
    write_random_model(tmp_path / "shape", tiny_config(((2, 32),)), seed=0)
    for other in ("weights", "shape"):
        with pytest.raises(UserError, match=f"not of what .*{other} holds; export it again with: python export"):
            source_from_onnx(path, directory=tmp_path / other, flavour=None)


def test_a_file_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(UserError, match="cannot be read"):
        source_from_onnx(path, directory=None, flavour=None)
    path.write_text("no protobuf")
    with pytest.raises(UserError, match="not an ONNX file"):
        source_from_onnx(path, directory=None, flavour=None)
    for metadata in ({}, {"config": "[", "flavour": "trt", "source_sha256": ""}):
        model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], []))
        onnx.helper.set_model_props(model, metadata)
        onnx.save(model, str(path))
        with pytest.raises(UserError, match="not an ONNX file that bertjax exported"):
            source_from_onnx(path, directory=None, flavour=None)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("emitter_revision", str(REVISION - 1), f"of emitter revision {REVISION - 1}, today's is {REVISION}; export"),
        ("emitter_revision", "x", "not an ONNX file that bertjax exported"),
        ("flavour", "gpu", "not an ONNX file that bertjax exported"),
        ("config", "[]", "x.onnx: not a JSON object"),
    ],
)
def test_a_file_with_another_record_is_refused(model: Path, tmp_path: Path, name: str, value: str, told: str) -> None:
    path = export_onnx(model, flavour="trt", output=tmp_path / "x.onnx")
    changed = onnx.load(path)
    onnx.helper.set_model_props(changed, {entry.key: entry.value for entry in changed.metadata_props} | {name: value})
    onnx.save(changed, path)
    with pytest.raises(UserError, match=told):
        source_from_onnx(path, directory=None, flavour=None)


def test_a_file_that_someone_changed_is_refused(model: Path, tmp_path: Path) -> None:
    path = export_onnx(model, flavour="trt", output=tmp_path / "x.onnx")
    changed = onnx.load(path)
    changed.graph.node[0].doc_string = "mine"
    onnx.save(changed, path)
    with pytest.raises(UserError, match="x.onnx: changed since bertjax wrote it; export it again with: python export"):
        source_from_onnx(path, directory=model, flavour=None)


def test_weights_that_are_not_beside_the_file_are_missed(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_FROM", 1000)
    path = export_onnx(model, flavour="trt", output=tmp_path / "x.onnx")
    data = tmp_path / "x.onnx.data"
    assert source_from_onnx(path, directory=model, flavour="trt").onnx_path == path
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"x\.onnx\.data: missing or cut short"):
        source_from_onnx(path, directory=None, flavour=None)
    data.unlink()
    with pytest.raises(UserError, match=r"x\.onnx\.data: missing or cut short"):
        source_from_onnx(path, directory=None, flavour=None)


def test_flavours_that_tensorrt_cannot_take_are_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="zero point 128.*use --flavour trt"):
        source_from_directory(model, "cpu")
    path = export_onnx(model, flavour="cpu", output=tmp_path / "x.onnx")
    with pytest.raises(UserError, match="zero point 128"):
        source_from_onnx(path, directory=None, flavour=None)
    with pytest.raises(UserError, match="is of flavour cpu, not trt"):
        source_from_onnx(path, directory=None, flavour="trt")
    write_random_model(tmp_path / "teacher", tiny_config(((1, 32),), quantized=False), seed=0)
    assert source_from_directory(tmp_path / "teacher", "cpu").onnx_path.name == "model.onnx"
