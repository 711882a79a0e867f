"""What building engines at BERT-large's size takes, and what the engines do in INT8. No GPU is needed.

    python benchmarks/engines.py

Writes model directories with random weights to a temporary folder and runs export/to_onnx.py and export/to_trt.py on
them, one program at a time: seconds by the clock, peak memory of the process, sizes, and the account's totals. Weights
do not change what TensorRT does with a graph; shapes do. The student's are those of a BERT-large with 5.6 times fewer
multiply-accumulates, cut unevenly: layers with one head, without attention, without FFN.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bertjax import programs
from bertjax.display import text_table
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
        # Past 2 GB, where an ONNX file's weights go into a second file.
        "44-layers-fp32": Model(config=dataclasses.replace(large, layers=large.layers[:1] * 44), flavour="cpu"),
    }


def run_program(program: str, *flags: str) -> tuple[float, int, str]:
    """Run a program of export/.

    Returns:
      Seconds by the clock, peak memory in bytes, and what it printed.

    Raises:
      WorkFailed: it did.
    """
    begin = time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed:
        process = subprocess.Popen([sys.executable, EXPORT / program, *flags], stdout=printed)
        _, status, usage = os.wait4(process.pid, 0)
        if code := os.waitstatus_to_exitcode(status):
            raise WorkFailed(f"{program} {' '.join(flags)}: exit code {code}")
        printed.seek(0)
        return time.perf_counter() - begin, usage.ru_maxrss * 1024, printed.read()


def measure(directory: Path, model: Model) -> dict[str, Any]:
    """Export and build one model; everything that its row shows, and the account as printed."""
    store.save(directory, random_model(model.config), tokenizer_from=directory)
    seconds, memory, _ = run_program("to_onnx.py", "--model", str(directory), "--flavour", model.flavour)
    result: dict[str, Any] = {"export_seconds": seconds, "export_bytes": memory}
    result["onnx_bytes"] = sum(path.stat().st_size for path in directory.glob("model*.onnx*"))
    flags = ["--require-int8"] if model.config.quantization else []
    seconds, memory, printed = run_program(
        "to_trt.py", "--model", str(directory), "--flavour", model.flavour, "--compute-capability", "8.9", *flags
    )
    record = json.loads((directory / "engine.json").read_text())
    totals = [profile["account"]["totals"] for profile in record["profiles"]]
    return result | {
        "build_seconds": seconds,
        "build_bytes": memory,
        "engine_bytes": record["engine_bytes"],
        "library": f"{record['library']} {record['library_version']}",
        "totals": totals,
        "account": printed,
    }


def row(name: str, config: BertConfig, result: dict[str, Any]) -> list[str]:
    def each(key: str, of: str) -> str:
        """A total of every profile, once where they are equal."""
        return " / ".join(dict.fromkeys(f"{total[key]} of {total[of]}" for total in result["totals"]))

    return [
        name,
        f"{count_macs(config, 384) / 1e9:.1f}",
        f"{result['onnx_bytes'] / 1e6:.0f}",
        f"{result['export_seconds']:.0f}",
        f"{result['export_bytes'] / 1e9:.1f}",
        f"{result['build_seconds']:.0f}",
        f"{result['build_bytes'] / 1e9:.1f}",
        f"{result['engine_bytes'] / 1e6:.0f}",
        each("int8_gemms", "dense_layers"),
        each("fused_attention", "attention_layers"),
        each("merged_qkv", "attention_layers"),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = models()
    parser.add_argument("--model", action="append", choices=known, help="may be given several times (default: all)")
    parser.add_argument("--accounts", action="store_true", help="print every engine's account, layer by layer, too")
    options = parser.parse_args()

    rows = []
    for name in options.model or known:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(Path(folder) / "model", known[name])
        print(f"{name}: {result['library']}, {result['build_seconds']:.0f} s", file=sys.stderr)
        if options.accounts:
            print(f"{name}\n{result['account']}")
        rows.append(row(name, known[name].config, result))
    header = ["model", "GMAC at 384", "ONNX MB", "export s", "GB", "build s", "GB", "engine MB"]
    print(text_table([*header, "INT8 GEMMs", "attention fused", "Q/K/V merged"], rows))


if __name__ == "__main__":
    programs.run(main)
