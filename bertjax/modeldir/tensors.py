"""Names and shapes of a BERT's tensors in Hugging Face's form: the one table that all rooms share.

A model's parameters travel as a flat `dict[str, np.ndarray]` under these names, with dense weights as
`[out, in]`, exactly as `model.safetensors` holds them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

from bertjax.modeldir.config import BertConfig


class _Divisible(Protocol):
    """An array of NumPy or of JAX."""

    def max(self) -> Any: ...

    def __truediv__(self, other: Any, /) -> Any: ...


Array = TypeVar("Array", bound=_Divisible)


class DenseSite(NamedTuple):
    """One dense layer that can be INT8, with the names of its weight, bias and scales."""

    name: str  # for example "bert.encoder.layer.3.attention.self.query"
    input_scale: str  # name of the scale of its input; Q, K and V of a layer share one
    inputs: int
    outputs: int
    by_feature: bool = True  # its input has a scale for each feature if the model asks for them

    @property
    def weight(self) -> str:
        return f"{self.name}.weight"

    @property
    def bias(self) -> str:
        return f"{self.name}.bias"

    @property
    def weight_scale(self) -> str:
        return f"{self.name}.weight_scale"


def layer_prefix(index: int) -> str:
    return f"bert.encoder.layer.{index}"


def dense_sites(config: BertConfig) -> Iterator[DenseSite]:
    """The dense layers of the encoder in the order in which they run. A gone block has none.

    Attention's output keeps one scale: its features are alike, and TensorRT rounds it inside the attention kernel.
    """
    hidden = config.hidden_size
    for index, layer in enumerate(config.layers):
        prefix, width = layer_prefix(index), layer.heads * config.head_size
        if layer.heads:
            for part in ("query", "key", "value"):
                name = f"{prefix}.attention.self.{part}"
                yield DenseSite(name, f"{prefix}.attention.self.input_scale", hidden, width)
            name = f"{prefix}.attention.output.dense"
            yield DenseSite(name, f"{name}.input_scale", width, hidden, by_feature=False)
        if layer.ffn:
            name = f"{prefix}.intermediate.dense"
            yield DenseSite(name, f"{name}.input_scale", hidden, layer.ffn)
            name = f"{prefix}.output.dense"
            yield DenseSite(name, f"{name}.input_scale", layer.ffn, hidden)


def activation_scales(config: BertConfig) -> tuple[str, ...]:
    """The names of a quantized model's activation scales: dense inputs, and those of the attention products."""
    names = dict.fromkeys(site.input_scale for site in dense_sites(config))
    if config.quantization and config.quantization.attention:
        for index, layer in enumerate(config.layers):
            if layer.heads:
                names |= dict.fromkeys(attention_product_scales(index).values())
    return tuple(names)


def attention_product_scales(index: int) -> dict[str, str]:
    """A layer's scales of Q, K, V and the softmax's output, by part; held where `quantization.attention` is set."""
    prefix = f"{layer_prefix(index)}.attention.self"
    return {part: f"{prefix}.{part}_scale" for part in ("query", "key", "value", "weights")}


def embedding_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    hidden = config.hidden_size
    return {
        "bert.embeddings.word_embeddings.weight": (config.vocab_size, hidden),
        "bert.embeddings.position_embeddings.weight": (config.max_position_embeddings, hidden),
        "bert.embeddings.token_type_embeddings.weight": (config.type_vocab_size, hidden),
        "bert.embeddings.LayerNorm.weight": (hidden,),
        "bert.embeddings.LayerNorm.bias": (hidden,),
    }


def encoder_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of embeddings and encoder.

    A gone block keeps its LayerNorm and its output bias: that is what the masked model computes there,
    `LayerNorm(x + bias)`, so cutting a block changes nothing but the cost.
    """
    hidden, shapes = config.hidden_size, embedding_shapes(config)
    for site in dense_sites(config):
        shapes[site.weight] = (site.outputs, site.inputs)
        shapes[site.bias] = (site.outputs,)
    for index in range(len(config.layers)):
        for block in ("attention.output", "output"):
            name = f"{layer_prefix(index)}.{block}"
            shapes[f"{name}.dense.bias"] = (hidden,)
            shapes[f"{name}.LayerNorm.weight"] = (hidden,)
            shapes[f"{name}.LayerNorm.bias"] = (hidden,)
    return shapes


def span_head_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    return {"qa_outputs.weight": (2, config.hidden_size), "qa_outputs.bias": (2,)}


def masked_lm_head_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """The masked-LM head; its decoder is the word embedding table."""
    hidden, transform = config.hidden_size, "cls.predictions.transform"
    return {
        f"{transform}.dense.weight": (hidden, hidden),
        f"{transform}.dense.bias": (hidden,),
        f"{transform}.LayerNorm.weight": (hidden,),
        f"{transform}.LayerNorm.bias": (hidden,),
        "cls.predictions.bias": (config.vocab_size,),
    }


def scale_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """The INT8 scales of a quantized model, all float32, by name.

    One per output channel of each weight, one per activation; or, of a LayerNorm's or GELU's output, one per feature.
    """
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(activation_scales(config), ())
    for site in dense_sites(config):
        shapes[site.weight_scale] = (site.outputs,)
        if site.by_feature and config.quantization and config.quantization.activation_scales == "feature":
            shapes[site.input_scale] = (site.inputs,)
    return shapes


def feature_factors(input_scale: Array) -> Array:
    """Divisors of the features, and factors of their weights: `[features]` in (0, 1], or 1 for a scalar."""
    return input_scale / input_scale.max()


def question_answering_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a span-predicting model directory, its scales included where it is quantized."""
    shapes = encoder_shapes(config) | span_head_shapes(config)
    return shapes | scale_shapes(config) if config.quantization else shapes


def count_parameters(config: BertConfig) -> int:
    """Trained numbers of a span-predicting model: weights and biases, not INT8 scales."""
    shapes = encoder_shapes(config) | span_head_shapes(config)
    total = 0
    for shape in shapes.values():
        size = 1
        for extent in shape:
            size *= extent
        total += size
    return total
