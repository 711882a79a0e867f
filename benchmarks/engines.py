"""Time and memory of building engines at BERT-large's size, and how much of them is INT8. No GPU is needed.

    python benchmarks/engines.py
    python benchmarks/engines.py --model student-int8 --model runs/minilm/student-int8

Writes model directories with random weights to a temporary folder and runs export/to_onnx.py and export/to_trt.py on
them, one program at a time: wall time, peak memory of the process, sizes, and the account's totals. What TensorRT does
with a graph depends on its shapes, not on its weights. The student's shapes are those of a BERT-large with 5.6 times
fewer multiply-accumulates, cut unevenly: layers with one head, without attention, without FFN. A directory as --model
stands for its shapes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import bench
from bertjax import programs
from bertjax.engines.timing.shapes import cut_bert_large
from bertjax.errors import WorkFailed
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig, count_macs
from bertjax.modeldir.untrained import random_model

EXPORT = Path(__file__).resolve().parent.parent / "export"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """A shape, and the flavour in which its engine is built."""

    config: BertConfig
    flavour: str = "trt"


def models() -> dict[str, Model]:
    """The rows of the table."""
    large, student = BertConfig.bert_large(), cut_bert_large()
    return {
        "student-int8": Model(config=student),
        "bert-large-int8": Model(config=dataclasses.replace(large, quantization=student.quantization)),
        "bert-large-fp16": Model(config=large),
        "bert-large-fp32": Model(config=large, flavour="cpu"),
        # Past 2 GB, an ONNX file's weights go into a second file.
        "44-layers-fp32": Model(config=dataclasses.replace(large, layers=large.layers[:1] * 44), flavour="cpu"),
    }


def run_program(program: str, *flags: str) -> tuple[float, int, str]:
    """Run a program of export/.

    Returns:
      Wall time in seconds, peak memory in bytes, and its output.

    Raises:
      WorkFailed: the program failed.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([sys.executable, EXPORT / program, *flags], stdout=printed)
        _, status, usage = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise WorkFailed(f"{program} {' '.join(flags)}: exit code {code}")
        printed.seek(0)
        return time.perf_counter() - begin, usage.ru_maxrss * 1024, printed.read()


def measure(directory: Path, model: Model) -> tuple[bench.Row, str]:
    """Export and build one model in `directory`; the figures of its row, and the account as printed."""
    store.save(directory, random_model(model.config), tokenizer_from=directory)
    export_seconds, export_peak, _ = run_program("to_onnx.py", "--model", str(directory), "--flavour", model.flavour)
    onnx_bytes = sum(path.stat().st_size for path in directory.glob("model*.onnx*"))
    flags = ["--require-int8"] if model.config.quantization else []
    build_seconds, build_peak, printed = run_program(
        "to_trt.py", "--model", str(directory), "--flavour", model.flavour, "--compute-capability", "8.9", *flags
    )
    record = json.loads((directory / "engine.json").read_text())
    totals = [profile["account"]["totals"] for profile in record["profiles"]]
    row = {
        "macs": count_macs(model.config, 384),
        "onnx_bytes": onnx_bytes,
        "export_seconds": export_seconds,
        "export_peak_bytes": export_peak,
        "build_seconds": build_seconds,
        "build_peak_bytes": build_peak,
        "engine_bytes": record["engine_bytes"],
        "library": f"{record['library']} {record['library_version']}",
        "int8_gemms": each_profile(totals, "int8_gemms", "dense_layers"),
        "fused_attention": each_profile(totals, "fused_attention", "attention_layers"),
        "merged_qkv": each_profile(totals, "merged_qkv", "attention_layers"),
    }
    return row, printed


def each_profile(totals: list[dict[str, Any]], key: str, of: str) -> str:
    """A total of every profile, once where they are equal."""
    return " / ".join(dict.fromkeys(f"{total[key]} of {total[of]}" for total in totals))


def main() -> None:
    parser = bench.flags("engines", __doc__)
    known = models()
    parser.add_argument(
        "--model", action="append", metavar="NAME", help=f"several times: {', '.join(known)}, or DIR (default: all)"
    )
    parser.add_argument("--accounts", action="store_true", help="print every engine's account, layer by layer, too")
    options = parser.parse_args()

    rows = []
    for name in options.model or known:
        model = known[name] if name in known else Model(config=bench.load_config(Path(name)))
        with tempfile.TemporaryDirectory() as folder:
            row, account = measure(Path(folder) / "model", model)
        rows.append({"model": name} | row)
        print(f"{name}: {row['library']}, {row['build_seconds']:.0f} s", file=sys.stderr)
        if options.accounts:
            print(f"{name}\n{account}")
    columns: dict[str, bench.Cell] = {
        "model": "{model}",
        "GMAC at 384": lambda row: f"{row['macs'] / 1e9:.1f}",
        "ONNX MB": lambda row: f"{row['onnx_bytes'] / 1e6:.0f}",
        "export s": "{export_seconds:.0f}",
        "GB": lambda row: f"{row['export_peak_bytes'] / 1e9:.1f}",
        "build s": "{build_seconds:.0f}",
        "GB ": lambda row: f"{row['build_peak_bytes'] / 1e9:.1f}",
        "engine MB": lambda row: f"{row['engine_bytes'] / 1e6:.0f}",
        "INT8 GEMMs": "{int8_gemms}",
        "fused attention": "{fused_attention}",
        "merged Q/K/V": "{merged_qkv}",
    }
    bench.report(options, bench.Table(name="engines", columns=columns, rows=rows))


if __name__ == "__main__":
    programs.run(main)
