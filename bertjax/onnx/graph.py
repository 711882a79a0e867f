"""Building an ONNX graph node by node, and the two flavours that differ in how numbers are held and steps cut."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from bertjax.errors import UserError

FlavourName = Literal["cpu", "trt"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flavour:
    """The form in which one target takes the same numbers.

    The two hold the same grid: uint8 with zero point 128 and int8 with zero point 0 name the same 256 values.
    """

    name: FlavourName
    body: type[np.floating]  # dtype of everything between the quantized products
    zero_point: np.integer  # of quantized activations; its dtype is theirs
    for_openvino: bool  # steps in the forms that OpenVINO runs fastest; ONNX Runtime runs either as fast


# ONNX Runtime and OpenVINO have fast uint8 x int8 products; TensorRT refuses a zero point other than 0.
CPU = Flavour(name="cpu", body=np.float32, zero_point=np.uint8(128), for_openvino=True)
TRT = Flavour(name="trt", body=np.float16, zero_point=np.int8(0), for_openvino=False)
FLAVOURS: dict[FlavourName, Flavour] = {"cpu": CPU, "trt": TRT}

ZERO_POINT = "constant/zero_point"  # the initialiser that every quantized activation shares


def onnx_dtype(dtype: Any) -> int:
    """The ONNX element type of a NumPy dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


class Graph:
    """Nodes and initialisers in the order of their making. A node's one output has the node's own name."""

    def __init__(self, flavour: Flavour) -> None:
        self.flavour = flavour
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, onnx.TensorProto] = {}

    def node(self, name: str, op: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes: Any) -> str:
        """Append one node and return the name of its first output."""
        outputs = outputs or (name,)
        self._nodes.append(helper.make_node(op, list(inputs), list(outputs), name=name, **attributes))
        return outputs[0]

    def constant(self, name: str, value: Any, dtype: Any) -> str:
        """Add an initialiser; the same name stands for the same value, so it is stored once."""
        if name not in self._initializers:
            array = np.asarray(np.asarray(value).astype(dtype), order="C")
            self._initializers[name] = numpy_helper.from_array(array, name)
        return name

    def parameter(self, name: str, value: np.ndarray) -> str:
        """Add a floating-point tensor of the model in the flavour's dtype.

        Raises:
          UserError: it holds numbers that this dtype cannot.
        """
        limit = np.finfo(self.flavour.body).max
        if np.abs(value).max(initial=0.0) > limit:
            raise UserError(f"{name} holds values beyond {limit:g}, which flavour {self.flavour.name} cannot store")
        return self.constant(name, value, self.flavour.body)

    def scalar(self, value: float) -> str:
        """A constant of the flavour's dtype, named by its value."""
        return self.constant(f"constant/float/{value!r}", value, self.flavour.body)

    def integers(self, values: list[int]) -> str:
        """A one-dimensional int64 constant, named by its values."""
        return self.constant("constant/int/" + "x".join(map(str, values)), values, np.int64)

    def finish(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.GraphProto:
        return helper.make_graph(self._nodes, "bertjax", inputs, outputs, initializer=list(self._initializers.values()))
