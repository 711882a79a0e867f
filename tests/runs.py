"""A run directory with a tiny INT8 student and a small evaluation file, as `train/distill.py` leaves one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.models import tiny_config, write_random_model

TEXT = "the king of the old city built a bridge in 1820 and it was named after the river north of a new ship"


def squad(paragraphs: int) -> dict:
    """SQuAD v1.1 of random words, three questions a paragraph, windows of about 20 to 200 tokens."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(paragraphs):
        context = " ".join(rng.choice(TEXT.split(), rng.integers(10, 150)))
        answer = context.split()[4]
        questions = [
            {
                "id": f"{number}-{turn}",
                "question": "what was built " + " ".join(rng.choice(TEXT.split(), turn)),
                "answers": [{"text": answer, "answer_start": context.index(answer)}],
            }
            for turn in range(3)
        ]
        found.append({"context": context, "qas": questions})
    return {"version": "1.1", "data": [{"title": "words", "paragraphs": found}]}


def write_run(folder: Path, paragraphs: int, *, eval_file: str | None = None, **record: object) -> None:
    """Write what `python train/distill.py` leaves: a tiny student, an evaluation file, and the record that names it."""
    write_random_model(folder / "student-int8", tiny_config(), seed=1)
    (folder / "eval.json").write_text(json.dumps(squad(paragraphs)))
    data = {"eval_file": eval_file or str(folder / "eval.json"), "max_seq": 128, "doc_stride": 64, "max_query": 32}
    (folder / "metrics.json").write_text(json.dumps({"data": data} | record))
