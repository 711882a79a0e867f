"""Real engines from NVIDIA's own builder, which needs no GPU in its RTX form."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from bertjax import machine
from bertjax.errors import UserError, WorkFailed
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig
from bertjax.modeldir.untrained import random_model
from bertjax.onnx import export as onnx_export
from bertjax.onnx.export import export_onnx
from bertjax.tensorrt import binding
from bertjax.tensorrt import export as engine_export
from bertjax.tensorrt.build import BuildSettings, build_engine, default_batches
from bertjax.tensorrt.export import export_engine
from bertjax.tensorrt.source import source_from_directory
from tests.models import tiny_config, write_random_model

SETTINGS = BuildSettings(batches=((1, 2, 4),), seq=(16, 32, 64), compute_capability="8.9")


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx")


def source_of(directory: Path, config: BertConfig, *, seed: int = 0, flavour: str = "trt"):
    write_random_model(directory, config, seed=seed)
    return source_from_directory(directory, flavour)


def test_every_dense_layer_is_an_int8_gemm_and_attention_is_fused_in_both_profiles(tmp_path: Path, rtx) -> None:
    config = tiny_config(((2, 64), (1, 32), (0, 64), (3, 0), (0, 0)))
    settings = BuildSettings(batches=default_batches(config), seq=(16, 32, 64), compute_capability="8.9")
    engine = export_engine(source_of(tmp_path / "model", config), settings)
    assert len(engine.accounts) == 2
    for account in engine.accounts:
        assert [entry.name for entry in account.dense if not entry.int8] == []
        assert len(account.dense) == 6 + 6 + 2 + 4
        totals = account.totals()
        assert totals["merged_qkv"] == 3 and totals["int8_kernels"] == 12
        assert [entry.layer for entry in account.attention if entry.kernel] == [0, 1, 3]
        assert totals["attention_dtypes"] == {"Half": 3}
        assert totals["quantized_in"] == {"LayerNorm": 6, "GELU": 3, "attention": 3}
    record = json.loads((tmp_path / "model" / "engine.json").read_text())
    assert record["engine_sha256"] == hashlib.sha256(engine.path.read_bytes()).hexdigest()
    assert [profile["batch"]["max"] for profile in record["profiles"]] == [2, 32]
    assert record["profiles"][0]["seq"] == {"min": 16, "opt": 32, "max": 64}
    assert record["profiles"][1]["account"]["totals"]["int8_gemms"] == 18
    assert (record["library"], record["library_version"]) == ("tensorrt_rtx", rtx.__version__)
    assert record["compute_capability"] == "8.9" and record["account_from"] == "builder log"
    assert record["machine"]["cores"] and record["flavour"] == "trt"


def test_a_batch_of_exactly_one_keeps_attention_fused_unless_a_layer_has_one_head(tmp_path: Path, rtx) -> None:
    assert default_batches(tiny_config(((2, 64), (0, 32))))[0] == (1, 1, 1)
    assert default_batches(tiny_config(((2, 64), (1, 32))))[0] == (1, 1, 2)
    settings = BuildSettings(batches=((1, 1, 1),), seq=(16, 32, 64), compute_capability="8.9")
    engine = export_engine(source_of(tmp_path / "model", tiny_config(((2, 64), (1, 32)))), settings)
    fused = [bool(entry.kernel) for entry in engine.accounts[0].attention]
    assert fused == [True, False], "if TensorRT has learned it, default_batches needs no exception any more"
    assert engine.accounts[0].all_int8


def test_without_quantization_nothing_is_int8(tmp_path: Path, rtx) -> None:
    config = tiny_config(((2, 64),), quantized=False)
    for flavour, dtype in (("trt", "Half"), ("cpu", "Float")):
        engine = export_engine(source_of(tmp_path / "model", config, flavour=flavour), SETTINGS)
        (account,) = engine.accounts
        assert {(entry.input_dtype, entry.weight_dtype) for entry in account.dense} == {(dtype, dtype)}
        assert account.totals()["quantized_in"] == {}
        assert json.loads(engine.record_path.read_text())["flavour"] == flavour


def test_a_stale_onnx_is_written_anew(tmp_path: Path, rtx) -> None:
    config = tiny_config(((1, 32),))
    write_random_model(tmp_path / "model", config, seed=0)
    stale = export_onnx(tmp_path / "model", flavour="trt").read_bytes()
    source = source_of(tmp_path / "other", config, seed=1)
    source.onnx_path.write_bytes(stale)
    export_engine(source, SETTINGS)
    assert source.onnx_path.read_bytes() != stale


def test_weights_beside_the_onnx_file_are_found(tmp_path: Path, rtx, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_export, "EXTERNAL_DATA_FROM", 1000)
    engine = export_engine(source_of(tmp_path / "model", tiny_config(((1, 32),))), SETTINGS)
    assert (tmp_path / "model" / "model.trt.onnx.data").exists()
    assert engine.accounts[0].all_int8


def test_an_engine_whose_log_is_not_understood_is_kept_and_told(tmp_path: Path, rtx, monkeypatch) -> None:
    monkeypatch.setattr(engine_export, "steps_from_log", lambda log: [])
    with pytest.raises(WorkFailed, match="model.engine: written, but the log of tensorrt_rtx .* nothing is known"):
        export_engine(source_of(tmp_path / "model", tiny_config(((1, 32),))), SETTINGS)
    assert json.loads((tmp_path / "model" / "engine.json").read_text())["engine_bytes"] > 0


def test_a_graph_that_tensorrt_refuses_is_told_by_node(tmp_path: Path, rtx) -> None:
    write_random_model(tmp_path / "model", tiny_config(((1, 32),)), seed=0)
    path = export_onnx(tmp_path / "model", flavour="cpu")  # its zero point is 128
    with pytest.raises(WorkFailed, match=r"layer0/.*QuantizeLinear") as caught:
        build_engine(rtx, path, SETTINGS)
    assert "\n" not in str(caught.value)


def test_the_engine_goes_where_it_is_wanted(tmp_path: Path, rtx) -> None:
    source = source_of(tmp_path / "model", tiny_config(((1, 32),)))
    engine = export_engine(source, SETTINGS, output=tmp_path / "new" / "l4.engine")
    assert sorted(os.listdir(tmp_path / "new")) == ["l4.engine", "l4.engine.json"]
    assert engine.record_path == tmp_path / "new" / "l4.engine.json"


def test_settings_that_do_not_fit_are_told_before_anything_is_written(tmp_path: Path, rtx) -> None:
    with pytest.raises(UserError, match="--batch 8,1,32"):
        BuildSettings(batches=((1, 1, 1), (8, 1, 32)))
    with pytest.raises(UserError, match="--workspace-mib"):
        BuildSettings(workspace_bytes=0)
    source = source_of(tmp_path / "model", tiny_config(((1, 32),)))
    before = sorted(os.listdir(tmp_path / "model"))
    with pytest.raises(UserError, match="--seq 1024: .*max_position_embeddings = 512"):
        export_engine(source, BuildSettings(seq=(64, 192, 1024)))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export_engine(source, SETTINGS, output=tmp_path / "file" / "model.engine")
    with pytest.raises(UserError, match="is a folder"):
        export_engine(source, SETTINGS, output=tmp_path / "model")
    with pytest.raises(UserError, match="--timing-cache: tensorrt_rtx measures nothing"):
        export_engine(source, SETTINGS, timing_cache=tmp_path / "cache")
    assert sorted(os.listdir(tmp_path / "model")) == before
    with pytest.raises(UserError, match=r"--compute-capability 9\.0: .* has 7\.5"):
        export_engine(source, BuildSettings(compute_capability="9.0"))
    assert not (tmp_path / "model" / "model.engine").exists()


@pytest.mark.parametrize(("value", "told"), [(np.nan, "NaN"), (0.0, "not positive"), (None, "missing")])
def test_scales_that_cannot_be_are_told_by_name(tmp_path: Path, rtx, value: float | None, told: str) -> None:
    config = tiny_config(((1, 32),))
    source = source_of(tmp_path / "model", config)
    model = random_model(config, seed=0)
    name = "bert.encoder.layer.0.attention.self.input_scale"
    if value is None:
        del model.tensors[name]
    else:
        model.tensors[name][0] = value
    store.save(tmp_path / "model", model, tokenizer_from=tmp_path / "model")
    with pytest.raises(UserError, match=rf"{told}.*: {name}"):
        export_engine(source, SETTINGS)
    assert not list((tmp_path / "model").glob("*.engine"))


@pytest.mark.filterwarnings("ignore:Use Deprecated:DeprecationWarning")
def test_a_timing_cache_is_kept_and_a_broken_one_replaced(tmp_path: Path, rtx, monkeypatch) -> None:
    """On RTX, whose calls are there but do nothing: what is tested is that they are made as the bindings want them."""
    monkeypatch.setattr(engine_export, "has_timing_cache", lambda trt: True)
    source = source_of(tmp_path / "model", tiny_config(((1, 32),)))
    cache = tmp_path / "model" / "model.timing-cache"
    for content in (None, b"broken"):
        if content:
            cache.write_bytes(content)
        export_engine(source, SETTINGS)
        assert cache.read_bytes() not in (b"", content)
    export_engine(source, SETTINGS, timing_cache=tmp_path / "mine")
    assert (tmp_path / "mine").exists()


def test_without_tensorrt_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UserError, match="pip install tensorrt-rtx-cu13"):
        binding.load_tensorrt()


def test_a_driver_is_asked_for_name_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    class Driver:
        devices = 1

        def cuInit(self, flags: int) -> int:
            return 0

        def cuDeviceGet(self, device, ordinal: int) -> int:
            return 0 if ordinal < self.devices else 101

        def cuDeviceGetName(self, name, size: int, device) -> int:
            name.value = b"NVIDIA L4"
            return 0

        def cuDeviceGetAttribute(self, value, attribute: int, device) -> int:
            value._obj.value = {75: 8, 76: 9}[attribute]
            return 0

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Driver())
    assert machine.find_gpu() == machine.Gpu(name="NVIDIA L4", compute_capability="8.9")
    monkeypatch.setattr(Driver, "devices", 0)
    assert machine.find_gpu() is None
