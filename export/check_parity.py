"""Compare one model's logits and scores on every engine with those of JAX, on this machine.

    python export/check_parity.py --model runs/minilm/student-int8 --data dev-v1.1.json.gz

Training and evaluation use JAX, which is the first row; the others are ONNX Runtime, OpenVINO, and ONNX Runtime on the
graph that TensorRT gets, on the same padded batches. `argmax` is the share of best starts and best ends that agree.
Exits with 1 if an engine is further from JAX than its arithmetic explains.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bertjax import programs
from bertjax.errors import WorkFailed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="model directory (default: the newest run's INT8 student)")
    add("--data", type=Path, metavar="FILE", help="SQuAD v1.1 file (default: the evaluation file of the model's run)")
    add("--questions", type=int, metavar="N", help="this many questions, drawn at random (default: all)")
    options = parser.parse_args()

    from bertjax import rundir
    from bertjax.data.dataset import load_dataset
    from bertjax.display import text_table
    from bertjax.engines.parity import check_parity
    from bertjax.engines.samples import fitting_tokenizer

    model = options.model or rundir.newest_student()
    windows = rundir.window_settings(model)
    path = options.data or rundir.default_data(model)
    data = load_dataset(path, fitting_tokenizer(model, windows), windows, questions=options.questions)
    found = list(check_parity(model, data, windows.max_seq))
    rows = [
        [
            one.engine,
            f"{one.score.exact_match:.2f}",
            f"{one.score.f1:.2f}",
            f"{one.distance:.1e}",
            f"{one.largest:.1e}",
            f"{one.argmax:.2%}",
        ]
        for one in found
    ]
    print(f"{model}, {len(data.examples)} questions, {len(data.windows)} windows\n")
    header = ["engine", "exact match", "F1", "relative L2", "largest difference", "argmax"]
    print(text_table(header, rows, width=80))
    if wrong := [f"{one.engine}: {'; '.join(one.faults)}" for one in found if one.faults]:
        raise WorkFailed(f"engines differ: {' | '.join(wrong)}")


if __name__ == "__main__":
    programs.run(main)
