"""The same model in TensorFlow, converted by tf2onnx: an independent witness that the emitter's graph is right.

Written from the numerics in docs/design.md, it shares no code with `emit.py`. No other module imports TensorFlow.

Shapes in comments: B batch, S tokens, D hidden size, H heads of a layer, d head size, F FFN units of a layer.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import MutableSequence

import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from bertjax.modeldir.config import INPUTS, OUTPUTS, BertConfig
from bertjax.modeldir.store import StoredModel
from bertjax.modeldir.tensors import dense_sites

# TensorFlow reads these when it is imported. Without them it reports its build and its CPU on every start.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

OPSET = 18  # the highest that tf2onnx 1.17 writes
MASKED = -1e4  # added to the scores of padding; exp() of it is 0 in float32


def convert(model: StoredModel) -> onnx.ModelProto:
    """The model as tf2onnx writes it: fp32 around int8 activations, zero point 0, and weights before their Q/DQ.

    Args:
      model: a span-predicting model, float32; where its config has `quantization`, the encoder's dense layers are on
        the INT8 grid.

    Returns:
      A model with the inputs and outputs of `emit.emit`, at opset 18.
    """
    scales = {name: value for name, value in model.tensors.items() if name.endswith("_scale")}
    weights = {name: value for name, value in model.tensors.items() if name not in scales}

    def logits(weights: dict[str, tf.Tensor], *inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        return Twin(config=model.config, weights=weights, scales=scales).logits(*inputs)

    # tf2onnx copies every constant dozens of times (4 GB for 68 MB of weights), so weights pass through it as inputs.
    signature = (
        {name: tf.TensorSpec(value.shape, tf.float32, name=name) for name, value in weights.items()},
        *(tf.TensorSpec((None, None), tf.int64, name=name) for name in INPUTS),
    )
    graph, _ = tf2onnx.convert.from_function(tf.function(logits, autograph=False), signature, opset=OPSET)
    graph.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in weights.items())
    _declare(graph.graph.input, INPUTS, onnx.TensorProto.INT64)
    _declare(graph.graph.output, OUTPUTS, onnx.TensorProto.FLOAT)
    return graph


def _declare(values: MutableSequence[onnx.ValueInfoProto], names: tuple[str, ...], dtype: int) -> None:
    """Give inputs or outputs the emitter's order and axes; tf2onnx sorts them by name and names every axis anew."""
    del values[:]
    values.extend(onnx.helper.make_tensor_value_info(name, dtype, ["batch", "seq"]) for name in names)


def _on_grid(x: tf.Tensor, scale: np.ndarray, axis: int = -1) -> tf.Tensor:
    """`clip(round_half_even(x / scale), -128, 127) * scale`, with one scale, or one for each index along `axis`.

    TensorFlow and tf2onnx both take the step from whichever end of the range makes it larger. -128 times a scale is
    exact in float32 and 127 times it is not, so the range is given by its lower end alone.
    """
    return tf.raw_ops.QuantizeAndDequantizeV3(
        input=x,
        input_min=-128 * scale,
        input_max=np.zeros_like(scale),
        num_bits=8,
        signed_input=True,
        range_given=True,
        narrow_range=False,
        axis=axis,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Twin:
    """BERT for extractive question answering (Devlin et al. 2019) in TensorFlow."""

    config: BertConfig
    weights: dict[str, tf.Tensor]  # a model directory's tensors without its scales
    scales: dict[str, np.ndarray]

    def logits(
        self, input_ids: tf.Tensor, attention_mask: tf.Tensor, token_type_ids: tf.Tensor
    ) -> dict[str, tf.Tensor]:
        """`start_logits` and `end_logits`, float32 [B, S], for int64 [B, S]."""
        bias = (1.0 - tf.cast(attention_mask[:, None, None, :], tf.float32)) * MASKED
        x = self._embeddings(input_ids, token_type_ids)
        for index, layer in enumerate(self.config.layers):
            with tf.name_scope(f"layer{index}/attention"):
                x = self._attention(f"bert.encoder.layer.{index}.attention", layer.heads, x, bias)
            with tf.name_scope(f"layer{index}/ffn"):
                x = self._ffn(f"bert.encoder.layer.{index}", layer.ffn, x)
        logits = tf.matmul(x, tf.transpose(self.weights["qa_outputs.weight"])) + self.weights["qa_outputs.bias"]
        return dict(zip(OUTPUTS, tf.unstack(logits, num=2, axis=-1), strict=True))

    def _embeddings(self, input_ids: tf.Tensor, token_type_ids: tf.Tensor) -> tf.Tensor:
        word, position, token_type = (
            self.weights[f"bert.embeddings.{part}_embeddings.weight"] for part in ("word", "position", "token_type")
        )
        x = tf.gather(word, input_ids) + tf.gather(token_type, token_type_ids)
        return self._layer_norm("bert.embeddings.LayerNorm", x + position[: tf.shape(input_ids)[1]])

    def _attention(self, prefix: str, heads: int, x: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """`LayerNorm(x + attention(x))`; with no heads `LayerNorm(x + output bias)`."""
        output = f"{prefix}.output.dense"
        if heads:
            shared = self._quantize(f"{prefix}.self.input_scale", x)
            query, key, value = (
                self._split_heads(self._projected(f"{prefix}.self.{part}", shared), heads)  # [B, H, S, d]
                for part in ("query", "key", "value")
            )
            scores = tf.matmul(query, key, transpose_b=True) / math.sqrt(self.config.head_size) + bias  # [B, H, S, S]
            weights = self._quantize(f"{prefix}.self.weights_scale", tf.nn.softmax(scores))
            context = self._join_heads(tf.matmul(weights, value), heads)
            y = self._dense(output, self._quantize(f"{output}.input_scale", context))
            x = shared if self._quantizes_residual() else x
        else:
            y = self.weights[f"{output}.bias"]
        return self._layer_norm(f"{prefix}.output.LayerNorm", x + y)

    def _ffn(self, prefix: str, ffn: int, x: tf.Tensor) -> tf.Tensor:
        """`LayerNorm(x + ffn(x))`; with no units `LayerNorm(x + output bias)`."""
        inner, output = f"{prefix}.intermediate.dense", f"{prefix}.output.dense"
        if ffn:
            quantized = self._quantize(f"{inner}.input_scale", x)
            x = quantized if self._quantizes_residual() else x
            y = self._dense(inner, quantized)  # [B, S, F]
            y = 0.5 * y * (1.0 + tf.math.erf(y / math.sqrt(2.0)))  # the exact GELU
            y = self._dense(output, self._quantize(f"{output}.input_scale", y))
        else:
            y = self.weights[f"{output}.bias"]
        return self._layer_norm(f"{prefix}.output.LayerNorm", x + y)

    def _quantize(self, scale: str, x: tf.Tensor) -> tf.Tensor:
        """`x` on its grid, if the model has a scale for it."""
        if scale not in self.scales:
            return x
        value = self.scales[scale]
        return _on_grid(x, value, axis=x.shape.rank - 1 if value.ndim else -1)

    def _quantizes_residual(self) -> bool:
        return self.config.quantization is not None and self.config.quantization.residual

    def _projected(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """Q, K or V, on its grid if it has one."""
        return self._quantize(f"{name}_scale", self._dense(name, x))

    def _dense(self, name: str, x: tf.Tensor) -> tf.Tensor:
        """`x @ weight.T + bias`, with `x` as it comes and the weight on its grid where the model is quantized."""
        kernel = tf.transpose(self.weights[f"{name}.weight"])  # [in, out]
        if self.config.quantization:
            scale, factors = self.scales[f"{name}.weight_scale"], self._factors(name)
            kernel = tf.clip_by_value(kernel * factors, -127 * scale, 127 * scale)
            kernel = _on_grid(kernel, scale, axis=1) / factors
        return tf.matmul(x, kernel) + self.weights[f"{name}.bias"]

    def _factors(self, name: str) -> np.ndarray:
        """Factors of a kernel's rows before they are rounded, [in, 1] or [1, 1]."""
        (scale,) = (self.scales[s.input_scale] for s in dense_sites(self.config) if s.name == name)
        return (scale / scale.max()).reshape(-1, 1)

    def _layer_norm(self, name: str, x: tf.Tensor) -> tf.Tensor:
        centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True)
        normal = centred * tf.math.rsqrt(variance + self.config.layer_norm_eps)
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _split_heads(self, x: tf.Tensor, heads: int) -> tf.Tensor:
        """[B, S, H * d] to [B, H, S, d]."""
        batch, seq = tf.unstack(tf.shape(x)[:2], num=2)
        return tf.transpose(tf.reshape(x, [batch, seq, heads, self.config.head_size]), [0, 2, 1, 3])

    def _join_heads(self, x: tf.Tensor, heads: int) -> tf.Tensor:
        """[B, H, S, d] to [B, S, H * d]."""
        x = tf.transpose(x, [0, 2, 1, 3])
        batch, seq = tf.unstack(tf.shape(x)[:2], num=2)
        return tf.reshape(x, [batch, seq, heads * self.config.head_size])
