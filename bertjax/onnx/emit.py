"""BERT for extractive question answering (Devlin et al. 2019) as ONNX nodes, one function per block.

Every node's name says where it comes from: `layer3/ffn/out/MatMul`. Layers may each have their own number of
heads and FFN units; a gone block leaves `LayerNorm(x + bias)`.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import helper

from bertjax.modeldir import tensors
from bertjax.modeldir.config import INPUTS, OUTPUTS, BertConfig
from bertjax.modeldir.store import StoredModel
from bertjax.modeldir.tensors import DenseSite
from bertjax.modeldir.weights import Tensors
from bertjax.onnx.dense import add_dense, add_grid, undo_factors
from bertjax.onnx.graph import Flavour, Graph, onnx_dtype

# ONNX Runtime mishandles int8 Q/DQ around Reshape and Transpose from opset 21 on; 20 is the first with Gelu.
OPSET = 20
REVISION = 4  # raised by every change to the graphs written here: files of another revision are exported again
IR_VERSION = 9  # the one that came with opset 20, so that older runtimes read the file

# Added to the scores of padding. exp() of it is 0 in float32, and float16 holds it together with any real score.
MASKED = -30000.0


def emit(model: StoredModel, flavour: Flavour) -> onnx.ModelProto:
    """Write the model's graph.

    Args:
      model: a span-predicting model, float32; where its config has `quantization`, the encoder's dense layers get
        Q/DQ.
      flavour: `graph.CPU` or `graph.TRT`.

    Returns:
      A model with inputs `input_ids`, `attention_mask`, `token_type_ids` (int64, `[batch, seq]`) and outputs
      `start_logits`, `end_logits` (float32, `[batch, seq]`).

    Raises:
      UserError: a tensor holds numbers that float16 cannot (flavour `trt`).
    """
    graph = Graph(flavour)
    sites = {site.name: site for site in tensors.dense_sites(model.config)}
    x = _embeddings(graph, model)
    bias = _mask_bias(graph) if any(layer.heads for layer in model.config.layers) else ""
    for index, layer in enumerate(model.config.layers):
        x = _attention(graph, model, sites, index, layer.heads, x, bias)
        x = _ffn(graph, model, sites, index, layer.ffn, x)
    _span_head(graph, model.tensors, x)

    axes = ["batch", "seq"]
    inputs = [helper.make_tensor_value_info(name, onnx.TensorProto.INT64, axes) for name in INPUTS]
    outputs = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes) for name in OUTPUTS]
    return helper.make_model(
        graph.finish(inputs, outputs),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="bertjax",
    )


def dense_scopes(config: BertConfig) -> dict[str, str]:
    """Where each dense layer of the encoder is in the graph: its module's name to the prefix of its nodes' names."""
    parts = {
        "attention.self.query": "attention/query",
        "attention.self.key": "attention/key",
        "attention.self.value": "attention/value",
        "attention.output.dense": "attention/out",
        "intermediate.dense": "ffn/in",
        "output.dense": "ffn/out",
    }
    scopes = {}
    for site in tensors.dense_sites(config):
        index, part = site.name.removeprefix("bert.encoder.layer.").split(".", 1)
        scopes[site.name] = f"layer{index}/{parts[part]}"
    return scopes


def _embeddings(graph: Graph, model: StoredModel) -> str:
    """Word + position + token type, then LayerNorm: `[batch, seq]` to `[batch, seq, hidden]`."""
    table = {
        part: graph.parameter(f"bert.embeddings.{part}.weight", model.tensors[f"bert.embeddings.{part}.weight"])
        for part in ("word_embeddings", "position_embeddings")
    }
    seq = graph.node("embeddings/Shape", "Shape", "input_ids", start=1, end=2)
    position = graph.node(
        "embeddings/position/Slice",
        "Slice",
        table["position_embeddings"],
        graph.integers([0]),
        seq,
        graph.integers([0]),
    )
    word = graph.node("embeddings/word/Gather", "Gather", table["word_embeddings"], "input_ids")
    x = graph.node("embeddings/token_type/Add", "Add", word, _token_types(graph, model.tensors))
    x = graph.node("embeddings/position/Add", "Add", x, position)
    return _layer_norm(graph, model, "embeddings", "bert.embeddings.LayerNorm", x)


def _token_types(graph: Graph, parameters: Tensors) -> str:
    """The embeddings of `token_type_ids`, `[batch, seq, hidden]`.

    For OpenVINO a table of two is `first + id * (second - first)`: that is fused into the sum of the embeddings, where
    the layout of what a second Gather gives is changed, and the sum's changed back.
    """
    scope, name = "embeddings/token_type", "bert.embeddings.token_type_embeddings.weight"
    table = parameters[name]
    if not graph.flavour.for_openvino or len(table) != 2:
        return graph.node(f"{scope}/Gather", "Gather", graph.parameter(name, table), "token_type_ids")
    first, step = graph.parameter(f"{name}/0", table[0]), graph.parameter(f"{name}/1-0", table[1] - table[0])
    ids = graph.node(f"{scope}/Cast", "Cast", "token_type_ids", to=onnx_dtype(graph.flavour.body))
    ids = graph.node(f"{scope}/Unsqueeze", "Unsqueeze", ids, graph.integers([-1]))
    x = graph.node(f"{scope}/Mul", "Mul", ids, step)
    return graph.node(f"{scope}/first/Add", "Add", x, first)


def _mask_bias(graph: Graph) -> str:
    """The term added to attention scores: 0 for tokens, `MASKED` for padding, as `[batch, seq]`."""
    mask = graph.node("mask/Cast", "Cast", "attention_mask", to=onnx_dtype(graph.flavour.body))
    padding = graph.node("mask/Sub", "Sub", graph.scalar(1.0), mask)
    return graph.node("mask/Mul", "Mul", padding, graph.scalar(MASKED))


def _layer_norm(graph: Graph, model: StoredModel, scope: str, name: str, x: str) -> str:
    scale = graph.parameter(f"{name}.weight", model.tensors[f"{name}.weight"])
    bias = graph.parameter(f"{name}.bias", model.tensors[f"{name}.bias"])
    # stash_type 1: mean and variance in float32 also in the float16 flavour, where epsilon 1e-12 would be 0.
    return graph.node(
        f"{scope}/LayerNormalization",
        "LayerNormalization",
        x,
        scale,
        bias,
        axis=-1,
        epsilon=model.config.layer_norm_eps,
        stash_type=1,
    )


def _quantized(graph: Graph, scope: str, x: str, parameters: Tensors, scale_name: str) -> str:
    """`x` on its INT8 grid, if the model has a scale for it."""
    if scale_name not in parameters:
        return x
    return add_grid(graph, scope, x, scale_name, parameters[scale_name])


def _attention(
    graph: Graph,
    model: StoredModel,
    sites: dict[str, DenseSite],
    index: int,
    heads: int,
    x: str,
    mask_bias: str,
) -> str:
    """`LayerNorm(x + attention(x))`; with no heads `LayerNorm(x + output bias)`."""
    scope, prefix = f"layer{index}/attention", f"{tensors.layer_prefix(index)}.attention"
    output, residual = f"{prefix}.output.dense", x
    if heads:
        scale = f"{prefix}.self.input_scale"
        shared = _quantized(graph, f"{scope}/input", x, model.tensors, scale)
        residual = _residual(graph, model, f"{scope}/input", x, shared, scale)
        query, key, value = (
            add_dense(graph, f"{scope}/{part}", shared, model.tensors, sites[f"{prefix}.self.{part}"])
            for part in ("query", "key", "value")
        )
        y = _attention_products(graph, model, index, heads, (query, key, value), mask_bias)
        y = _quantized(graph, f"{scope}/out/input", y, model.tensors, sites[output].input_scale)
        y = add_dense(graph, f"{scope}/out", y, model.tensors, sites[output])
    else:
        y = graph.parameter(f"{output}.bias", model.tensors[f"{output}.bias"])
    x = graph.node(f"{scope}/residual/Add", "Add", y, residual)
    return _layer_norm(graph, model, scope, f"{prefix}.output.LayerNorm", x)


def _residual(graph: Graph, model: StoredModel, scope: str, x: str, rounded: str, scale_name: str) -> str:
    """The input of the block's residual add: the block's own input `x`, or that of its first dense layer, `rounded`."""
    if model.config.quantization is None or not model.config.quantization.residual:
        return x
    return undo_factors(graph, scope, rounded, scale_name, model.tensors[scale_name])


def _attention_products(
    graph: Graph,
    model: StoredModel,
    index: int,
    heads: int,
    projected: tuple[str, str, str],
    mask_bias: str,
) -> str:
    """`softmax(query @ key.T / sqrt(head_size) + mask) @ value`: four times `[batch, seq, heads * head_size]`.

    A single head stays three-dimensional: TensorRT finds its fused attention kernel in that form, but not in
    one with a heads axis of 1. For OpenVINO the key is turned in two steps, of which it takes the second, expensive one
    into its fused attention.
    """
    scope, head_size = f"layer{index}/attention", model.config.head_size
    scales = tensors.attention_product_scales(index)

    def by_head(part: str, x: str) -> str:
        turns = part == "key"  # its last two axes change places
        if heads > 1:
            split = graph.integers([0, 0, heads, head_size])  # 0: this axis as it is
            x = graph.node(f"{scope}/{part}/Reshape", "Reshape", x, split)
            at_once = turns and not graph.flavour.for_openvino
            x = graph.node(f"{scope}/{part}/Transpose", "Transpose", x, perm=[0, 2, 3, 1] if at_once else [0, 2, 1, 3])
            if turns and not at_once:
                x = graph.node(f"{scope}/{part}/turned/Transpose", "Transpose", x, perm=[0, 1, 3, 2])
        elif turns:
            x = graph.node(f"{scope}/key/Transpose", "Transpose", x, perm=[0, 2, 1])
        return _quantized(graph, f"{scope}/{part}", x, model.tensors, scales[part])

    query, key, value = map(by_head, ("query", "key", "value"), projected)
    between = [1] if heads == 1 else [1, 2]
    mask_bias = graph.node(f"{scope}/mask/Unsqueeze", "Unsqueeze", mask_bias, graph.integers(between))
    scores = graph.node(f"{scope}/scores/MatMul", "MatMul", query, key)
    scores = graph.node(f"{scope}/scores/Mul", "Mul", scores, graph.scalar(1.0 / math.sqrt(head_size)))
    scores = graph.node(f"{scope}/scores/Add", "Add", scores, mask_bias)
    weights = graph.node(f"{scope}/Softmax", "Softmax", scores, axis=-1)
    weights = _quantized(graph, f"{scope}/weights", weights, model.tensors, scales["weights"])
    y = graph.node(f"{scope}/context/MatMul", "MatMul", weights, value)
    if heads == 1:
        return y
    y = graph.node(f"{scope}/context/Transpose", "Transpose", y, perm=[0, 2, 1, 3])
    return graph.node(f"{scope}/context/Reshape", "Reshape", y, graph.integers([0, 0, heads * head_size]))


def _ffn(
    graph: Graph,
    model: StoredModel,
    sites: dict[str, DenseSite],
    index: int,
    ffn: int,
    x: str,
) -> str:
    """`LayerNorm(x + ffn(x))`; with no units `LayerNorm(x + output bias)`."""
    scope, prefix, residual = f"layer{index}/ffn", tensors.layer_prefix(index), x
    if ffn:
        inner, outer = sites[f"{prefix}.intermediate.dense"], sites[f"{prefix}.output.dense"]
        y = _quantized(graph, f"{scope}/in/input", x, model.tensors, inner.input_scale)
        residual = _residual(graph, model, f"{scope}/in/input", x, y, inner.input_scale)
        y = add_dense(graph, f"{scope}/in", y, model.tensors, inner)
        y = graph.node(f"{scope}/Gelu", "Gelu", y, approximate="none")
        y = _quantized(graph, f"{scope}/out/input", y, model.tensors, outer.input_scale)
        y = add_dense(graph, f"{scope}/out", y, model.tensors, outer)
    else:
        y = graph.parameter(f"{prefix}.output.dense.bias", model.tensors[f"{prefix}.output.dense.bias"])
    x = graph.node(f"{scope}/residual/Add", "Add", y, residual)
    return _layer_norm(graph, model, scope, f"{prefix}.output.LayerNorm", x)


def _span_head(graph: Graph, parameters: Tensors, x: str) -> None:
    """Two logits per token, in float32 in both flavours: float16 would tie neighbouring spans."""
    if graph.flavour.body is not np.float32:
        x = graph.node("span_head/CastToFloat", "Cast", x, to=onnx_dtype(np.float32))
    kernel = graph.constant("qa_outputs.weight", parameters["qa_outputs.weight"].T, np.float32)
    bias = graph.constant("qa_outputs.bias", parameters["qa_outputs.bias"], np.float32)
    x = graph.node("span_head/MatMul", "MatMul", x, kernel)
    x = graph.node("span_head/Add", "Add", x, bias)
    graph.node("span_head/Split", "Split", x, outputs=("span_head/start", "span_head/end"), axis=-1, num_outputs=2)
    for part in ("start", "end"):
        name = f"span_head/{part}/Squeeze"
        graph.node(name, "Squeeze", f"span_head/{part}", graph.integers([-1]), outputs=(f"{part}_logits",))
