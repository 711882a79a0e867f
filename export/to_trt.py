"""Build a model directory's TensorRT engine and say what of it runs in INT8.

    python export/to_trt.py --model runs/demo/student-int8

Uses `tensorrt` on a machine with a GPU, else `tensorrt-rtx`, which needs none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bertjax import programs
from bertjax.errors import WorkFailed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="model directory (default: the newest run's INT8 student)")
    parser.add_argument("--batch", type=_range, default=(1, 8, 32), help="least,optimal,most (default 1,8,32)")
    parser.add_argument("--seq", type=_range, help="likewise, in tokens (default 64,192,384, within the model's own)")
    parser.add_argument(
        "--compute-capability", help="of the target GPU (default: the GPU here; without one 8.9, an L4)"
    )
    parser.add_argument("--workspace-mib", type=int, default=1024, help="scratch memory of the engine (default 1024)")
    parser.add_argument("--require-int8", action="store_true", help="fail unless every encoder dense layer is INT8")
    options = parser.parse_args()

    from bertjax.config import BertConfig
    from bertjax.runs import newest_student
    from bertjax.tensorrt.account import format_account
    from bertjax.tensorrt.build import BuildSettings
    from bertjax.tensorrt.export import export_engine

    model = options.model or newest_student()
    positions = BertConfig.from_json(model / "config.json").max_position_embeddings
    settings = BuildSettings(
        batch=options.batch,
        seq=options.seq or tuple(min(tokens, positions) for tokens in (64, 192, 384)),
        compute_capability=options.compute_capability,
        workspace_bytes=options.workspace_mib << 20,
    )
    path, account = export_engine(model, settings)
    print(format_account(BertConfig.from_json(model / "config.json"), account))
    print(f"{path}  {path.stat().st_size / 1e6:.1f} MB  (details: {path.with_name('engine.json')})")
    if options.require_int8 and not account.all_int8:
        others = [entry.name for entry in account.dense if not entry.int8]
        raise WorkFailed(f"{len(others)} encoder dense layers are not INT8 GEMMs: {', '.join(others)}")


def _range(text: str) -> tuple[int, int, int]:
    try:
        least, optimal, most = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: wanted are three numbers, such as 1,8,32") from None
    return least, optimal, most


if __name__ == "__main__":
    programs.run(main)
