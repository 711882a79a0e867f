"""Dense layers, plain or with INT8 inputs and weights written as explicit Q/DQ.

The grid (`DESIGN.md`, numerics): symmetric; activations `clip(round_half_even(x / s), -128, 127)` with one
scale per tensor; weights `clip(round_half_even(w / s), -127, 127)` with one scale per output channel.
"""

from __future__ import annotations

import numpy as np

from bertjax.modeldir import Tensors
from bertjax.onnx.graph import Graph
from bertjax.tensors import DenseSite


def quantize_weight(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The INT8 integers of a weight.

    Args:
      weight: float32 `[out, in]`.
      scale: float32 `[out]`, positive.

    Returns:
      int8 `[out, in]`, within +-127.
    """
    return np.clip(np.rint(weight / scale[:, None]), -127, 127).astype(np.int8)


def fake_quantize(graph: Graph, scope: str, x: str, scale_name: str, scale: np.ndarray) -> str:
    """Round an activation to its INT8 grid: QuantizeLinear and DequantizeLinear, in float32 whatever the body is."""
    half = graph.flavour.body is not np.float32
    scale = graph.constant(scale_name, scale, np.float32)
    zero_point = graph.constant("constant/zero_point", graph.flavour.zero_point, graph.flavour.zero_point.dtype)
    if half:
        x = graph.node(f"{scope}/CastToFloat", "Cast", x, to=1)
    x = graph.node(f"{scope}/QuantizeLinear", "QuantizeLinear", x, scale, zero_point)
    x = graph.node(f"{scope}/DequantizeLinear", "DequantizeLinear", x, scale, zero_point)
    return graph.node(f"{scope}/CastToHalf", "Cast", x, to=10) if half else x


def dense(graph: Graph, scope: str, x: str, parameters: Tensors, site: DenseSite) -> str:
    """`x @ weight.T + bias`: `[batch, seq, in]` to `[batch, seq, out]`.

    `x` is already on its INT8 grid where the model is quantized; the weight here is int8 with a DequantizeLinear
    over its output channels, which are axis 1 of the `[in, out]` that MatMul wants.
    """
    weight = parameters[site.weight]
    if site.weight_scale in parameters:
        scales = parameters[site.weight_scale]
        integers = graph.constant(site.weight, quantize_weight(weight, scales).T, np.int8)
        scale = graph.constant(site.weight_scale, scales, np.float32)
        zeros = graph.constant(f"{site.name}.weight_zero_point", np.zeros(site.outputs), np.int8)
        kernel = graph.node(f"{scope}/weight/DequantizeLinear", "DequantizeLinear", integers, scale, zeros, axis=1)
        if graph.flavour.body is not np.float32:
            kernel = graph.node(f"{scope}/weight/CastToHalf", "Cast", kernel, to=10)
    else:
        kernel = graph.parameter(site.weight, weight.T)
    x = graph.node(f"{scope}/MatMul", "MatMul", x, kernel)
    return graph.node(f"{scope}/Add", "Add", x, graph.parameter(site.bias, parameters[site.bias]))
