"""Reading an engine's steps in the forms in which the versions of TensorRT write them. Without TensorRT."""

from __future__ import annotations

import json

from bertjax.tensorrt.steps import Tensor, steps_from_inspector, steps_from_log

NODES = "[ONNX Layer: layer0/ffn/in/MatMul][ONNX Layer: layer0/ffn/in/weight/DequantizeLinear]"
WEIGHT = Tensor("__mye1_dconst", 2048, "Int8")
GEMM = {"kind": "gemm", "inputs": (Tensor("x", 32, "Int8"),), "outputs": (Tensor("y", 64, "Float"),), "tactic": "t"}


def told(step):
    return {name: getattr(step, name) for name in GEMM}


def test_rtx_lists_constants_apart() -> None:
    (step,) = steps_from_log(
        "Layers:\nName: g_myl0_3, LayerType: gemm, "
        "Inputs: [ { Name: x, Dimensions: [-1,32], Strides: [32,1], StrideOrder: [1,0], Datatype: Int8, "
        "Format: (Linear) Row major linear format }], "
        "Constants: [ { Name: __mye1_dconst, Dimensions: [32,64], Strides: [64,1], Datatype: Int8, Format: f }], "
        "Outputs: [ { Name: y, Dimensions: [-1,64], Strides: [64,1], Datatype: Float, Format: f }], "
        f"TacticName: t, StreamId: 0, Metadata: {NODES}\nEngine generation completed."
    )
    assert told(step) == GEMM and step.constants == (WEIGHT,)
    assert step.nodes == {"layer0/ffn/in/MatMul", "layer0/ffn/in/weight/DequantizeLinear"}


def test_tensorrt_10_mixes_constants_with_inputs() -> None:
    (step,) = steps_from_log(
        "Name: g_myl0_3, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [-1,32], Format/Datatype: Int8 }, "
        "{ Name: __mye1_dconst, Dimensions: [32,64], Format/Datatype: Int8 }, "
        "{ Name: __mye2layer0/ffn/in/MatMul_alpha, Dimensions: [1], Format/Datatype: Float }], "
        "Outputs: [ { Name: y, Dimensions: [-1,64], Format/Datatype: Float }], "
        f"TacticName: t, StreamId: 0, Metadata: {NODES}"
    )
    assert told(step) == GEMM and step.constants[0] == WEIGHT


def test_a_step_outside_the_compilers_graphs() -> None:
    (step,) = steps_from_log(
        "Name: Reformatting CopyNode for Input Tensor 0 to a, LayerType: Reformat, "
        "Inputs: [ { Name: x, Location: Device, Dimensions: [1,3], Format/Datatype: Row major linear FP16 format }], "
        "Outputs: [ { Name: y, Location: Device, Dimensions: [1,3], Format/Datatype: Row major Int8 format }], "
        "ParameterType: Reformat, Origin: REFORMAT, TacticValue: 0x0, StreamId: 0, Metadata: "
    )
    assert step.inputs == (Tensor("x", 3, "Half"),) and step.outputs == (Tensor("y", 3, "Int8"),)
    assert step.tactic == "" and step.nodes == frozenset()


def test_a_graph_has_the_profile_of_its_marked_steps() -> None:
    line = "Name: {name}, LayerType: kgen, Inputs: [{reads}], Constants: [], Outputs: [], TacticName: , Metadata: "
    marked = " { Name: input_ids [profile 1], Dimensions: [-1,-1], Strides: [-1,1], Datatype: Int64, Format: f }"
    names = ["a_myl0_0", "shape_myl1_0", "b_myl1_1", "c [profile 1]_U7_myl1_2", "plain"]
    reads = ["", "", marked, "", ""]
    log = "\n".join(line.format(name=name, reads=read) for name, read in zip(names, reads, strict=True))
    assert [step.profile for step in steps_from_log(log)] == [0, 1, 1, 1, 0]


def test_the_inspector_tells_the_same() -> None:
    for dtype in ({"Datatype": "Int8", "Format": "f"}, {"Format/Datatype": "Int8"}):
        layer = {
            "Name": "g_myl0_3",
            "LayerType": "gemm",
            "Inputs": [{"Name": "x", "Dimensions": [-1, 32], **dtype}],
            "Constants": [{"Name": "__mye1_dconst", "Dimensions": [32, 64], **dtype}],
            "Outputs": [{"Name": "y", "Dimensions": [-1, 64], "Datatype": "Float"}],
            "TacticName": "t",
            "Metadata": NODES,
        }
        (step,) = steps_from_inspector(json.dumps({"Layers": [layer], "Bindings": ["x"]}))
        assert told(step) == GEMM and step.constants == (WEIGHT,) and len(step.nodes) == 2
    assert steps_from_inspector('{"Layers": ["g_myl0_3"]}') == []  # built without detailed verbosity
