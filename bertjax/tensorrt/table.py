"""The account of an engine as tables for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from bertjax.display import text_table
from bertjax.modeldir.config import BertConfig
from bertjax.tensorrt.account import Account, DenseAccount
from bertjax.tensorrt.build import BuildSettings

_HEADER = ("layer", "heads", "ffn", "Q/K/V", "attention", "out", "ffn in", "ffn out", "Q fused", "float steps")


def format_accounts(config: BertConfig, settings: BuildSettings, accounts: Sequence[Account]) -> str:
    """A table with one row per encoder layer and its totals, for each profile.

    A profile whose table is the first one's again shows its totals alone.
    """
    parts, first = [], ""
    for number, (batch, account) in enumerate(zip(settings.batches, accounts, strict=True)):
        shape = f"batch {_range_text(batch)}, {_range_text(settings.seq)} tokens"
        table = text_table(_HEADER, _rows(config, account))
        same = "; layer by layer as profile 0" if number and table == first else ""
        parts.append(f"profile {number}: {shape}{same}")
        if not same:
            parts.append(table)
        parts += _total_lines(account)
        first = first or table
    return "\n".join(parts)


def _range_text(bounds: tuple[int, int, int]) -> str:
    least, optimal, most = bounds
    if least == most:
        return str(most)
    return f"{least} to {most}" + (f" (best at {optimal})" if optimal != most else "")


def _rows(config: BertConfig, account: Account) -> list[tuple[str, ...]]:
    dense = {entry.name: entry for entry in account.dense}
    attention = {entry.layer: entry for entry in account.attention}
    floats = Counter(step.part.split("/")[0] for step in account.steps if step.float_only)
    rows = []
    for index, layer in enumerate(config.layers):
        scope = f"layer{index}"
        cells = [str(index), str(layer.heads), str(layer.ffn), "-", "-"]
        if layer.heads:
            entry = attention[index]
            cells[3] = _qkv_cell([dense[f"{scope}/attention/{part}"] for part in ("query", "key", "value")])
            cells[4] = f"{'fused' if entry.kernel else 'not fused'}, {entry.dtype}"
        cells += [_dense_cell(dense.get(f"{scope}/{part}")) for part in ("attention/out", "ffn/in", "ffn/out")]
        inputs = [
            entry.quantized_in
            for name, entry in dense.items()
            if name.startswith(f"{scope}/") and entry.quantized_in and not name.endswith(("/key", "/value"))
        ]
        cells.append(f"{sum(where != 'alone' for where in inputs)} of {len(inputs)}" if inputs else "-")
        cells.append(str(floats[scope]))
        rows.append(tuple(cells))
    return rows


def _dense_cell(entry: DenseAccount | None) -> str:
    if entry is None:
        return "-"
    if not entry.input_dtype:
        return entry.kernel
    return entry.input_dtype if entry.input_dtype == entry.weight_dtype else f"{entry.input_dtype}/{entry.weight_dtype}"


def _qkv_cell(entries: Sequence[DenseAccount]) -> str:
    kernels = len({entry.kernel for entry in entries})
    return f"{'+'.join(dict.fromkeys(map(_dense_cell, entries)))} in {kernels} GEMM{'s' if kernels > 1 else ''}"


def _total_lines(account: Account) -> list[str]:
    totals = account.totals()
    lines = [
        f"INT8 GEMMs: {totals['int8_gemms']} of {totals['dense_layers']} encoder dense layers, "
        f"in {totals['int8_kernels']} kernels",
        f"Q, K and V merged: {totals['merged_qkv']} of {totals['attention_layers']} layers",
        f"fused attention: {totals['fused_attention']} of {totals['attention_layers']} layers"
        f" (operands: {_counts(totals['attention_dtypes']) or 'nothing'})",
    ]
    if totals["quantized_in"]:
        lines.append(f"inputs rounded to INT8 in a kernel with: {_counts(totals['quantized_in'])}")
    lines.append(f"residual adds read: {_counts(totals['residual_reads']) or 'nothing'}")
    lines.append(
        f"steps that touch no INT8: {sum(totals['float_only_steps'].values())} of {totals['steps']}"
        f" ({_counts(totals['float_only_steps'])})"
    )
    lines.append(f"steps by kind: {_counts(totals['kinds'])}")
    return lines


def _counts(counter: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counter.items())
