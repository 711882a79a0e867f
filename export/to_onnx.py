"""Write a model directory as ONNX: `cpu` for ONNX Runtime and OpenVINO, `trt` for TensorRT.

python export/to_onnx.py --model runs/demo/student-int8
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bertjax import programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: the newest run's INT8 student)")
    parser.add_argument("--flavour", choices=("cpu", "trt", "both"), default="both")
    parser.add_argument("--output", type=Path, help="file to write, with one flavour (default: beside the weights)")
    options = parser.parse_args()
    if options.output and options.flavour == "both":
        parser.error("--output names one file; add --flavour cpu or --flavour trt")

    from bertjax.onnx.export import export_onnx
    from bertjax.runs import newest_student

    model = options.model or newest_student()
    for flavour in ("cpu", "trt") if options.flavour == "both" else (options.flavour,):
        path = export_onnx(model, flavour=flavour, output=options.output)
        print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    programs.run(main)
