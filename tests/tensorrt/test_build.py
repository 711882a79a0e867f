"""Real engines from NVIDIA's own builder, which needs no GPU in its RTX form."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import pytest

from bertjax.errors import UserError, WorkFailed
from bertjax.onnx.export import export_onnx
from bertjax.tensorrt import binding
from bertjax.tensorrt.build import BuildSettings, build_engine
from bertjax.tensorrt.export import export_engine
from tests.models import tiny_config, write_random_model

SETTINGS = BuildSettings(batch=(1, 2, 4), seq=(16, 32, 64), compute_capability="8.9")


@pytest.fixture
def rtx():
    return pytest.importorskip("tensorrt_rtx")


def test_every_dense_layer_is_an_int8_gemm_and_attention_is_fused(tmp_path: Path, rtx) -> None:
    config = tiny_config(((2, 64), (1, 32), (0, 64), (3, 0), (0, 0)))
    write_random_model(tmp_path / "model", config, seed=0)
    path, account = export_engine(tmp_path / "model", SETTINGS)
    assert [entry.name for entry in account.dense if not entry.int8] == []
    assert len(account.dense) == 6 + 6 + 2 + 4
    assert {entry.kernel for entry in account.dense if entry.name.startswith("layer0/attention/")} == {
        account.dense[0].kernel,  # Q, K and V in one
        account.dense[3].kernel,
    }
    assert all(account.attention.values()) and list(account.attention) == [0, 1, 3]
    assert {entry.quantized_in for entry in account.dense} == {"LayerNormalization", "Gelu", "Softmax"}
    record = json.loads((tmp_path / "model" / "engine.json").read_text())
    assert record["engine_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["profile"] == {"batch": {"min": 1, "opt": 2, "max": 4}, "seq": {"min": 16, "opt": 32, "max": 64}}
    assert record["compute_capability"] == "8.9" and record["versions"]["tensorrt_rtx"] == rtx.__version__


def test_without_quantization_nothing_is_int8(tmp_path: Path, rtx) -> None:
    write_random_model(tmp_path / "model", tiny_config(((2, 64),), quantized=False), seed=0)
    _, account = export_engine(tmp_path / "model", SETTINGS)
    assert {(entry.input_dtype, entry.weight_dtype) for entry in account.dense} == {("Half", "Half")}


def test_a_stale_onnx_is_written_anew(tmp_path: Path, rtx) -> None:
    config = tiny_config(((1, 32),))
    write_random_model(tmp_path / "model", config, seed=0)
    stale = export_onnx(tmp_path / "model", flavour="trt").read_bytes()
    write_random_model(tmp_path / "other", config, seed=1)
    (tmp_path / "other" / "model.trt.onnx").write_bytes(stale)
    export_engine(tmp_path / "other", SETTINGS)
    assert (tmp_path / "other" / "model.trt.onnx").read_bytes() != stale


def test_a_graph_that_tensorrt_refuses_is_told_by_node(tmp_path: Path, rtx) -> None:
    write_random_model(tmp_path / "model", tiny_config(((1, 32),)), seed=0)
    path = export_onnx(tmp_path / "model", flavour="cpu")  # its zero point is 128
    with pytest.raises(WorkFailed, match=r"layer0/.*QuantizeLinear") as caught:
        build_engine(rtx, path, SETTINGS)
    assert "\n" not in str(caught.value)


def test_settings_that_do_not_fit_are_told(tmp_path: Path, rtx) -> None:
    with pytest.raises(UserError, match="--batch 8,1,32"):
        BuildSettings(batch=(8, 1, 32))
    write_random_model(tmp_path / "model", tiny_config(((1, 32),)), seed=0)
    with pytest.raises(UserError, match="max_position_embeddings = 512"):
        export_engine(tmp_path / "model", BuildSettings(seq=(64, 192, 1024)))
    with pytest.raises(UserError, match=r"--compute-capability 9\.0: .* has 7\.5"):
        export_engine(tmp_path / "model", BuildSettings(compute_capability="9.0"))


def test_without_tensorrt_the_install_command_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(UserError, match="pip install tensorrt-rtx-cu13"):
        binding.load_tensorrt()
