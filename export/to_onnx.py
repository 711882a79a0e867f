"""Write a model directory as ONNX: `cpu` for ONNX Runtime and OpenVINO, `trt` for TensorRT.

    python export/to_onnx.py --model runs/demo/student-int8

Flavour `trt`, whose body is float16, is tried in ONNX Runtime on windows of the run's training file, or of random
tokens; NaN and infinite logits are told.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bertjax import programs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: the newest run's INT8 student)")
    parser.add_argument(
        "--exporter",
        choices=("emitter", "tf2onnx"),
        default="emitter",
        help="tf2onnx: the same model through TensorFlow, as a witness that the emitter's graph is right; "
        "flavour cpu only, model.tf2onnx.onnx; needs pip install bertjax[tf] (default: emitter)",
    )
    parser.add_argument("--flavour", choices=("cpu", "trt", "both"), help="default: both; with --exporter tf2onnx cpu")
    parser.add_argument("--output", type=Path, help="file to write, with one flavour (default: beside the weights)")
    options = parser.parse_args()
    flavour = options.flavour or ("both" if options.exporter == "emitter" else "cpu")
    if options.exporter == "tf2onnx" and flavour != "cpu":
        parser.error(f"--exporter tf2onnx writes --flavour cpu only, not {flavour}; leave --flavour out")
    if options.output and flavour == "both":
        parser.error("--output names one file; add --flavour cpu or --flavour trt")

    from bertjax.engines.trial import try_graph
    from bertjax.onnx.export import export_onnx, export_twin
    from bertjax.onnx.graph import FLAVOURS
    from bertjax.rundir import newest_student

    model = options.model or newest_student()
    if options.exporter == "tf2onnx":
        _tell(export_twin(model, output=options.output))
        return
    for name in FLAVOURS:
        if flavour in (name, "both"):
            path = export_onnx(model, flavour=name, output=options.output)
            _tell(path)
            if name == "trt":
                print(f"  {try_graph(path, model)}")


def _tell(path: Path) -> None:
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    programs.run(main)
