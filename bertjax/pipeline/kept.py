"""The heads and FFN units that pruning kept, layer by layer: on the terminal and as a picture."""

from __future__ import annotations

from pathlib import Path

from bertjax.display import panels, save_svg, text_table
from bertjax.modeldir.config import BertConfig

_BAR = 24


def kept_table(teacher: BertConfig, student: BertConfig) -> str:
    """One row per layer: heads and FFN units kept, with a bar for each."""
    rows = []
    for index, (full, kept) in enumerate(zip(teacher.layers, student.layers, strict=True)):
        heads, ffn = _bar(kept.heads, full.heads), _bar(kept.ffn, full.ffn)
        rows.append([str(index), heads, f"{kept.heads}/{full.heads}", ffn, f"{kept.ffn}/{full.ffn}"])
    return text_table(["layer", "heads".ljust(_BAR), "kept", "FFN units".ljust(_BAR), "kept"], rows)


def _bar(kept: int, full: int) -> str:
    filled = round(_BAR * kept / full) if full else 0
    return "█" * filled + "·" * (_BAR - filled)


def draw_kept(path: Path, teacher: BertConfig, student: BertConfig) -> None:
    """Write the picture as SVG."""
    layers = range(len(teacher.layers))
    figure, axes = panels(2, width=8, height=0.8 + 0.32 * len(teacher.layers), share_y=True)
    for axis, field, title in zip(axes, ("heads", "ffn"), ("attention heads", "FFN units"), strict=True):
        full = [getattr(layer, field) for layer in teacher.layers]
        kept = [getattr(layer, field) for layer in student.layers]
        axis.barh(layers, full, color="#e3e6ea")
        axis.barh(layers, kept, color="#2f6f8f")
        axis.set_title(f"{title}: {sum(kept)} of {sum(full)} kept", fontsize=10)
    axes[0].set_ylabel("layer")
    axes[0].set_yticks(list(layers))
    axes[0].invert_yaxis()
    save_svg(figure, path)
