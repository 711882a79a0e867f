"""What an engine runs in INT8 and what was fused, read from the builder's verbose log.

With `ProfilingVerbosity.DETAILED` the log ends in a list of the engine's layers, one a line: name, type, the
tensors it reads and writes with their dtypes, and the ONNX nodes it stands for. (An engine that was built for another
GPU cannot be loaded, so the engine inspector is no way to the same list.)
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any

from bertjax.config import BertConfig
from bertjax.onnx.emit import dense_scopes

_LAYER = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: (?P<inputs>.*?), "
    r"(?:Constants: (?P<constants>.*?), )?Outputs: (?P<outputs>.*?), "
    r"TacticName: (?P<tactic>.*?),.*?Metadata: (?P<metadata>.*)$",
    re.MULTILINE,
)
_TENSOR = re.compile(r"Dimensions: \[(?P<dimensions>[^\]]*)\].*?Datatype: (?P<dtype>\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineLayer:
    """One step of an engine."""

    name: str
    kind: str  # TensorRT's word: gemm, kgen (a generated kernel), signal, ...
    inputs: tuple[str, ...]  # dtypes
    constants: tuple[tuple[int, str], ...]  # element count and dtype of each
    outputs: tuple[str, ...]  # dtypes
    tactic: str
    nodes: frozenset[str]  # names of the ONNX nodes it computes, wholly or in part


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseAccount:
    """How one dense layer of the encoder runs."""

    name: str  # "layer3/ffn/out"
    kernel: str
    input_dtype: str
    weight_dtype: str
    merged_with: tuple[str, ...]  # other dense layers in the same kernel
    quantized_in: str  # the kernel that rounds its input to INT8: LayerNormalization, Gelu, attention, or "alone"

    @property
    def int8(self) -> bool:
        """Whether this is an INT8 GEMM: it reads INT8 activations and INT8 weights."""
        return self.input_dtype == "Int8" and self.weight_dtype == "Int8"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
    """What became of an encoder."""

    dense: tuple[DenseAccount, ...]
    attention: dict[int, str]  # layer index to the fused kernel's name, "" where attention was not fused
    kernels: dict[str, int]  # how many engine layers of each kind

    @property
    def all_int8(self) -> bool:
        return all(entry.int8 for entry in self.dense)

    def to_dict(self) -> dict[str, Any]:
        """The account as `engine.json` holds it."""
        return {
            "dense_layers": len(self.dense),
            "int8_gemms": sum(entry.int8 for entry in self.dense),
            "attention_layers": len(self.attention),
            "fused_attention": sum(map(bool, self.attention.values())),
            "kernels": self.kernels,
            "dense": [dataclasses.asdict(entry) | {"int8": entry.int8} for entry in self.dense],
            "attention": {str(index): kernel for index, kernel in self.attention.items()},
        }


def read_engine_layers(log: str) -> list[EngineLayer]:
    """The engine's layers in the order in which they run; empty if the log does not list them."""
    return [
        EngineLayer(
            name=match["name"],
            kind=match["kind"],
            inputs=tuple(dtype for _, dtype in _tensors(match["inputs"])),
            constants=_tensors(match["constants"] or ""),
            outputs=tuple(dtype for _, dtype in _tensors(match["outputs"])),
            tactic=match["tactic"],
            nodes=frozenset(_NODE.findall(match["metadata"])),
        )
        for match in _LAYER.finditer(log)
    ]


def _tensors(text: str) -> tuple[tuple[int, str], ...]:
    """Element count (an unknown axis counts as 1) and dtype of every tensor in one field of a layer's line."""
    found = []
    for match in _TENSOR.finditer(text):
        dimensions = [int(value) for value in match["dimensions"].split(",") if value.strip()]
        found.append((math.prod(max(1, value) for value in dimensions), match["dtype"]))
    return tuple(found)


def make_account(config: BertConfig, layers: list[EngineLayer]) -> Account:
    """Find every dense layer and every attention of the encoder among an engine's layers."""
    scopes = list(dense_scopes(config).values())
    kernels: dict[str, int] = {}
    for layer in layers:
        kernels[layer.kind] = kernels.get(layer.kind, 0) + 1
    return Account(
        dense=tuple(_dense_account(scope, scopes, layers) for scope in scopes),
        attention={
            index: _fused_attention(f"layer{index}/attention", layers)
            for index, layer in enumerate(config.layers)
            if layer.heads
        },
        kernels=kernels,
    )


def _dense_account(scope: str, scopes: list[str], layers: list[EngineLayer]) -> DenseAccount:
    # The kernel after a GEMM names its nodes too (it applies the scales); the GEMM is the one that reads the weight,
    # by far the largest constant among them.
    candidates = [layer for layer in layers if f"{scope}/MatMul" in layer.nodes and layer.constants]
    if not candidates:
        return DenseAccount(
            name=scope, kernel="not found", input_dtype="", weight_dtype="", merged_with=(), quantized_in=""
        )
    gemm = max(candidates, key=lambda layer: max(layer.constants))
    merged = (other for other in scopes if other != scope and f"{other}/MatMul" in gemm.nodes)
    return DenseAccount(
        name=scope,
        kernel=gemm.name,
        input_dtype=gemm.inputs[0] if gemm.inputs else "",
        weight_dtype=max(gemm.constants)[1],
        merged_with=tuple(merged),
        quantized_in=_quantized_in(scope, layers),
    )


def _quantized_in(scope: str, layers: list[EngineLayer]) -> str:
    """What else the kernel computes that quantizes a dense layer's input."""
    block, part = scope.rsplit("/", 1)
    node = f"{block if part in ('query', 'key', 'value') else scope}/input/QuantizeLinear"
    for layer in layers:
        if node in layer.nodes:
            others = {name.rsplit("/", 1)[-1] for name in layer.nodes}
            return next((op for op in ("LayerNormalization", "Gelu", "Softmax") if op in others), "alone")
    return ""


def _fused_attention(scope: str, layers: list[EngineLayer]) -> str:
    wanted = {f"{scope}/scores/MatMul", f"{scope}/Softmax", f"{scope}/context/MatMul"}
    return next((layer.name for layer in layers if wanted <= layer.nodes), "")


def format_account(config: BertConfig, account: Account) -> str:
    """The account as a table with one row per encoder layer, and its totals."""
    header = ("layer", "heads", "ffn", "Q/K/V", "attention", "out", "ffn in", "ffn out", "Q fused")
    by_name = {entry.name: entry for entry in account.dense}
    rows = [header]
    for index, layer in enumerate(config.layers):
        cells = [str(index), str(layer.heads), str(layer.ffn)]
        qkv = [by_name[f"layer{index}/attention/{part}"] for part in ("query", "key", "value") if layer.heads]
        cells.append(_qkv_cell(qkv))
        cells.append(("fused" if account.attention[index] else "not fused") if layer.heads else "-")
        for scope in ("attention/out", "ffn/in", "ffn/out"):
            entry = by_name.get(f"layer{index}/{scope}")
            cells.append(_dtype_cell(entry) if entry else "-")
        mine = [entry for entry in account.dense if entry.name.startswith(f"layer{index}/") and entry.quantized_in]
        inputs = {entry.name.replace("key", "query").replace("value", "query"): entry for entry in mine}
        fused = sum(entry.quantized_in != "alone" for entry in inputs.values())
        cells.append(f"{fused} of {len(inputs)}" if inputs else "-")
        rows.append(tuple(cells))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    totals = account.to_dict()
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(account.kernels.items(), key=lambda kv: -kv[1]))
    lines += [
        f"INT8 GEMMs: {totals['int8_gemms']} of {totals['dense_layers']} encoder dense layers, "
        f"in {len({entry.kernel for entry in account.dense if entry.int8})} kernels",
        f"fused attention: {totals['fused_attention']} of {totals['attention_layers']} layers",
        f"engine steps: {sum(account.kernels.values())} ({kinds})",
    ]
    return "\n".join(lines)


def _dtype_cell(entry: DenseAccount) -> str:
    if not entry.input_dtype:
        return entry.kernel
    return entry.input_dtype if entry.input_dtype == entry.weight_dtype else f"{entry.input_dtype}/{entry.weight_dtype}"


def _qkv_cell(entries: list[DenseAccount]) -> str:
    if not entries:
        return "-"
    kernels = len({entry.kernel for entry in entries})
    return f"{'+'.join(dict.fromkeys(map(_dtype_cell, entries)))} in {kernels} GEMM{'s' if kernels > 1 else ''}"
