import json
import os
import shutil

import numpy as np
import pytest

from bertjax import machine
from bertjax.engines import choose
from bertjax.engines.backend import CPU_ENGINES
from bertjax.engines.choose import open_backend
from bertjax.engines.kernels import check_engine
from bertjax.engines.onnxruntime import OnnxRuntimeBackend
from bertjax.engines.openvino import OpenVINOBackend
from bertjax.errors import UserError
from bertjax.identity import digest_file
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig
from tests.models import tiny_config, write_random_model

LENGTHS = (128, 77, 40)


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    mask = (np.arange(128) < np.array(LENGTHS)[:, None]).astype(np.int64)
    types = ((np.arange(128) >= 12).astype(np.int64)) * mask
    return rng.integers(5, 100, (3, 128)) * mask, mask, types


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("plain") / "teacher"
    write_random_model(directory, tiny_config(quantized=False), seed=3)
    return directory


def valid(logits):
    return np.concatenate([row[:length] for part in logits for row, length in zip(part, LENGTHS, strict=True)])


def test_the_engines_agree_on_an_unquantized_model(plain_model, inputs):
    found = {}
    for name in ("onnxruntime", "openvino", "jax"):
        opened = open_backend(name, plain_model, streams=1, threads=1, longest=128)
        starts, ends = opened.infer(*inputs)
        assert starts.shape == ends.shape == (3, 128) and starts.dtype == ends.dtype == np.float32
        found[name] = valid((starts, ends))
    np.testing.assert_allclose(found["openvino"], found["onnxruntime"], atol=1e-4)
    np.testing.assert_allclose(found["jax"], found["onnxruntime"], atol=1e-4)


def test_the_engines_agree_on_an_int8_model(run_dir, inputs):
    """By relative L2: a rounding flipped by the last bit of a sum moves single logits by more than any tolerance."""
    directory, found = run_dir / "student-int8", {}
    for name in ("onnxruntime", "openvino", "jax"):
        opened = open_backend(name, directory, streams=1, threads=1, longest=128)
        found[name] = valid(opened.infer(*inputs))
    config = BertConfig.from_json(directory / "config.json")
    graph = choose.cpu_graph(directory, config)
    exact = OpenVINOBackend(graph, config, streams=1, threads=1, bf16=False)
    found["openvino, f32"] = valid(exact.infer(*inputs))
    # In bfloat16, which OpenVINO uses where it can, what is left in float errs by 0.02 to 0.05 on random models.
    for name, tolerance in (("onnxruntime", 0.01), ("openvino, f32", 0.01), ("openvino", 0.1)):
        error = np.linalg.norm(found[name] - found["jax"]) / np.linalg.norm(found["jax"])
        assert error < tolerance, f"{name}: {error}"


def test_saturating_inputs_stay_exact(tmp_path):
    """Large weights against large activations: 16-bit sums of two products would overflow here."""
    directory, config = tmp_path / "model", tiny_config(((2, 64),), head_size=32)
    write_random_model(tmp_path / "start", config, seed=5)
    model = store.load_question_answering(tmp_path / "start")
    parameters = model.tensors
    for name, value in parameters.items():
        if name.endswith("output.dense.weight") or name.endswith("intermediate.dense.weight"):
            parameters[name] = np.sign(value) * parameters[f"{name}_scale"][:, None] * 127
    store.save(directory, model, tokenizer_from=tmp_path / "start")
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 100, (2, 128))
    feed = ids, np.ones_like(ids), np.zeros_like(ids)
    wanted = open_backend("jax", directory, streams=1, threads=1, longest=128).infer(*feed)
    graph, alone = choose.cpu_graph(directory, config), {"streams": 1, "threads": 1}
    # In bfloat16 what is left in float errs by up to 0.05 here, as much as saturated sums would.
    engines = OnnxRuntimeBackend(graph, config, **alone), OpenVINOBackend(graph, config, **alone, bf16=False)
    for engine in engines:
        error = np.linalg.norm(np.subtract(engine.infer(*feed), wanted)) / np.linalg.norm(wanted)
        assert error < 0.01, f"{engine.name}: {error}"


@pytest.mark.parametrize("signed", [False, True])
def test_openvino_multiplies_both_forms_of_the_grid(run_dir, inputs, monkeypatch, signed):
    config = BertConfig.from_json(run_dir / "student-int8" / "config.json")
    graph = choose.cpu_graph(run_dir / "student-int8", config)
    monkeypatch.setattr(machine, "multiplies_signed", lambda: signed)
    opened = OpenVINOBackend(graph, config, streams=1, threads=1, bf16=False)
    wanted = valid(
        open_backend("onnxruntime", run_dir / "student-int8", streams=1, threads=1, longest=128).infer(*inputs)
    )
    assert np.linalg.norm(valid(opened.infer(*inputs)) - wanted) < 0.01 * np.linalg.norm(wanted)
    forms = {kernel[-2:] for kernel in opened.node_kernels().values() if opened.integer_kernels.fullmatch(kernel)}
    assert forms == (set() if machine.saturates_int8() else {"i8" if signed else "I8"})


def test_signed_activations_keep_an_input_that_nothing_reads(tmp_path, inputs, monkeypatch):
    config = tiny_config(((0, 64), (0, 32)))
    write_random_model(tmp_path / "student", config, seed=0)
    monkeypatch.setattr(machine, "multiplies_signed", lambda: True)
    opened = OpenVINOBackend(choose.cpu_graph(tmp_path / "student", config), config, streams=1, threads=1)
    opened.compile_shapes([inputs[0].shape])
    assert np.isfinite(opened.infer(*inputs)).all()


@pytest.mark.parametrize("name", CPU_ENGINES)
def test_every_dense_layer_runs_on_an_integer_kernel(run_dir, plain_model, name):
    kernels, description = check_engine(run_dir / "student-int8", name)
    assert len(kernels) == 12 and "not found" not in {entry.kernel for entry in kernels}
    switched_off = name == "openvino" and machine.saturates_int8()
    assert {entry.integer for entry in kernels} == {not switched_off}, [description, kernels]
    plain, _ = check_engine(plain_model, name)
    assert {entry.integer for entry in plain} == {False} and "not found" not in {entry.kernel for entry in plain}


def test_switched_off_integer_kernels_are_noticed_and_come_from_no_cache(run_dir, monkeypatch):
    check_engine(run_dir / "student-int8", "openvino")  # leaves a compiled model behind
    monkeypatch.setattr(machine, "saturates_int8", lambda: True)
    kernels, description = check_engine(run_dir / "student-int8", "openvino")
    assert {entry.integer for entry in kernels} == {False} and "INT8 grid in FP32" in description


def test_a_compiled_model_is_kept_and_never_served_stale(tmp_path, inputs):
    """The second graph has the first one's place, size and time of change."""
    config, graphs = tiny_config(quantized=False), []
    for seed in (1, 2):
        write_random_model(tmp_path / str(seed), config, seed=seed)
        graphs.append(choose.cpu_graph(tmp_path / str(seed), config))
    first, second = graphs
    fresh = [OpenVINOBackend(graph, config, streams=1, threads=1).infer(*inputs) for graph in graphs]
    (compiled,) = tmp_path.glob("1/model.onnx.openvino/*/*")
    written = compiled.stat().st_mtime_ns
    again = OpenVINOBackend(first, config, streams=1, threads=1).infer(*inputs)
    assert compiled.stat().st_mtime_ns == written
    np.testing.assert_array_equal(again, fresh[0])

    times, size = first.stat(), first.stat().st_size
    shutil.copyfile(second, first)
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert first.stat().st_size == size
    np.testing.assert_array_equal(OpenVINOBackend(first, config, streams=1, threads=1).infer(*inputs), fresh[1])
    assert not compiled.exists()


def _change(content: bytes) -> bytes:
    """Bytes among the first weights inverted: OpenVINO reads that, and logits are off by 2."""
    return content[:20_000] + bytes(255 - value for value in content[20_000:30_000]) + content[30_000:]


@pytest.mark.parametrize("spoil", [_change, lambda content: content[: len(content) // 2], lambda content: b""])
def test_a_compiled_model_that_changed_or_broke_is_made_again_and_said(tmp_path, inputs, capsys, spoil):
    config = tiny_config(quantized=False)
    write_random_model(tmp_path / "teacher", config, seed=1)
    graph = choose.cpu_graph(tmp_path / "teacher", config)
    wanted = OpenVINOBackend(graph, config, streams=1, threads=1).infer(*inputs)
    (compiled,) = tmp_path.glob("teacher/model.onnx.openvino/*/*")
    compiled.write_bytes(spoil(compiled.read_bytes()))
    found = OpenVINOBackend(graph, config, streams=1, threads=1).infer(*inputs)
    assert "not what OpenVINO compiled here; compiled again" in capsys.readouterr().out
    np.testing.assert_array_equal(found, wanted)
    OpenVINOBackend(graph, config, streams=1, threads=1)
    assert capsys.readouterr().out == ""


def test_compiled_models_of_two_layouts_are_both_kept(tmp_path, capsys):
    config = tiny_config(quantized=False)
    write_random_model(tmp_path / "teacher", config, seed=1)
    graph = choose.cpu_graph(tmp_path / "teacher", config)
    for streams in (1, 2, 1, 2):
        OpenVINOBackend(graph, config, streams=streams, threads=1)
    assert capsys.readouterr().out == ""
    (record,) = tmp_path.glob("teacher/model.onnx.openvino/*.json")
    compiled = list(record.with_suffix("").iterdir())
    assert {path.name: digest_file(path) for path in compiled} == json.loads(record.read_text())


def test_a_place_that_cannot_be_written_keeps_no_compiled_model(plain_model, inputs):
    config = BertConfig.from_json(plain_model / "config.json")
    graph = choose.cpu_graph(plain_model, config)
    place = graph.with_name("model.onnx.openvino")
    shutil.rmtree(place, ignore_errors=True)
    place.write_text("")  # in the way, for root too
    try:
        starts, _ = OpenVINOBackend(graph, config, streams=1, threads=1).infer(*inputs)
    finally:
        place.unlink()
    assert np.isfinite(starts).all()


def test_auto_follows_the_cpu(run_dir, plain_model, monkeypatch):
    def opened(directory):
        return open_backend("auto", directory, streams=1, threads=1, longest=128).name

    monkeypatch.setattr(machine, "saturates_int8", lambda: True)
    assert opened(run_dir / "student-int8") == "onnxruntime"
    assert opened(plain_model) == "openvino"


def test_a_stale_graph_is_exported_again(plain_model, inputs):
    first = open_backend("onnxruntime", plain_model, streams=1, threads=1, longest=128).infer(*inputs)
    config = BertConfig.from_json(plain_model / "config.json")
    graph = choose.cpu_graph(plain_model, config)
    before = graph.stat().st_mtime_ns
    assert choose.cpu_graph(plain_model, config).stat().st_mtime_ns == before
    write_random_model(plain_model, config, seed=4)
    second = open_backend("onnxruntime", plain_model, streams=1, threads=1, longest=128).infer(*inputs)
    assert not np.allclose(first, second)


@pytest.mark.parametrize(
    ("name", "told"), [("vulkan", "choose one of"), ("tensorrt", "make it with: python export/to_trt.py")]
)
def test_a_backend_that_cannot_run_says_why(plain_model, name, told):
    with pytest.raises(UserError, match=told):
        open_backend(name, plain_model, streams=1, threads=1, longest=128)


def test_the_noop_backend_answers_zeros_of_the_callers_own(plain_model, inputs):
    opened = open_backend("noop", plain_model, streams=3, threads=1, longest=128)
    starts, ends = opened.infer(*inputs)
    assert opened.streams == 3 and starts.shape == ends.shape == (3, 128) and starts.dtype == ends.dtype == np.float32
    starts += 1
    assert not ends.any() and not opened.infer(*inputs)[0].any()


def test_a_missing_library_is_named(plain_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        open_backend("onnxruntime", plain_model, streams=1, threads=1, longest=128)
