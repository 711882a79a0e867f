"""BERT with INT8 fake quantization in plain NumPy, from the numerics in docs/design.md: the emitter's witness."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.special import erf

from bertjax.modeldir.store import StoredModel


@dataclasses.dataclass
class Reference:
    """One model. After `run`, `margin` is how near, in steps, any activation came to a rounding boundary."""

    model: StoredModel
    margin: float = 0.5

    def run(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> np.ndarray:
        """Logits `[2, batch, seq]`, start and end, computed in float64."""
        embeddings = "bert.embeddings"
        x = self._get(f"{embeddings}.word_embeddings.weight")[input_ids]
        x = x + self._get(f"{embeddings}.token_type_embeddings.weight")[token_type_ids]
        x = x + self._get(f"{embeddings}.position_embeddings.weight")[: input_ids.shape[1]]
        x = self._layer_norm(f"{embeddings}.LayerNorm", x)
        for index, layer in enumerate(self.model.config.layers):
            prefix = f"bert.encoder.layer.{index}"
            y, skip = self._get(f"{prefix}.attention.output.dense.bias"), x
            if layer.heads:
                y = self._attention(prefix, layer.heads, x, attention_mask)
                skip = self._residual(f"{prefix}.attention.self.input_scale", x)
            x = self._layer_norm(f"{prefix}.attention.output.LayerNorm", skip + y)
            y, skip = self._get(f"{prefix}.output.dense.bias"), x
            if layer.ffn:
                skip = self._residual(f"{prefix}.intermediate.dense.input_scale", x)
                y = self._dense(f"{prefix}.intermediate.dense", f"{prefix}.intermediate.dense.input_scale", x)
                y = y * 0.5 * (1.0 + erf(y / math.sqrt(2.0)))
                y = self._dense(f"{prefix}.output.dense", f"{prefix}.output.dense.input_scale", y)
            x = self._layer_norm(f"{prefix}.output.LayerNorm", skip + y)
        logits = x @ self._get("qa_outputs.weight").T + self._get("qa_outputs.bias")
        return np.moveaxis(logits, -1, 0)

    def _get(self, name: str) -> np.ndarray:
        return self.model.tensors[name].astype(np.float64)

    def _layer_norm(self, name: str, x: np.ndarray) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        normal = centred / np.sqrt(variance + self.model.config.layer_norm_eps)
        return normal * self._get(f"{name}.weight") + self._get(f"{name}.bias")

    def _dense(self, name: str, input_scale: str, x: np.ndarray) -> np.ndarray:
        weight = self._get(f"{name}.weight")
        if self.model.config.quantization:
            x = self._rounded(input_scale, x)
            scales = self._get(f"{name}.weight_scale")[:, None]
            factors = self.model.tensors[input_scale] / self.model.tensors[input_scale].max()
            # The integers are those of a float32 division: a float64 one could round the other way.
            folded = self.model.tensors[f"{name}.weight"] * factors
            integers = np.round(folded / self.model.tensors[f"{name}.weight_scale"][:, None])
            weight = np.clip(integers, -127, 127) * scales / factors
        return x @ weight.T + self._get(f"{name}.bias")

    def _rounded(self, scale_name: str, x: np.ndarray) -> np.ndarray:
        scale = self._get(scale_name)
        steps = x / scale
        self.margin = min(self.margin, np.abs(steps - np.floor(steps) - 0.5).min())
        return np.clip(np.round(steps), -128, 127) * scale

    def _residual(self, scale_name: str, x: np.ndarray) -> np.ndarray:
        quantized = self.model.config.quantization and self.model.config.quantization.residual
        return self._rounded(scale_name, x) if quantized else x

    def _product(self, scale_name: str, x: np.ndarray) -> np.ndarray:
        quantized = self.model.config.quantization and self.model.config.quantization.attention
        return self._rounded(scale_name, x) if quantized else x

    def _attention(self, prefix: str, heads: int, x: np.ndarray, attention_mask: np.ndarray) -> np.ndarray:
        batch, seq, _ = x.shape
        size, own = self.model.config.head_size, f"{prefix}.attention.self"
        query, key, value = (
            self._product(f"{own}.{part}_scale", self._dense(f"{own}.{part}", f"{own}.input_scale", x)).reshape(
                batch, seq, heads, size
            )
            for part in ("query", "key", "value")
        )
        scores = np.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(size)
        scores = np.where(attention_mask[:, None, None, :] == 1, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights = self._product(f"{own}.weights_scale", weights / weights.sum(-1, keepdims=True))
        context = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, seq, heads * size)
        output = f"{prefix}.attention.output.dense"
        return self._dense(output, f"{output}.input_scale", context)
