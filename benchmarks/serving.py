"""How much faster serving is than the MLPerf reference's way, what each step gives, and what pruning alone gives.

    python benchmarks/serving.py --run runs/minilm --output serving.md
    python benchmarks/serving.py --run runs/minilm --shape --output shape.md

The reference implementation runs FP32 on ONNX Runtime, one window at a time, every window padded to the full length,
on all cores. The first table starts there, with the run's teacher, and takes one step at a time to the run's student;
the second sets the student against the teacher in INT8 on the same engine. That is OpenVINO, or ONNX Runtime on a CPU
whose OpenVINO kernels would saturate, as in serving; the steps of OpenVINO are then left out. With --shape both are
random models: a BERT-large, and a student of it with 5.6 times fewer multiply-accumulates; of the run only the windows
are taken.

Everything runs in turn in every round. Batches are drawn whole from those that Offline makes of all windows. Rows timed
by the clock want a quiet machine; those in processor time, which streams of one thread allow, hardly mind other work.
On OpenVINO the second table has a compiled model for each shape on both sides, as served. At BERT-large's size that
takes 0.3 GB for each shape, so few windows are to be asked for. The INT8 teacher is not calibrated: its scales are
usual ones, good for timing and not for answers.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tqdm

from bertjax import machine, programs, rundir
from bertjax.data.batching import BatchPlan
from bertjax.engines.choose import cpu_engine, open_backend
from bertjax.engines.samples import SampleLibrary, open_library
from bertjax.engines.timing.compare import (
    REPEATS,
    Passes,
    draw_windows,
    interleaved,
    offline_passes,
    single_passes,
    steady_medians,
)
from bertjax.engines.timing.shapes import cut_bert_large
from bertjax.engines.timing.warmup import single_multiple
from bertjax.modeldir import store
from bertjax.modeldir.config import BertConfig, count_macs
from bertjax.modeldir.untrained import UNCALIBRATED, random_model, uncalibrated

TOKENS = 1024  # padded tokens in a batch
QUERIES = 64  # of SingleStream


@dataclasses.dataclass(frozen=True, kw_only=True)
class Models:
    """Three model directories: a teacher, the same on its INT8 grid, and a smaller INT8 student."""

    teacher: Path
    teacher_int8: Path
    student: Path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A row of the first table."""

    name: str
    passes: Passes

    @property
    def windows(self) -> int:
        return sum(len(plan.rows) for plan in self.passes.plans)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contest:
    """A row of the second table: what gives the seconds of the INT8 teacher, and those of the student."""

    scenario: str
    timed_by: str
    teacher: Callable[[], float]
    student: Callable[[], float]


def run_models(run: Path, folder: Path) -> Models:
    """Those of a run; the teacher with what the student has in INT8 is written to `folder`."""
    student = BertConfig.from_json(run / "student-int8" / "config.json")
    teacher = uncalibrated(store.load_question_answering(run / "teacher"), student.quantization)
    store.save(folder / "teacher-int8", teacher, tokenizer_from=run / "teacher")
    return Models(teacher=run / "teacher", teacher_int8=folder / "teacher-int8", student=run / "student-int8")


def shape_models(folder: Path) -> Models:
    """A BERT-large and a student of it, with random weights, in `folder`."""
    large = BertConfig.bert_large()
    configs = {
        "teacher": large,
        "teacher-int8": dataclasses.replace(large, quantization=UNCALIBRATED),
        "student-int8": cut_bert_large(),
    }
    for name, config in configs.items():
        store.save(folder / name, random_model(config), tokenizer_from=folder)
    return Models(teacher=folder / "teacher", teacher_int8=folder / "teacher-int8", student=folder / "student-int8")


def int8_engine(models: Models) -> str:
    """The engine that serves the INT8 models on this CPU."""
    return cpu_engine(BertConfig.from_json(models.student / "config.json"))


def load_windows(run: Path, count: int) -> tuple[SampleLibrary, np.ndarray]:
    """At least `count` windows of the run's evaluation file, loaded, and their indices."""
    model = run / "teacher"
    windows = rundir.window_settings(model)
    dataset, library = open_library(rundir.default_data(model), model, windows)
    chosen = draw_windows(dataset.lengths, count=count, tokens=2 * TOKENS)
    library.longest = windows.max_seq  # the reference pads everything to it
    library.load(chosen.tolist())
    return library, chosen


def ladder(models: Models, library: SampleLibrary, chosen: np.ndarray, *, short: bool) -> list[Step]:
    """The reference's way, then one step more in each row; a short one leaves out steps that take minutes."""
    longest, cores = library.longest, machine.cores()
    open_with = functools.partial(open_backend, longest=longest)
    together, apart = {"streams": 1, "threads": cores}, {"streams": cores, "threads": 1}
    reference = open_with("onnxruntime", models.teacher, **together)
    engine = int8_engine(models)
    few = np.random.default_rng(0).choice(chosen, max(2, len(chosen) // 32), replace=False)
    padded = [BatchPlan(rows=np.array([row]), length=longest) for row in few]

    def step(name: str, engine: str, model: Path, shares: dict[str, int], tokens: int = TOKENS) -> Step:
        backend = reference if model == models.teacher else open_with(engine, model, **shares)
        return Step(name=name, passes=offline_passes(backend, library, chosen, tokens=tokens, repeats=REPEATS))

    steps = [Step(name="the reference's way", passes=Passes(backend=reference, library=library, plans=padded))]
    if not short:
        steps += [
            step("batches by length", "onnxruntime", models.teacher, together),
            step("INT8", "onnxruntime", models.teacher_int8, together),
        ]
        if engine == "openvino":
            steps.append(step("OpenVINO", "openvino", models.teacher_int8, together))
    steps.append(step(f"{cores} streams of one thread", engine, models.teacher_int8, apart))
    steps.append(step("pruning", engine, models.student, apart))
    if engine == "openvino":
        last = step("a model for each shape", engine, models.student, apart)
        last.passes.compile_shapes()
        steps.append(last)
    return steps


def contests(models: Models, library: SampleLibrary, chosen: np.ndarray) -> list[Contest]:
    """The INT8 teacher and the student on one engine, in Offline and SingleStream."""
    engine = int8_engine(models)
    cores, queries = machine.cores(), np.random.default_rng(0).choice(chosen, min(QUERIES, len(chosen)), replace=False)

    def passes(model: Path, streams: int, threads: int, *, single: bool) -> Passes:
        backend = open_backend(engine, model, streams=streams, threads=threads, longest=library.longest)
        if single:
            found = single_passes(backend, library, queries, multiple=single_multiple(backend))
        else:
            found = offline_passes(backend, library, chosen, tokens=TOKENS, repeats=REPEATS)
        found.compile_shapes().warm_up()
        return found

    def both(streams: int, threads: int, *, single: bool) -> tuple[Passes, Passes]:
        teacher, student = (passes(m, streams, threads, single=single) for m in (models.teacher_int8, models.student))
        return teacher, student

    def contest(scenario: str, timed_by: str, pair: tuple[Passes, Passes], run: Callable[[Passes], float]) -> Contest:
        teacher, student = (functools.partial(run, one) for one in pair)
        return Contest(scenario=scenario, timed_by=timed_by, teacher=teacher, student=student)

    offline, scenario = both(cores, 1, single=False), f"Offline, {cores} x 1"
    found = [
        contest(scenario, "clock", offline, Passes.seconds),
        contest(scenario, "processor time", offline, Passes.processor_seconds),
    ]
    for threads, timed_by, clock in ((cores, "clock", time.perf_counter), (1, "processor time", time.process_time)):
        single = both(1, threads, single=True)
        found.append(
            contest(f"SingleStream, p90, 1 x {threads}", timed_by, single, functools.partial(p90, clock=clock))
        )
    return found


def p90(passes: Passes, clock: Callable[[], float]) -> float:
    """Seconds below which nine of ten batches end, run one after the other."""
    return float(np.percentile(passes.batch_seconds(clock), 90))


def ladder_table(models: Models, library: SampleLibrary, chosen: np.ndarray, *, short: bool, rounds: int) -> str:
    """Measure the steps of `ladder`; a Markdown table."""
    steps = ladder(models, library, chosen, short=short)
    for step in tqdm.tqdm(steps, desc="warm-up", leave=False, disable=None):
        step.passes.warm_up()
    times = interleaved([step.passes.seconds for step in steps], rounds=rounds)
    times = times / [step.windows for step in steps]
    usual, ratios = steady_medians(times), times[:, :1] / times
    lines = ["| step | engine | samples/s | this step | in all | range of rounds |", "|---|---|---|---|---|---|"]
    for column, step in enumerate(steps):
        alone = usual[max(column - 1, 0)] / usual[column]
        lines.append(
            f"| {step.name} | {step.passes.backend.description} | {1 / usual[column]:.1f} | {alone:.2f} |"
            f" {usual[0] / usual[column]:.2f} | {ratios[:, column].min():.2f} to {ratios[:, column].max():.2f} |"
        )
    return "\n".join(lines)


def contest_table(rows: list[Contest], fewer: float, rounds: int) -> str:
    """Measure the contests; a Markdown table.

    Args:
      fewer: how many times fewer multiply-accumulates the student has.
    """
    times = interleaved([run for row in rows for run in (row.teacher, row.student)], rounds=rounds)
    usual = steady_medians(times)
    lines = [
        "| scenario | timed by | student is faster | range of rounds | share of MACs ratio |",
        "|---|---|---|---|---|",
    ]
    for index, row in enumerate(rows):
        ratios, faster = times[:, 2 * index] / times[:, 2 * index + 1], usual[2 * index] / usual[2 * index + 1]
        lines.append(
            f"| {row.scenario} | {row.timed_by} | {faster:.2f} | {ratios.min():.2f} to {ratios.max():.2f} |"
            f" {faster / fewer:.0%} |"
        )
    return "\n".join(lines)


def macs_fewer(models: Models, lengths: np.ndarray) -> float:
    """The teacher's multiply-accumulates over the student's for windows of these lengths."""
    configs = [BertConfig.from_json(model / "config.json") for model in (models.teacher, models.student)]
    teacher, student = (sum(count_macs(config, int(length)) for length in lengths) for config in configs)
    return teacher / student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="run directory with teacher/ and student-int8/")
    add("--shape", action="store_true", help="a BERT-large and its 5.6x student with random weights instead")
    add("--windows", type=int, help="windows in a pass, at least (default 128; with --shape 64)")
    add("--rounds", type=int, default=5, help="interleaved rounds (default 5), after a warm-up")
    add("--output", type=Path, help="Markdown file for the tables")
    options = parser.parse_args()

    library, chosen = load_windows(options.run, options.windows or (64 if options.shape else 128))
    with tempfile.TemporaryDirectory() as folder:
        models = shape_models(Path(folder)) if options.shape else run_models(options.run, Path(folder))
        steps = ladder_table(models, library, chosen, short=options.shape, rounds=options.rounds)
        fewer = macs_fewer(models, np.full(1, library.longest))
        pruning = contest_table(contests(models, library, chosen), fewer, options.rounds)
        here = macs_fewer(models, library.lengths[chosen])
    print(steps, pruning, sep="\n\n")
    about = (
        f"{len(chosen)} windows, {options.rounds} rounds, {machine.cores()} cores, batches of {TOKENS} tokens."
        f" The student has {fewer:.2f} times fewer MACs at {library.longest} tokens and {here:.2f} at these"
        " windows' lengths."
    )
    print(f"\n{about}")
    if options.output:
        options.output.write_text(f"{steps}\n\n{pruning}\n\n{about}\n", encoding="utf-8")


if __name__ == "__main__":
    programs.run(main)
