"""A model that is ready to answer questions about a text: tokenization, inference, the best span."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import tqdm

from bertjax import machine, rundir
from bertjax.data.answers import candidate_spans, whole_clusters
from bertjax.data.batching import collate, plan_inference
from bertjax.data.squad import Example, read_squad
from bertjax.data.windows import Window, WindowSettings, make_windows
from bertjax.engines.choose import open_backend
from bertjax.engines.samples import LENGTH_MULTIPLE, fitting_tokenizer
from bertjax.errors import UserError
from bertjax.modeldir.config import INPUTS, BertConfig, count_macs

BAR_AFTER = 2.0  # seconds without an answer until a bar shows that work is going on

EXAMPLE = Example(
    id="example",
    context=(
        "The first railway bridge over the Tamina was built of larch in 1871 by the engineer Ida Keller. A flood"
        " carried it away nine years later, and for two winters travellers crossed the river on foot, over the ice."
        " The stone bridge that replaced it still stands: it has five arches and is 112 metres long."
    ),
    question="Who built the first bridge?",
    answers=(),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
    """An answer with its place in the text, its score and its milliseconds.

    `score` is a probability over the candidate spans (`answers.candidate_spans`) of all windows: the softmax of their
    logit sums. It tells the answer from the other spans; whether the text holds an answer at all, the model never says.
    Where no span is a candidate, `start` and `end` are None, `answer` is empty and `score` is 0.
    """

    answer: str  # the text's characters from `start` to `end`
    start: int | None  # in code points, as Python counts
    end: int | None
    score: float
    logit_sum: float | None  # of the answer's start and end, by which spans of all windows are compared
    non_finite: int  # windows whose logits held NaN or infinity: they give no answer
    windows: int  # into which text and question were cut
    tokenize_ms: float  # from text and question to padded arrays
    infer_ms: float  # from arrays to logits, all windows


class Reader:
    """A model directory, open on a backend, one question at a time over all cores."""

    def __init__(self, directory: Path, *, backend: str):
        """Open a model with the window settings of its run.

        Args:
          backend: one of `backend.BACKENDS`.

        Raises:
          UserError: the directory is no complete model with its tokenizer, or the backend cannot run here.
        """
        self.name = Path(directory).resolve().name
        self.settings: WindowSettings = rundir.window_settings(directory)
        self._tokenizer = fitting_tokenizer(directory, self.settings)
        config = BertConfig.from_json(Path(directory) / "config.json")
        self.macs = count_macs(config, self.settings.max_seq)  # of one full window
        self._pad_id = config.pad_token_id
        self._backend = open_backend(
            backend, directory, streams=1, threads=machine.cores(), longest=self.settings.max_seq
        )
        self.description = self._backend.description
        self._met: set[tuple[int, int]] = set()

    def answer(self, text: str, question: str) -> Reply:
        """Answer one question, with the span that `answers.predict` chooses.

        Engines prepare their kernels when they first meet a shape, so a new shape is run once before it is timed, as
        before a LoadGen run.

        Raises:
          UserError: text or question is empty, or holds half of a surrogate pair, which is no character.
        """
        for name, value in (("text", text), ("question", question)):
            if not value.strip():
                raise UserError(f"{name}: is empty; there is nothing to answer")
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise UserError(f"{name}: holds half of a surrogate pair, which is no character; take it out")
        begin = time.perf_counter()
        example = Example(id="", context=text, question=question, answers=())
        windows = make_windows([example], self._tokenizer, self.settings)
        batches = self._batches(windows)
        tokenized = time.perf_counter()
        starts: list[np.ndarray] = [np.empty(0)] * len(windows)
        ends = list(starts)
        seconds = 0.0
        for rows, feed in tqdm.tqdm(batches, desc="read", unit="batch", leave=False, disable=None, delay=BAR_AFTER):
            if feed[0].shape not in self._met:
                self._backend.infer(*feed)
                self._met.add(feed[0].shape)
            before = time.perf_counter()
            start, end = self._backend.infer(*feed)
            seconds += time.perf_counter() - before
            for row, index in enumerate(rows):
                starts[index], ends[index] = start[row], end[row]
        sound = [index for index, one in enumerate(windows) if _is_finite(starts[index], ends[index], len(one))]
        span, score, logit_sum = _choose(
            [windows[index] for index in sound], [starts[index] for index in sound], [ends[index] for index in sound]
        )
        if span is not None:
            span = whole_clusters(text, *span)
        return Reply(
            answer=text[span[0] : span[1]] if span else "",
            start=span[0] if span else None,
            end=span[1] if span else None,
            score=score,
            logit_sum=logit_sum,
            non_finite=len(windows) - len(sound),
            windows=len(windows),
            tokenize_ms=1e3 * (tokenized - begin),
            infer_ms=1e3 * seconds,
        )

    def _batches(self, windows: list[Window]) -> list[tuple[np.ndarray, tuple[np.ndarray, ...]]]:
        """Indexes of windows, and their padded int64 arrays as `Backend.infer` takes them."""
        lengths = np.array([len(window) for window in windows])
        plans = plan_inference(
            lengths, tokens=self._backend.batch_tokens, multiple=LENGTH_MULTIPLE, longest=self.settings.max_seq
        )
        found = []
        for plan in plans:
            arrays = collate(windows, plan.rows.tolist(), plan.length, self._pad_id)
            found.append((plan.rows, tuple(arrays[name].astype(np.int64) for name in INPUTS)))
        return found


def _is_finite(starts: np.ndarray, ends: np.ndarray, size: int) -> bool:
    return bool(np.isfinite(starts[:size]).all() and np.isfinite(ends[:size]).all())


def _choose(
    windows: list[Window], start_logits: list[np.ndarray], end_logits: list[np.ndarray]
) -> tuple[tuple[int, int] | None, float, float | None]:
    """The best candidate span of all windows, its probability among them, and its logit sum."""
    found = [candidate_spans(*window) for window in zip(windows, start_logits, end_logits, strict=True)]
    sums = np.concatenate([np.empty(0), *(sums for sums, _ in found)])
    if not len(sums):
        return None, 0.0, None
    best = sums.argmax()
    start, end = np.concatenate([spans for _, spans in found])[best].tolist()
    return (start, end), float(1 / np.exp(sums - sums[best]).sum()), float(sums[best])


def teacher_of(model: Path) -> Path | None:
    """The teacher beside a student in its run directory; None where there is none, or the model is that itself."""
    model = Path(model).resolve()
    teacher = model.parent / "teacher"
    return teacher if (teacher / "config.json").exists() and teacher != model else None


def example_for(model: Path) -> Example:
    """A text and a question to try a model with: the first of its run's evaluation file, else `EXAMPLE`.

    The demo's model knows only the kind of text that it was trained on.
    """
    try:
        return read_squad(rundir.default_data(model))[0]
    except UserError:
        return EXAMPLE
