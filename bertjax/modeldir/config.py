"""The shape of a BERT whose layers may each have their own head count and FFN width, and its cost."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bertjax.errors import UserError

Calibrator = Literal["max", "percentile", "entropy", "mse"]  # how an activation's range is chosen
ActivationScales = Literal["feature", "tensor"]  # what each scale of a dense layer's input is for

INPUTS = ("input_ids", "attention_mask", "token_type_ids")  # of every exported graph, in this order
OUTPUTS = ("start_logits", "end_logits")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerShape:
    """One encoder layer. Zero heads: its attention is gone; zero `ffn`: its FFN is gone."""

    heads: int
    ffn: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quantization:
    """The INT8 parts of a model and the origin of their scales, which are tensors in `model.safetensors`.

    Inputs and weights of the encoder's dense layers are always INT8. Inputs have one scale per tensor, or one per
    feature (see `fakequant`) except for attention's output. `attention` adds Q, K, V and the softmax's output, the
    inputs of the two attention products. `residual` lets a block's residual add read the input of its first dense
    layer, so that the LayerNorm before it writes nothing but INT8.
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
          UserError: the file is missing, is not JSON, is no BERT config, or its numbers contradict each other.
        """
        try:
            raw = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; a model directory holds config.json") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not valid JSON ({error})") from None
        if not isinstance(raw, dict):
            raise UserError(f"{path}: not a JSON object; a config.json of a BERT is wanted")
        return _parse(raw, path)

    @classmethod
    def from_dict(cls, raw: dict[str, Any], path: Path) -> BertConfig:
        """The config that `to_dict` gave; errors name `path`, where it was found.

        Raises:
          UserError: it is no BERT config, or its numbers contradict each other.
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


_REQUIRED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")


def _parse(raw: dict[str, Any], path: Path) -> BertConfig:
    if raw.get("model_type", "bert") != "bert":
        raise UserError(f"{path}: model_type is {raw['model_type']!r}; only 'bert' is supported")
    missing = [name for name in _REQUIRED if not isinstance(raw.get(name), int) or raw[name] < 0]
    if missing:
        raise UserError(f"{path}: {', '.join(missing)}: a non-negative integer is wanted for each")
    if raw.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path}: hidden_act is {raw['hidden_act']!r}; only the exact 'gelu' is supported")
    if raw.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{path}: position_embedding_type must be 'absolute'")
    hidden, heads, count = raw["hidden_size"], raw["num_attention_heads"], raw["num_hidden_layers"]
    if not hidden or not heads or hidden % heads:
        raise UserError(f"{path}: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    heads_per_layer = raw.get("heads_per_layer", [heads] * count)
    ffn_per_layer = raw.get("ffn_per_layer", [raw["intermediate_size"]] * count)
    if len(heads_per_layer) != count or len(ffn_per_layer) != count:
        raise UserError(f"{path}: heads_per_layer and ffn_per_layer must have num_hidden_layers = {count} entries")
    record, known = raw.get("quantization"), [field.name for field in dataclasses.fields(Quantization)]
    try:
        # Directories from before there were scales for features do not say what theirs are for.
        quantization = Quantization(**({"activation_scales": "tensor"} | record)) if record else None
    except TypeError:
        raise UserError(f"{path}: quantization: fields are {', '.join(known)}") from None
    return BertConfig(
        vocab_size=raw["vocab_size"],
        hidden_size=hidden,
        head_size=hidden // heads,
        layers=tuple(LayerShape(heads=h, ffn=f) for h, f in zip(heads_per_layer, ffn_per_layer, strict=True)),
        max_position_embeddings=raw.get("max_position_embeddings", 512),
        type_vocab_size=raw.get("type_vocab_size", 2),
        layer_norm_eps=raw.get("layer_norm_eps", 1e-12),
        pad_token_id=raw.get("pad_token_id", 0),
        hidden_dropout=raw.get("hidden_dropout_prob", 0.1),
        attention_dropout=raw.get("attention_probs_dropout_prob", 0.1),
        quantization=quantization,
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
