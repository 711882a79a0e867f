"""The account of an engine: its kernels and their dtypes, what was fused, what stayed in float."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from bertjax.modeldir import tensors
from bertjax.modeldir.config import BertConfig
from bertjax.onnx.emit import dense_scopes
from bertjax.tensorrt.steps import Step

_PRODUCTS = ("gemm", "runtime_fusion")  # kinds of steps that multiply two matrices


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseAccount:
    """The kernel of one dense layer of the encoder."""

    name: str  # "layer3/ffn/out"
    kernel: str
    tactic: str
    input_dtype: str
    weight_dtype: str
    merged_with: tuple[str, ...]  # other dense layers in the same kernel
    quantized_in: str  # what rounds its input to INT8: LayerNorm, GELU, attention, GEMM, "alone"; "" if nothing does

    @property
    def int8(self) -> bool:
        """Whether this is an INT8 GEMM: it reads INT8 activations and INT8 weights."""
        return self.input_dtype == "Int8" and self.weight_dtype == "Int8"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionAccount:
    """The kernel of one layer's two attention products and the softmax between them."""

    layer: int
    kernel: str  # the one that computes all three, "" if there is none
    dtype: str  # of the products' operands: Half, Int8, or several joined by "+"


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepAccount:
    """One step of the engine that computes nodes of the model."""

    part: str  # "embeddings", "mask", "layer3/attention", "layer3/ffn" or "span_head"
    kernel: str
    kind: str
    reads: tuple[str, ...]  # dtypes
    writes: tuple[str, ...]  # dtypes
    nodes: tuple[str, ...]

    @property
    def float_only(self) -> bool:
        return "Int8" not in self.reads + self.writes

    @property
    def adds_residual(self) -> bool:
        return any(node.endswith("/residual/Add") for node in self.nodes)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """The kernels of a model in one optimization profile."""

    dense: tuple[DenseAccount, ...]
    attention: tuple[AttentionAccount, ...]  # of the layers that have heads
    steps: tuple[StepAccount, ...]
    kinds: dict[str, int]  # number of engine steps of each kind, including those that compute no node

    @property
    def all_int8(self) -> bool:
        return all(entry.int8 for entry in self.dense)

    def totals(self) -> dict[str, Any]:
        """The counts in the table's last lines."""
        # Q, K and V of a layer share their input, so one of them stands for all three.
        inputs = [entry for entry in self.dense if not entry.name.endswith(("/key", "/value"))]
        queries = [entry for entry in self.dense if entry.name.endswith("/query")]
        return {
            "dense_layers": len(self.dense),
            "int8_gemms": sum(entry.int8 for entry in self.dense),
            "int8_kernels": len({entry.kernel for entry in self.dense if entry.int8}),
            "attention_layers": len(self.attention),
            "fused_attention": sum(bool(entry.kernel) for entry in self.attention),
            "attention_dtypes": dict(Counter(entry.dtype for entry in self.attention)),
            "merged_qkv": sum(_merges_qkv(entry) for entry in queries),
            "residual_reads": dict(
                Counter("+".join(sorted(set(step.reads))) for step in self.steps if step.adds_residual)
            ),
            "quantized_in": dict(Counter(entry.quantized_in for entry in inputs if entry.quantized_in)),
            "float_only_steps": dict(Counter(step.part.split("/")[-1] for step in self.steps if step.float_only)),
            "steps": sum(self.kinds.values()),
            "kinds": self.kinds,
        }

    def to_dict(self) -> dict[str, Any]:
        """The account in the form of `engine.json`."""
        return {
            "totals": self.totals(),
            "dense": [dataclasses.asdict(entry) | {"int8": entry.int8} for entry in self.dense],
            "attention": [dataclasses.asdict(entry) for entry in self.attention],
            "steps": [dataclasses.asdict(step) for step in self.steps],
        }


def _merges_qkv(query: DenseAccount) -> bool:
    block = query.name.removesuffix("/query")
    return {f"{block}/key", f"{block}/value"} <= set(query.merged_with)


def make_accounts(config: BertConfig, steps: Sequence[Step], *, profiles: int) -> list[Account]:
    """One account for each optimization profile."""
    return [_make_account(config, [step for step in steps if step.profile == index]) for index in range(profiles)]


def _make_account(config: BertConfig, steps: Sequence[Step]) -> Account:
    scopes = dense_scopes(config)
    sizes = {scopes[site.name]: site.inputs * site.outputs for site in tensors.dense_sites(config)}
    return Account(
        dense=tuple(_dense_account(scope, sizes, steps) for scope in sizes),
        attention=tuple(_attention_account(index, steps) for index, layer in enumerate(config.layers) if layer.heads),
        steps=tuple(_step_account(step) for step in steps if step.nodes),
        kinds=dict(Counter(step.kind for step in steps).most_common()),
    )


def _dense_account(scope: str, sizes: dict[str, int], steps: Sequence[Step]) -> DenseAccount:
    gemm = _find_gemm(f"{scope}/MatMul", sizes[scope], steps)
    if gemm is None:
        return DenseAccount(
            name=scope, kernel="not found", tactic="", input_dtype="", weight_dtype="", merged_with=(), quantized_in=""
        )
    input_dtype = gemm.inputs[0].dtype if gemm.inputs else ""
    weight = max(gemm.constants, key=lambda constant: constant.elements, default=None)
    return DenseAccount(
        name=scope,
        kernel=gemm.name,
        tactic=gemm.tactic,
        input_dtype=input_dtype,
        # If constants are not listed the activation's dtype stands for both: a GEMM has no mixed operands.
        weight_dtype=weight.dtype if weight else input_dtype,
        merged_with=tuple(other for other in sizes if other != scope and f"{other}/MatMul" in gemm.nodes),
        quantized_in=_quantized_in(scope, steps),
    )


def _find_gemm(node: str, weight_elements: int, steps: Sequence[Step]) -> Step | None:
    """The step that multiplies by a dense layer's weight.

    The step after a GEMM names its node too, because it applies the scales; the GEMM is the one that holds a constant
    as large as the weight, or, where constants are not listed, the one of that kind.
    """
    computing = [step for step in steps if node in step.nodes]
    for step in computing:
        if any(constant.elements >= weight_elements for constant in step.constants):
            return step
    return next((step for step in computing if step.kind in _PRODUCTS), None)


def _quantized_in(scope: str, steps: Sequence[Step]) -> str:
    """The operation that shares a kernel with the quantization of a dense layer's input."""
    block, part = scope.rsplit("/", 1)
    node = f"{block if part in ('query', 'key', 'value') else scope}/input/QuantizeLinear"
    step = next((step for step in steps if node in step.nodes), None)
    if step is None:
        return ""
    operations = {name.rsplit("/", 1)[-1] for name in step.nodes}
    if "LayerNormalization" in operations:
        return "LayerNorm"
    if "Gelu" in operations:
        return "GELU"
    if {"Softmax", "MatMul"} <= operations:
        return "attention"
    return "GEMM" if step.kind in _PRODUCTS else "alone"


def _attention_account(index: int, steps: Sequence[Step]) -> AttentionAccount:
    scope = f"layer{index}/attention"
    products = f"{scope}/scores/MatMul", f"{scope}/context/MatMul"
    wanted = {*products, f"{scope}/Softmax"}
    fused = next((step for step in steps if wanted <= step.nodes), None)
    if fused:
        # Query, key and value, and the mask, which stays in float also where the three are INT8.
        dtypes = [tensor.dtype for tensor in fused.inputs]
        operands = ["Int8"] if dtypes.count("Int8") >= 3 else dtypes
    else:
        operands = [
            tensor.dtype
            for product in products
            for step in steps
            if product in step.nodes and step.kind in _PRODUCTS
            for tensor in step.inputs[:2]
        ]
    return AttentionAccount(layer=index, kernel=fused.name if fused else "", dtype="+".join(sorted(set(operands))))


def _step_account(step: Step) -> StepAccount:
    return StepAccount(
        part=_part(step.nodes),
        kernel=step.name,
        kind=step.kind,
        reads=tuple(tensor.dtype for tensor in step.inputs),
        writes=tuple(tensor.dtype for tensor in step.outputs),
        nodes=tuple(sorted(step.nodes)),
    )


def _part(nodes: frozenset[str]) -> str:
    """The earliest part of the model among a step's nodes."""

    def part_of(node: str) -> tuple[int, int, str]:
        top, *rest = node.split("/")
        if top.startswith("layer"):
            block = "attention" if rest[0] == "attention" else "ffn"
            return int(top.removeprefix("layer")), block == "ffn", f"{top}/{block}"
        return (1 << 30, 0, top) if top == "span_head" else (-1, 0, top)

    return min(part_of(node) for node in nodes)[2]
