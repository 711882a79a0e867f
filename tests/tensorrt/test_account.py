"""Reading the builder's log, without TensorRT: a kernel kept in INT8 and one that is not."""

from __future__ import annotations

from bertjax.tensorrt.account import format_account, make_account, read_engine_layers
from tests.models import tiny_config


def _line(name: str, kind: str, reads: str, constants: list[tuple[str, str]], nodes: list[str]) -> str:
    held = ", ".join(
        f"{{ Name: c, Dimensions: [{dims}], Strides: [1], Datatype: {dtype}, Format: x }}" for dims, dtype in constants
    )
    metadata = "".join(f"[ONNX Layer: {node}]" for node in nodes)
    return (
        f"Name: {name}, LayerType: {kind}, Inputs: [ {{ Name: x, Dimensions: [-1,32], Strides: [32,1], "
        f"Datatype: {reads}, Format: (Linear) Row major linear format }}], Constants: [ {held}], "
        "Outputs: [ { Name: y, Dimensions: [-1,64], Strides: [64,1], Datatype: Float, Format: x }], "
        f"TacticName: stub, StreamId: 0, Metadata: {metadata}"
    )


LOG = "\n".join(
    [
        "Engine generation completed in 0.6 seconds.",
        "Layers:",
        _line("k1", "kgen", "Half", [], ["layer0/ffn/in/input/QuantizeLinear", "layer0/attention/LayerNormalization"]),
        _line("g1", "gemm", "Int8", [("32,64", "Int8"), ("1", "Float")], ["layer0/ffn/in/MatMul"]),
        _line("k2", "kgen", "Float", [("1,64", "Half")], ["layer0/ffn/in/MatMul", "layer0/ffn/in/Add"]),
        _line("k3", "kgen", "Half", [], ["layer0/ffn/out/input/QuantizeLinear"]),
        _line("g2", "gemm", "Half", [("64,32", "Half")], ["layer0/ffn/out/MatMul"]),
        "Name: s, LayerType: signal, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, Metadata: ",
    ]
)


def test_int8_needs_int8_activations_and_int8_weights() -> None:
    config = tiny_config(((0, 64),))
    account = make_account(config, read_engine_layers(LOG))
    inner, outer = account.dense
    assert (inner.kernel, inner.int8, inner.quantized_in) == ("g1", True, "LayerNormalization")
    assert (outer.kernel, outer.int8, outer.quantized_in) == ("g2", False, "alone")
    assert not account.all_int8
    assert account.kernels == {"kgen": 3, "gemm": 2, "signal": 1}
    table = format_account(config, account)
    assert "INT8 GEMMs: 1 of 2 encoder dense layers, in 1 kernels" in table
    assert table.splitlines()[1].split() == ["0", "0", "64", "-", "-", "-", "Int8", "Half", "1", "of", "2"]


def test_a_dense_layer_that_the_log_lacks_is_not_int8() -> None:
    account = make_account(tiny_config(((1, 0),)), read_engine_layers(LOG))
    assert {entry.kernel for entry in account.dense} == {"not found"}
    assert account.attention == {0: ""}
    assert not account.all_int8
