"""The shape of a BERT whose layers may each have their own head count and FFN width, and its cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast, get_args

from bertjax.errors import UserError
from bertjax.modeldir.fields import Fields, read_object

Calibrator = Literal["max", "percentile", "entropy", "mse"]  # how an activation's range is chosen
ActivationScales = Literal["feature", "tensor"]  # a dense layer's input has a scale for each feature, or one

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # of every exported graph, in this order
OUTPUTS = ("start_logits", "end_logits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerShape:
    """One encoder layer. Zero heads: its attention is gone; zero `ffn`: its FFN is gone."""

    heads: int
    ffn: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """The INT8 parts of a model, and the origin of their scales, which are tensors in `model.safetensors`.

    Inputs and weights of the encoder's dense layers are always INT8. Inputs have one scale per tensor, or one per
    feature (`model/fakequant.py`) except for attention's output. `attention` adds Q, K, V and the softmax's output, the
    inputs of the two attention products. With `residual` a block's residual add reads the rounded input of the block's
    first dense layer, so that the LayerNorm before it writes nothing but INT8.
    """

    calibrator: Calibrator
    calibration_examples: int
    trained: bool  # True after quantization-aware training, False after calibration alone
    activation_scales: ActivationScales = "feature"
    attention: bool = False
    residual: bool = False

    @classmethod
    def calibrated(
        cls,
        also: Sequence[str],
        *,
        calibrator: Calibrator,
        calibration_examples: int,
        activation_scales: ActivationScales = activation_scales,
    ) -> Quantization:
        """The record before training, with `also` as `--quantize-also` takes it: `attention`, `residual` or both."""
        return cls(
            calibrator=calibrator,
            calibration_examples=calibration_examples,
            trained=False,
            activation_scales=activation_scales,
            attention="attention" in also,
            residual="residual" in also,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class BertConfig:
    """A BERT encoder with one entry in `layers` per layer.

    Invariants: `hidden_size` is a multiple of `head_size`; a pruned layer keeps `head_size` and
    `hidden_size`, only its numbers of heads and FFN units fall.
    """

    vocab_size: int
    hidden_size: int
    head_size: int
    layers: tuple[LayerShape, ...]
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    hidden_dropout: float = 0.1
    attention_dropout: float = 0.1
    quantization: Quantization | None = None

    @classmethod
    def dense(
        cls,
        *,
        vocab_size: int,
        hidden_size: int,
        num_layers: int,
        heads: int,
        ffn: int,
        **rest: Any,
    ) -> BertConfig:
        """An ordinary BERT: the same heads and FFN width in every layer."""
        layers = (LayerShape(heads=heads, ffn=ffn),) * num_layers
        return cls(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            head_size=hidden_size // heads,
            layers=layers,
            **rest,
        )

    @classmethod
    def bert_large(cls, **rest: Any) -> BertConfig:
        """BERT-large (Devlin et al. 2019): 24 layers, hidden 1024, 16 heads, FFN 4096."""
        return cls.dense(vocab_size=30522, hidden_size=1024, num_layers=24, heads=16, ffn=4096, **rest)

    @classmethod
    def from_json(cls, path: Path) -> BertConfig:
        """Read a Hugging Face `config.json`, with or without bertjax's per-layer fields.

        Raises:
          UserError: the file is missing, is not JSON, is no BERT config, or a field is of another type, is out of
            range, or contradicts others.
        """
        return _parse(read_object(path), path)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], path: Path) -> BertConfig:
        """The config that `to_dict` gave; `path` is where it was found, for messages.

        Raises:
          UserError: it is no BERT config, or a field is of another type, is out of range, or contradicts others.
        """
        return _parse(raw, path)

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` of this shape: Hugging Face's fields, the per-layer ones and the quantization record."""
        return {
            "architectures": ["BertForQuestionAnswering"],
            "model_type": "bert",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": len(self.layers),
            "num_attention_heads": self.hidden_size // self.head_size,
            "intermediate_size": max((layer.ffn for layer in self.layers), default=0),
            "max_position_embeddings": self.max_position_embeddings,
            "type_vocab_size": self.type_vocab_size,
            "layer_norm_eps": self.layer_norm_eps,
            "pad_token_id": self.pad_token_id,
            "hidden_dropout_prob": self.hidden_dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "hidden_act": "gelu",
            "position_embedding_type": "absolute",
            "heads_per_layer": [layer.heads for layer in self.layers],
            "ffn_per_layer": [layer.ffn for layer in self.layers],
            "quantization": dataclasses.asdict(self.quantization) if self.quantization else None,
        }


_MOST_LAYERS = 1000


def _parse(raw: dict[str, Any], path: Path) -> BertConfig:
    if not isinstance(raw, dict):
        raise UserError(f"{path}: not a JSON object")
    fields = Fields(raw=raw, where=str(path))
    fields.word("model_type", default="bert", among=("bert",))
    fields.word("hidden_act", default="gelu", among=("gelu",))
    fields.word("position_embedding_type", default="absolute", among=("absolute",))
    if fields.truth("is_decoder", default=False):
        raise UserError(f"{path}: is_decoder is true; an encoder is wanted, which sees the tokens after each token too")
    hidden, heads = fields.whole("hidden_size", least=1), fields.whole("num_attention_heads", least=1)
    if hidden % heads:
        raise UserError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    count, ffn = fields.whole("num_hidden_layers", most=_MOST_LAYERS), fields.whole("intermediate_size")
    heads_per_layer = fields.wholes("heads_per_layer", count, default=[heads] * count)
    ffn_per_layer = fields.wholes("ffn_per_layer", count, default=[ffn] * count)
    vocab_size = fields.whole("vocab_size", least=1)
    if fields.whole("type_vocab_size", default=2) < 2:
        raise UserError(f"{path}: type_vocab_size is {raw['type_vocab_size']}; 2 are wanted, for question and context")
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        head_size=hidden // heads,
        layers=tuple(LayerShape(heads=h, ffn=f) for h, f in zip(heads_per_layer, ffn_per_layer, strict=True)),
        max_position_embeddings=fields.whole("max_position_embeddings", least=1, default=512),
        type_vocab_size=fields.whole("type_vocab_size", default=2),
        layer_norm_eps=fields.number("layer_norm_eps", below=1, default=1e-12),
        pad_token_id=fields.whole("pad_token_id", most=vocab_size - 1, default=0),
        hidden_dropout=fields.number("hidden_dropout_prob", below=1, default=0.1),
        attention_dropout=fields.number("attention_probs_dropout_prob", below=1, default=0.1),
        quantization=_parse_quantization(fields.part("quantization")),
    )


def _parse_quantization(fields: Fields | None) -> Quantization | None:
    if fields is None or not fields.raw:
        return None
    names = [field.name for field in dataclasses.fields(Quantization)]
    if not fields.raw.keys() <= set(names):
        raise UserError(f"{fields.where}: its fields are {', '.join(names)}")
    return Quantization(
        calibrator=cast(Calibrator, fields.word("calibrator", among=get_args(Calibrator))),
        calibration_examples=fields.whole("calibration_examples"),
        trained=fields.truth("trained"),
        # Directories from before there were scales for features do not say what theirs are for.
        activation_scales=cast(
            ActivationScales, fields.word("activation_scales", default="tensor", among=get_args(ActivationScales))
        ),
        attention=fields.truth("attention", default=False),
        residual=fields.truth("residual", default=False),
    )


def head_macs(config: BertConfig, seq: int) -> int:
    """Multiply-accumulates of one attention head for one sequence: Q, K, V, output, and the two S x S products."""
    dense = 4 * seq * config.hidden_size * config.head_size
    return dense + 2 * seq * seq * config.head_size


def ffn_unit_macs(config: BertConfig, seq: int) -> int:
    """Multiply-accumulates of one FFN unit for one sequence of `seq` tokens."""
    return 2 * seq * config.hidden_size


def count_macs(config: BertConfig, seq: int) -> int:
    """Multiply-accumulates of the encoder and the span head for one sequence, embeddings not counted.

    BERT-large at 384 tokens: 123.2e9, the figure of the MLPerf reference.
    """
    heads = sum(layer.heads for layer in config.layers)
    units = sum(layer.ffn for layer in config.layers)
    span_head = 2 * seq * config.hidden_size
    return heads * head_macs(config, seq) + units * ffn_unit_macs(config, seq) + span_head
