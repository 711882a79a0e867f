"""Speed of serving against the MLPerf reference's way: each step's gain, and the gain of pruning alone.

    python benchmarks/serving.py --run runs/minilm
    python benchmarks/serving.py --run runs/minilm --shape

The reference implementation runs FP32 on ONNX Runtime, one window at a time, every window padded to the full length,
on all cores. The first table starts there, with the run's teacher, and takes one step at a time to the run's student;
the second compares the student with the teacher in INT8 on the same engine. That is OpenVINO, or ONNX Runtime on a CPU
whose OpenVINO kernels would saturate, as in serving; the steps of OpenVINO are then left out. With --shape both are
random models: a BERT-large, and a student of it with 5.6 times fewer multiply-accumulates; only the windows are the
run's.

Everything runs in turn in every round. Batches are drawn whole from those that Offline makes of all windows. Rows in
wall time need a quiet machine; rows in processor time, which streams of one thread allow, are hardly changed by other
work. On OpenVINO the second table has a compiled model for each shape on both sides, as in serving. At BERT-large's
size that takes 0.3 GB for each shape, so few windows should be asked for. The INT8 teacher is not calibrated: its
scales are usual ones, good for timing and not for answers.
"""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tqdm

import bench
from bertjax import machine, programs, rundir
from bertjax.data.batching import BatchPlan
from bertjax.engines.choose import cpu_engine, open_backend
from bertjax.engines.samples import SampleLibrary
from bertjax.engines.timing.compare import (
    REPEATS,
    Passes,
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
    """A row of the second table: two functions that return the seconds of the INT8 teacher and of the student."""

    scenario: str
    timed_by: str
    teacher: Callable[[], float]
    student: Callable[[], float]


def run_models(run: Path, folder: Path) -> Models:
    """The models of a run; the teacher on the student's INT8 grid is written to `folder`."""
    quantization = bench.load_config(run / "student-int8", quantized=True, flag="--run").quantization
    assert quantization is not None
    teacher = uncalibrated(store.load_question_answering(run / "teacher"), quantization)
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
    teacher = run / "teacher"
    return bench.load_windows(teacher, None, rundir.window_settings(teacher), count=count, tokens=2 * TOKENS)


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


def open_contests(models: Models, library: SampleLibrary, chosen: np.ndarray) -> list[Contest]:
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
        contest(scenario, "wall time", offline, Passes.seconds),
        contest(scenario, "processor time", offline, Passes.processor_seconds),
    ]
    for threads, timed_by, clock in ((cores, "wall time", time.perf_counter), (1, "processor time", time.process_time)):
        single = both(1, threads, single=True)
        found.append(
            contest(f"SingleStream, p90, 1 x {threads}", timed_by, single, functools.partial(p90, clock=clock))
        )
    return found


def p90(passes: Passes, clock: Callable[[], float]) -> float:
    """Seconds below which nine of ten batches end, run one after the other."""
    return float(np.percentile(passes.batch_seconds(clock), 90))


def measure_steps(steps: list[Step], rounds: int) -> bench.Table:
    """Samples per second of each step, and how many times faster it is than the one before and than the first."""
    for step in tqdm.tqdm(steps, desc="warm-up", leave=False, disable=None):
        step.passes.warm_up()
    times = interleaved([step.passes.seconds for step in steps], rounds=rounds)
    times = times / [step.windows for step in steps]
    usual, ratios, rows = steady_medians(times), times[:, :1] / times, []
    for index, step in enumerate(steps):
        rows.append(
            {
                "step": step.name,
                "backend": step.passes.backend.description,
                "samples_per_second": 1 / usual[index],
                "step_speedup": usual[max(index - 1, 0)] / usual[index],
                "speedup": usual[0] / usual[index],
                "speedup_lowest": ratios[:, index].min(),
                "speedup_highest": ratios[:, index].max(),
            }
        )
    columns = {
        "step": "{step}",
        "engine": "{backend}",
        "samples/s": "{samples_per_second:.1f}",
        "this step": "{step_speedup:.2f}",
        "in all": "{speedup:.2f}",
        "range of rounds": "{speedup_lowest:.2f} to {speedup_highest:.2f}",
    }
    return bench.Table(name="steps", columns=columns, rows=rows)


def measure_contests(contests: list[Contest], ratio: float, rounds: int) -> bench.Table:
    """The student's speed over the INT8 teacher's.

    Args:
      ratio: the teacher's multiply-accumulates over the student's, at the longest windows.
    """
    times = interleaved([run for one in contests for run in (one.teacher, one.student)], rounds=rounds)
    usual, rows = steady_medians(times), []
    for index, one in enumerate(contests):
        ratios, faster = times[:, 2 * index] / times[:, 2 * index + 1], usual[2 * index] / usual[2 * index + 1]
        rows.append(
            {
                "scenario": one.scenario,
                "timed_by": one.timed_by,
                "macs_ratio": ratio,
                "speedup": faster,
                "speedup_lowest": ratios.min(),
                "speedup_highest": ratios.max(),
                "macs_ratio_share": faster / ratio,
            }
        )
    columns = {
        "scenario": "{scenario}",
        "timed by": "{timed_by}",
        "student is faster": "{speedup:.2f}",
        "range of rounds": "{speedup_lowest:.2f} to {speedup_highest:.2f}",
        "share of MACs ratio": "{macs_ratio_share:.0%}",
    }
    return bench.Table(name="pruning", columns=columns, rows=rows)


def macs_ratio(models: Models, lengths: np.ndarray) -> float:
    """The teacher's multiply-accumulates over the student's for windows of these lengths."""
    configs = [BertConfig.from_json(model / "config.json") for model in (models.teacher, models.student)]
    teacher, student = (sum(count_macs(config, int(length)) for length in lengths) for config in configs)
    return teacher / student


def main() -> None:
    parser = bench.flags("serving", __doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="run directory with teacher/ and student-int8/")
    add("--shape", action="store_true", help="a BERT-large and its 5.6x student with random weights instead")
    add("--windows", type=int, metavar="N", help="windows in a pass, at least (default 128; with --shape 64)")
    add("--rounds", type=int, default=5, metavar="N", help="interleaved rounds (default 5), after a warm-up")
    options = parser.parse_args()
    options.windows = options.windows or (64 if options.shape else 128)

    library, chosen = load_windows(options.run, options.windows)
    with tempfile.TemporaryDirectory() as folder:
        models = shape_models(Path(folder)) if options.shape else run_models(options.run, Path(folder))
        steps = measure_steps(ladder(models, library, chosen, short=options.shape), options.rounds)
        ratio = macs_ratio(models, np.full(1, library.longest))
        pruning = measure_contests(open_contests(models, library, chosen), ratio, options.rounds)
        here = macs_ratio(models, library.lengths[chosen])
    note = (
        f"{len(chosen)} windows, {options.rounds} rounds, {machine.cores()} cores, batches of {TOKENS} tokens. "
        f"The student has {ratio:.2f} times fewer MACs at {library.longest} tokens, "
        f"{here:.2f} times fewer at the lengths of these windows."
    )
    bench.report(options, dataclasses.replace(steps, note=note), pruning)


if __name__ == "__main__":
    programs.run(main)
