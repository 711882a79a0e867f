"""Say which of a model's dense layers run on integer kernels, on each CPU engine, on this machine.

    python export/check_cpu.py --model runs/demo/student-int8 --require-int8

Read from the compiled model (OpenVINO) and from the optimized graph (ONNX Runtime). On a CPU without VNNI or AMX
OpenVINO's integer kernels are switched off, as they would saturate; there only ONNX Runtime is asked for them, unless
--backend openvino is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bertjax import programs
from bertjax.errors import WorkFailed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: the newest run's INT8 student)")
    parser.add_argument("--backend", choices=("openvino", "onnxruntime", "both"), default="both")
    parser.add_argument("--require-int8", action="store_true", help="fail unless every encoder dense layer is INT8")
    options = parser.parse_args()

    from bertjax import machine
    from bertjax.engines.backend import CPU_ENGINES
    from bertjax.engines.kernels import check_engine, format_kernels, format_share
    from bertjax.rundir import newest_student

    model = options.model or newest_student()
    failed = []
    for name in CPU_ENGINES if options.backend == "both" else (options.backend,):
        kernels, description = check_engine(model, name)
        print(f"{description}\n  encoder dense layers on integer kernels: {format_share(kernels)}")
        print(f"  kernels: {format_kernels(kernels)}")
        others = [entry.name for entry in kernels if not entry.integer]
        switched_off = name == "openvino" and machine.saturates_int8()
        if others and not (switched_off and options.backend == "both"):
            failed.append(f"{len(others)} on {name} ({', '.join(others)})")
    if options.require_int8 and failed:
        raise WorkFailed(f"encoder dense layers not on integer kernels: {'; '.join(failed)}")


if __name__ == "__main__":
    programs.run(main)
