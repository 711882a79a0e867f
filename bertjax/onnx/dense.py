"""Dense layers, plain or with INT8 inputs and weights written as explicit Q/DQ.

The grid (docs/design.md, numerics) is symmetric: activations `clip(round_half_even(x / s), -128, 127)` with one scale
per tensor, weights `clip(round_half_even(w / s), -127, 127)` with one scale per output channel. Where a dense layer's
input has a scale for each feature (`model/fakequant.py`), a Mul brings the features to the widest one's range before
they are rounded, and the weight is scaled the other way: engines fuse the Mul, and the weight costs nothing.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from bertjax.modeldir.tensors import DenseSite, feature_factors
from bertjax.modeldir.weights import Tensors
from bertjax.onnx.graph import ZERO_POINT, Graph, onnx_dtype


def weight_integers(weight: np.ndarray, scale: np.ndarray, input_scale: np.ndarray) -> np.ndarray:
    """The INT8 integers of a weight.

    Args:
      weight: float32 `[out, in]`.
      scale: float32 `[out]`, positive.
      input_scale: of its input, float32 `[]` or `[in]`, positive.

    Returns:
      int8 `[out, in]`, within +-127.
    """
    folded = weight * feature_factors(input_scale)
    return np.clip(np.rint(folded / scale[:, None]), -127, 127).astype(np.int8)


def add_grid(graph: Graph, scope: str, x: str, scale_name: str, scale: np.ndarray) -> str:
    """Round an activation to its INT8 grid: QuantizeLinear and DequantizeLinear, in float32 whatever the body is.

    With a scale for each feature, every feature is brought to the range of the widest one first. `add_dense` and
    `undo_factors` bring it back.
    """
    half = graph.flavour.body is not np.float32
    zero_point = graph.constant(ZERO_POINT, graph.flavour.zero_point, graph.flavour.zero_point.dtype)
    if half:
        x = graph.node(f"{scope}/CastToFloat", "Cast", x, to=onnx_dtype(np.float32))
    if scale.ndim:
        widen = graph.constant(f"{scale_name}/widen", scale.max() / scale, np.float32)
        x = graph.node(f"{scope}/Mul", "Mul", x, widen)
    step = graph.constant(scale_name, scale.max(), np.float32)
    x = graph.node(f"{scope}/QuantizeLinear", "QuantizeLinear", x, step, zero_point)
    x = graph.node(f"{scope}/DequantizeLinear", "DequantizeLinear", x, step, zero_point)
    return graph.node(f"{scope}/CastToHalf", "Cast", x, to=onnx_dtype(np.float16)) if half else x


def with_signed_activations(content: bytes) -> bytes:
    """An emitted file with its activations as int8 around 0 instead of uint8 around 128: the same grid.

    A file of another maker, whose zero points are not one initialiser, keeps its own.

    Raises:
      google.protobuf.message.DecodeError: not an ONNX file.
    """
    model = onnx.load_from_string(content)
    for tensor in model.graph.initializer:
        if tensor.name == ZERO_POINT:
            tensor.CopyFrom(numpy_helper.from_array(np.array(0, np.int8), ZERO_POINT))
    return model.SerializeToString()


def undo_factors(graph: Graph, scope: str, x: str, scale_name: str, scale: np.ndarray) -> str:
    """An activation that `add_grid` rounded, back in its own range, in the body's dtype."""
    if not scale.ndim:
        return x
    return graph.node(f"{scope}/undo/Mul", "Mul", x, graph.parameter(f"{scale_name}/factors", feature_factors(scale)))


def add_dense(graph: Graph, scope: str, x: str, parameters: Tensors, site: DenseSite) -> str:
    """`x @ weight.T + bias`: `[batch, seq, in]` to `[batch, seq, out]`.

    `x` is already on its INT8 grid where the model is quantized.
    """
    if site.weight_scale in parameters:
        kernel = _add_integer_kernel(graph, scope, parameters, site)
    else:
        kernel = graph.parameter(site.weight, parameters[site.weight].T)
    x = graph.node(f"{scope}/MatMul", "MatMul", x, kernel)
    return graph.node(f"{scope}/Add", "Add", x, graph.parameter(site.bias, parameters[site.bias]))


def _add_integer_kernel(graph: Graph, scope: str, parameters: Tensors, site: DenseSite) -> str:
    """An int8 weight with a DequantizeLinear over its output channels: axis 1 of the `[in, out]` that MatMul takes."""
    weight, scales = parameters[site.weight], parameters[site.weight_scale]
    integers = graph.constant(site.weight, weight_integers(weight, scales, parameters[site.input_scale]).T, np.int8)
    steps = graph.constant(site.weight_scale, scales, np.float32)
    zeros = graph.constant(f"{site.name}.weight_zero_point", np.zeros(site.outputs), np.int8)
    kernel = graph.node(f"{scope}/weight/DequantizeLinear", "DequantizeLinear", integers, steps, zeros, axis=1)
    if graph.flavour.body is np.float32:
        return kernel
    return graph.node(f"{scope}/weight/CastToHalf", "Cast", kernel, to=onnx_dtype(np.float16))
