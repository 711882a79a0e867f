"""The emitted graph computes what docs/design.md says, in both flavours, whatever the layers' shapes."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from bertjax.errors import UserError
from bertjax.modeldir.config import BertConfig, LayerShape, Quantization
from bertjax.modeldir.tensors import dense_sites
from bertjax.modeldir.untrained import random_model
from bertjax.onnx.dense import with_signed_activations
from bertjax.onnx.emit import dense_scopes, emit
from bertjax.onnx.graph import CPU, FLAVOURS, TRT, Flavour
from tests.models import PLACEMENTS, tiny_config
from tests.onnx.reference import Reference


def make_batch(config: BertConfig, batch: int, seq: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random tokens; every sequence but the first is padded to a random length."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, seq + 1, batch)
    lengths[0] = seq
    return {
        "input_ids": rng.integers(0, config.vocab_size, (batch, seq)),
        "attention_mask": (np.arange(seq) < lengths[:, None]).astype(np.int64),
        "token_type_ids": rng.integers(0, config.type_vocab_size, (batch, seq)),
    }


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    # Without VNNI the default uint8 x int8 kernels saturate 16-bit sums; this asks for exact ones.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def run_onnx(model: onnx.ModelProto, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Logits `[2, batch, seq]` from ONNX Runtime."""
    return np.stack(open_session(model).run(["start_logits", "end_logits"], inputs))


def relative_l2(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize(("flavour", "tolerance"), [(CPU, 1e-4), (TRT, 2e-2)])
def test_unquantized_graph_matches_transformers(flavour: Flavour, tolerance: float) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = tiny_config(((2, 96), (2, 96), (2, 96)), quantized=False)
    model = random_model(config, seed=1)
    theirs = {key: value for key, value in config.to_dict().items() if not key.endswith("_per_layer")}
    witness = transformers.BertForQuestionAnswering(transformers.BertConfig(**theirs)).eval()
    witness.load_state_dict({name: torch.tensor(value) for name, value in model.tensors.items()})
    inputs = make_batch(config, 3, 17)
    with torch.no_grad():
        wanted = witness(**{name: torch.tensor(value) for name, value in inputs.items()})
    wanted = np.stack([wanted.start_logits.numpy(), wanted.end_logits.numpy()])
    np.testing.assert_allclose(run_onnx(emit(model, flavour), inputs), wanted, atol=tolerance)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_quantized_cpu_graph_is_exact_on_a_tiny_shape(placement: Quantization) -> None:
    config = tiny_config(((2, 64), (1, 32)), quantized=placement)
    # A value on a rounding boundary may fall to either side in float32, so take a model where none is near one.
    for seed in range(100):
        reference = Reference(random_model(config, seed=seed))
        inputs = make_batch(config, 2, 5, seed=seed)
        wanted = reference.run(**inputs)
        if reference.margin > 2e-4:
            break
    assert reference.margin > 2e-4
    np.testing.assert_allclose(run_onnx(emit(reference.model, CPU), inputs), wanted, atol=2e-5)


def test_signed_activations_name_the_same_grid() -> None:
    config = tiny_config()
    content = emit(random_model(config, seed=0), CPU).SerializeToString()
    signed = onnx.load_from_string(with_signed_activations(content))
    onnx.checker.check_model(signed, full_check=True)
    (zero_point,) = {node.input[2] for node in signed.graph.node if node.op_type == "QuantizeLinear"}
    (value,) = (numpy_helper.to_array(each) for each in signed.graph.initializer if each.name == zero_point)
    assert value.dtype == np.int8 and value == 0
    inputs = make_batch(config, 2, 9)
    np.testing.assert_allclose(run_onnx(signed, inputs), run_onnx(onnx.load_from_string(content), inputs), atol=1e-6)


TOKENS = 128


@st.composite
def configs(draw: st.DrawFn) -> BertConfig:
    """One to three layers, each with 0 to 8 heads and 0 to 768 FFN units, hidden 64 to 512, any placement.

    One to three token types: a table of two is written in a form of its own.
    """
    head_size = draw(st.sampled_from([16, 32, 64]))
    ffn = st.integers(0, 24).map(lambda groups: 32 * groups)
    layers = draw(st.lists(st.builds(LayerShape, heads=st.integers(0, 8), ffn=ffn), min_size=1, max_size=3))
    return dataclasses.replace(
        tiny_config(),
        hidden_size=head_size * draw(st.integers(64 // head_size, 512 // head_size)),
        head_size=head_size,
        type_vocab_size=draw(st.integers(1, 3)),
        layers=tuple(layers),
        quantization=draw(st.sampled_from([None, *PLACEMENTS])),
    )


@settings(max_examples=15, deadline=None)
@given(
    config=configs(),
    batch=st.integers(1, 3),
    seq=st.integers(1, 33),
    flavour=st.sampled_from([CPU, TRT]),
    seed=st.integers(0, 1000),
)
def test_any_shape_matches_the_reference(config: BertConfig, batch: int, seq: int, flavour: Flavour, seed: int) -> None:
    model = random_model(config, seed=seed)
    # Over a handful of tokens a few roundings that float16 turns can be any share of the whole, so there are many.
    batches = [make_batch(config, batch, seq, seed=seed + each) for each in range(-(-TOKENS // (batch * seq)))]
    graph = emit(model, flavour)
    onnx.checker.check_model(graph, full_check=True)
    session = open_session(graph)
    found = np.concatenate([session.run(["start_logits", "end_logits"], inputs) for inputs in batches], axis=1)
    rows = {name: np.concatenate([inputs[name] for inputs in batches]) for name in batches[0]}
    wanted = Reference(model).run(**rows)
    unrounded = Reference(dataclasses.replace(model, config=dataclasses.replace(config, quantization=None))).run(**rows)
    exact = 1e-5 if flavour is CPU else 1e-2
    # Roundings that fall to the other side change less than what all roundings together change.
    assert relative_l2(found, wanted) < exact + 0.25 * relative_l2(unrounded, wanted)


@pytest.mark.parametrize("flavour", [CPU, TRT])
def test_weights_are_int8_and_qkv_share_one_quantize_linear(flavour: Flavour) -> None:
    config = tiny_config(((2, 64), (0, 32), (1, 0), (0, 0)))
    model = random_model(config, seed=0)
    model.tensors["bert.encoder.layer.0.output.dense.weight"][0, :2] = (-100.0, 100.0)  # has to be clipped
    graph = emit(model, flavour).graph
    initializers = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight = initializers["bert.encoder.layer.0.output.dense.weight"]
    assert weight.dtype == np.int8 and weight.shape == (64, 32)
    assert (weight.min(), weight.max()) == (-127, 127)
    quantize = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantize) == 4 + 2 + 2
    zero_point = initializers[quantize[0].input[2]]
    assert (zero_point.dtype, int(zero_point)) == ((np.uint8, 128) if flavour is CPU else (np.int8, 0))
    dequantized = "layer0/attention/input/" + ("DequantizeLinear" if flavour is CPU else "CastToHalf")
    readers = sorted(node.name for node in graph.node if dequantized in node.input)
    assert readers == [f"layer0/attention/{part}/MatMul" for part in ("key", "query", "value")]


def test_trt_flavour_is_float16_outside_its_float32_islands() -> None:
    config = tiny_config()
    model = onnx.shape_inference.infer_shapes(emit(random_model(config, seed=0), TRT))
    dtypes = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    dense_inputs = [node.input for node in model.graph.node if node.name.startswith("layer") and "MatMul" in node.name]
    assert len(dense_inputs) == 2 * 8
    assert {dtypes[name] for pair in dense_inputs for name in pair} == {onnx.TensorProto.FLOAT16}
    scales = [node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"]
    stored = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {stored[name] for name in scales} == {onnx.TensorProto.FLOAT}


def test_a_weight_that_float16_cannot_hold_is_told_by_name() -> None:
    config = tiny_config(quantized=False)
    model = random_model(config, seed=0)
    model.tensors["bert.encoder.layer.1.output.dense.bias"][3] = 70000.0
    emit(model, CPU)
    with pytest.raises(
        UserError, match=r"bert\.encoder\.layer\.1\.output\.dense\.bias.*65504, which flavour trt cannot"
    ):
        emit(model, TRT)


def test_every_dense_layer_says_where_it_is_in_the_graph() -> None:
    config = tiny_config(((2, 64), (0, 32), (1, 0)))
    model = random_model(config, seed=0)
    nodes = {node.name: node.input for node in emit(model, CPU).graph.node}
    scopes = dense_scopes(config)
    assert list(scopes) == [site.name for site in dense_sites(config)]
    for name, scope in scopes.items():
        assert f"{name}.bias" in nodes[f"{scope}/Add"] and f"{scope}/MatMul" in nodes[f"{scope}/Add"]


def test_a_flavour_is_found_by_its_own_name() -> None:
    assert {name: flavour.name for name, flavour in FLAVOURS.items()} == {"cpu": "cpu", "trt": "trt"}
