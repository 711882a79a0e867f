"""Offline throughput of several models on the same windows, in interleaved rounds, without LoadGen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bertjax.config import BertConfig
from bertjax.data.features import WindowSettings
from bertjax.mlperf import cpu, measure
from bertjax.mlperf.backend import open_backend
from bertjax.mlperf.samples import SampleLibrary, read_dataset

WINDOWS = 512
ROUNDS = 5
SECONDS = 20.0  # small models get more rounds until then


@dataclasses.dataclass(frozen=True, kw_only=True)
class Speeds:
    """One entry per model; a speed-up is against the first one, with the 10th and 90th percentile of the rounds."""

    samples_per_second: list[float]
    speedup: list[float]
    speedup_low: list[float]
    speedup_high: list[float]
    description: list[str]
    windows: int
    rounds: int


def offline_speeds(models: Sequence[Path], data: Path, windows: WindowSettings, *, backend: str = "auto") -> Speeds:
    """Measure model directories that share a tokenizer, each with one single-threaded stream per core.

    Args:
      data: a SQuAD v1.1 file, of which `WINDOWS` windows are drawn at random.

    Raises:
      UserError: a model or the file is wrong, or the backend cannot run here.
    """
    dataset = read_dataset(data, models[0], windows)
    size = min(WINDOWS, len(dataset.windows))
    chosen = np.random.default_rng(0).choice(len(dataset.windows), size, replace=False)
    library = SampleLibrary(dataset, BertConfig.from_json(models[0] / "config.json").pad_token_id)
    library.load(chosen.tolist())
    passes = []
    for model in models:
        opened = open_backend(backend, model, streams=cpu.cores(), threads=1, longest=windows.max_seq)
        passes.append(measure.offline_passes(opened, library, chosen, tokens=opened.batch_tokens))
    times = measure.interleaved([one.seconds for one in passes], rounds=ROUNDS, seconds=SECONDS)
    usual = measure.steady_medians(times)
    low, high = np.percentile(times[:, :1] / times, [10, 90], axis=0)
    return Speeds(
        samples_per_second=(size / usual).tolist(),
        speedup=(usual[0] / usual).tolist(),
        speedup_low=low.tolist(),
        speedup_high=high.tolist(),
        description=[one.backend.description for one in passes],
        windows=size,
        rounds=len(times),
    )
