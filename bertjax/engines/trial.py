"""A trial of a graph just written: whether its logits are numbers, on windows like those that it will meet.

Float16 ends at 65,504; a model whose activations go beyond it gives NaN or infinity only where it runs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bertjax import machine, rundir
from bertjax.data.batching import collate
from bertjax.data.dataset import load_dataset
from bertjax.engines.onnxruntime import OnnxRuntimeBackend
from bertjax.engines.samples import fitting_tokenizer
from bertjax.errors import UserError
from bertjax.modeldir.config import INPUTS, BertConfig

WINDOWS = 32
RANDOM_TOKENS = 128  # of a window of random tokens, at most

Feed = tuple[np.ndarray, ...]  # ids, mask and types of one window, int64 [1, tokens]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """The windows that a graph was tried on, and how many of them gave NaN or infinity."""

    source: str  # of the windows, for people
    windows: int
    non_finite: int

    def __str__(self) -> str:
        """One line; a warning where a window gave no numbers."""
        if not self.non_finite:
            return f"tried on {self.windows} windows of {self.source}: all logits are finite"
        return (
            f"warning: NaN or infinite logits in {self.non_finite} of {self.windows} windows of {self.source}: float16"
            " does not hold what this model computes, so do not serve this file"
        )


def try_graph(graph: Path, directory: Path) -> Trial:
    """Run a model directory's exported graph in ONNX Runtime, which has float16 on every CPU.

    The windows are drawn from the training file of the model's run, as those of the calibration were; without a run
    that has one they are of random tokens.

    Raises:
      UserError: the directory is no model, or ONNX Runtime is missing or refuses the graph.
    """
    config = BertConfig.from_json(Path(directory) / "config.json")
    source, feeds = _of_the_run(directory, config) or ("random tokens", _random(config))
    backend = OnnxRuntimeBackend(Path(graph), config, streams=1, threads=machine.cores())
    non_finite = sum(not np.isfinite(backend.infer(*feed)).all() for feed in feeds)
    return Trial(source=source, windows=len(feeds), non_finite=non_finite)


def _of_the_run(directory: Path, config: BertConfig) -> tuple[str, list[Feed]] | None:
    """The training file of the model's run and windows of it; None if there is none that can be read."""
    run = rundir.run_folder(directory)
    recorded = rundir.read_metrics(run).get("data", {}).get("train_file") if run else None
    path = rundir.find_recorded(run, recorded) if run and recorded else None
    if path is None:
        return None
    try:
        settings = rundir.window_settings(directory)
        windows = load_dataset(path, fitting_tokenizer(directory, settings), settings, questions=WINDOWS).windows
    except UserError:
        return None
    feeds = []
    for row in range(min(WINDOWS, len(windows))):
        arrays = collate(windows, [row], len(windows[row]), config.pad_token_id)
        feeds.append(tuple(arrays[name].astype(np.int64) for name in INPUTS))
    return str(path), feeds


def _random(config: BertConfig) -> list[Feed]:
    rng, shape = np.random.default_rng(0), (1, min(RANDOM_TOKENS, config.max_position_embeddings))
    types = (np.arange(shape[1]) >= shape[1] // 4).astype(np.int64)[None]
    return [(rng.integers(0, config.vocab_size, shape), np.ones_like(types), types) for _ in range(WINDOWS)]
