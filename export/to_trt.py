"""Build a TensorRT engine and list which of its kernels run in INT8.

    python export/to_trt.py --model runs/demo/student-int8

Uses `tensorrt` on a machine with a GPU, else `tensorrt-rtx`, which needs none. The engine has two optimization
profiles unless --batch says otherwise: batch 1 for SingleStream, and 1 to 32 for Offline and Server.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bertjax import programs
from bertjax.errors import UserError, WorkFailed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, help="model directory (default: the newest run's INT8 student)")
    add("--onnx", type=Path, help="build from this file of export/to_onnx.py; with --model, it has to be of that model")
    add("--flavour", choices=("trt", "cpu"), help="trt: fp16 body (default); cpu: fp32, for unquantized models")
    add(
        "--batch",
        type=_range,
        action="append",
        help="least,optimal,most sequences, or one number; once per profile (default: --batch 1 --batch 1,8,32)",
    )
    add("--seq", type=_range, help="likewise, in tokens (default 64,192,384, within the model's own)")
    add("--compute-capability", help="of the target GPU (default: the GPU here; without one 8.9, an L4)")
    add("--workspace-mib", type=int, default=1024, help="scratch memory of the engine (default 1024)")
    add("--timing-cache", type=Path, help="file of kernel times, kept for the next build (default: by the engine)")
    add("--output", type=Path, help="engine to write, its record beside it (default: model.engine beside the weights)")
    add("--require-int8", action="store_true", help="fail unless every encoder dense layer is an INT8 GEMM")
    options = parser.parse_args()

    from bertjax.rundir import newest_student
    from bertjax.tensorrt.build import BuildSettings, default_batches, default_seq
    from bertjax.tensorrt.export import export_engine
    from bertjax.tensorrt.source import source_from_directory, source_from_onnx
    from bertjax.tensorrt.table import format_accounts

    if options.onnx:
        source = source_from_onnx(options.onnx, directory=options.model, flavour=options.flavour)
    else:
        source = source_from_directory(options.model or newest_student(), options.flavour or "trt")
    if options.require_int8 and source.config.quantization is None:
        raise UserError(f"--require-int8: {options.onnx or source.directory} is not quantized; name a student-int8")
    settings = BuildSettings(
        batches=tuple(options.batch or default_batches(source.config)),
        seq=options.seq or default_seq(source.config),
        compute_capability=options.compute_capability,
        workspace_bytes=options.workspace_mib << 20,
    )
    engine = export_engine(source, settings, output=options.output, timing_cache=options.timing_cache)
    print(format_accounts(source.config, settings, engine.accounts))
    print(f"{engine.path}  {engine.path.stat().st_size / 1e6:.1f} MB  (details: {engine.record_path})")
    others = {entry.name: None for account in engine.accounts for entry in account.dense if not entry.int8}
    if options.require_int8 and others:
        raise WorkFailed(f"{len(others)} encoder dense layers are not INT8 GEMMs: {', '.join(others)}")


def _range(text: str) -> tuple[int, int, int]:
    """`8` or `1,8,32`."""
    try:
        least, optimal, most = [int(part) for part in text.split(",")] * (1 if "," in text else 3)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected one number or three, such as 1,8,32") from None
    return least, optimal, most


if __name__ == "__main__":
    programs.run(main)
