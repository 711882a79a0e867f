"""A quick look at a backend's speed before a run: how to share out the cores, and how much LoadGen is to issue."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import statistics
import time
from collections.abc import Iterable, Sequence

import numpy as np
import tqdm

from bertjax.data.batching import BatchPlan, padded_length, padded_lengths, plan_inference
from bertjax.mlperf import cpu
from bertjax.mlperf.backend import Backend
from bertjax.mlperf.openvino_backend import OpenVINOBackend
from bertjax.mlperf.packing import BATCH_ROWS, BatchCost, fit_cost
from bertjax.mlperf.queues import LENGTH_MULTIPLE, SINGLE_MULTIPLE
from bertjax.mlperf.samples import SampleLibrary
from bertjax.mlperf.timeline import resident_bytes
from bertjax.records import machine

FIXED_BYTES, FIXED_SHARE = 8e9, 0.25  # of memory for models of one shape each, and as a share of the machine's
ROUNDS = 3  # in which contenders are measured in turn
# Seconds between two backends. After a batch ONNX Runtime's idle threads spin on, for 60 ms on a Zen 3 core, and a
# backend that comes at once has that much less of the processor: two threads then took three times as long.
REST = 0.1
COST_LENGTHS = 4  # lengths at which batches are timed for `batch_cost`, each with few and with many rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Pass:
    """What all streams together did in some time."""

    samples_per_second: float
    tokens_per_second: float  # padded ones
    batches: int  # of the stream that ran fewest


def throughput(backend: Backend, library: SampleLibrary, *, tokens: int, seconds: float) -> float:
    """Samples per second over batches as Offline makes them, drawn evenly from all lengths, all streams busy.

    At most `seconds` of warm-up and as much of measuring, but at least one batch per stream of each.
    """
    with concurrent.futures.ThreadPoolExecutor(backend.streams) as pool:
        plans = _warm_plans(pool, backend, library, tokens, seconds)
        return _run_for(pool, backend, library, plans, seconds).samples_per_second


def token_rates(contenders: Sequence[tuple[Backend, int]], library: SampleLibrary, *, seconds: float) -> list[float]:
    """Padded tokens per second of each backend with batches of so many tokens, which compare where samples would not:
    few batches hold samples of other lengths in each contender.

    They are measured in turn, so that a machine that slows down does so for all; the median of ROUNDS counts.
    At most `seconds` of warm-up and as much of measuring for each, but at least one batch per stream of each.
    """
    with concurrent.futures.ThreadPoolExecutor(max(backend.streams for backend, _ in contenders)) as pool:
        plans = [_warm_plans(pool, backend, library, tokens, seconds) for backend, tokens in contenders]
        rest = REST if len({id(backend) for backend, _ in contenders}) > 1 else 0.0
        rates: list[list[float]] = [[] for _ in contenders]
        for _ in tqdm.trange(ROUNDS, desc="streams and batches", leave=False, disable=None):
            for (backend, _), own, found in zip(contenders, plans, rates, strict=True):
                time.sleep(rest)
                found.append(_run_for(pool, backend, library, own, seconds / ROUNDS).tokens_per_second)
    return [statistics.median(found) for found in rates]


def _warm_plans(
    pool: concurrent.futures.Executor, backend: Backend, library: SampleLibrary, tokens: int, seconds: float
) -> list[BatchPlan]:
    """Batches of all lengths, shuffled, of which each stream has met its own: a shape's first run takes longer."""
    plans = plan_inference(library.lengths, tokens=tokens, multiple=LENGTH_MULTIPLE, longest=library.longest)
    plans = [plans[index] for index in np.random.default_rng(0).permutation(len(plans))]
    batches = _run_for(pool, backend, library, plans, seconds).batches
    return plans[: batches * backend.streams]


def _run_for(
    pool: concurrent.futures.Executor,
    backend: Backend,
    library: SampleLibrary,
    plans: Sequence[BatchPlan],
    seconds: float,
) -> _Pass:
    """Run batches on every stream until the time is over, each stream its own: every n-th of the plans."""

    def work(stream: int) -> tuple[int, int, int, float]:
        begin, samples, tokens, batches = time.perf_counter(), 0, 0, 0
        while batches == 0 or time.perf_counter() - begin < seconds:
            plan = plans[(stream + batches * backend.streams) % len(plans)]
            backend.infer(*library.gather(plan.rows, plan.length))
            samples, tokens, batches = samples + len(plan.rows), tokens + len(plan.rows) * plan.length, batches + 1
        return samples, tokens, batches, time.perf_counter() - begin

    # Each stream by its own clock: on the last batch the others would wait for the slowest.
    done = list(pool.map(work, range(backend.streams)))
    return _Pass(
        samples_per_second=sum(samples / elapsed for samples, _, _, elapsed in done),
        tokens_per_second=sum(tokens / elapsed for _, tokens, _, elapsed in done),
        batches=min(batches for _, _, batches, _ in done),
    )


def single_multiple(backend: Backend) -> int:
    """What SingleStream pads windows to."""
    return SINGLE_MULTIPLE if isinstance(backend, OpenVINOBackend) else LENGTH_MULTIPLE


def latency_ns(backend: Backend, library: SampleLibrary, *, seconds: float) -> int:
    """Mean nanoseconds of one sample at a time, of random lengths; at least two samples, the first unmeasured."""
    longest, multiple, random = library.longest, single_multiple(backend), np.random.default_rng(0)
    begin, times = time.perf_counter(), []
    while len(times) < 2 or time.perf_counter() - begin < seconds:
        before = time.perf_counter_ns()
        index = int(random.integers(len(library.lengths)))
        length = padded_length(int(library.lengths[index]), multiple, longest)
        backend.infer(*library.gather(np.array([index]), length))
        times.append(time.perf_counter_ns() - before)
    return int(np.mean(times[1:]))


def batch_cost(backend: Backend, library: SampleLibrary, *, tokens: int, multiple: int) -> BatchCost:
    """What batches of up to `tokens` padded tokens take, fitted to a dozen shapes, each the median of ROUNDS.

    Lengths are those of the library, padded to `multiple`. All streams run the same shape at once, as they are all busy
    when it matters.
    """
    index, counts = {}, collections.defaultdict(list)
    for plan in shapes_to_come(library, rows=BATCH_ROWS, tokens=tokens, multiple=multiple):
        index[plan.length] = int(plan.rows[0])
        counts[plan.length].append(len(plan.rows))
    lengths = [length for length in sorted(index) if length * 2 <= tokens] or [min(index)]
    chosen = sorted({lengths[round(place)] for place in np.linspace(0, len(lengths) - 1, COST_LENGTHS)})
    shapes = [(count, length) for length in chosen for count in sorted({*counts[length][:2], counts[length][-1]})]
    shapes += [(1, max(index))]
    times: list[list[float]] = [[] for _ in shapes]
    with concurrent.futures.ThreadPoolExecutor(backend.streams) as pool:
        for turn in range(1 + ROUNDS):  # the first is for warming up
            for (count, length), seconds in zip(shapes, times, strict=True):
                batch = library.gather(np.full(count, index[length]), length)
                found = list(pool.map(lambda _, batch=batch: _seconds(backend, batch), range(backend.streams)))
                if turn:
                    seconds.append(statistics.mean(found))
    rows, lengths = zip(*shapes, strict=True)
    return fit_cost(rows, lengths, [statistics.median(seconds) for seconds in times])


def _seconds(backend: Backend, batch: tuple[np.ndarray, ...]) -> float:
    begin = time.perf_counter()
    backend.infer(*batch)
    return time.perf_counter() - begin


def shapes_to_come(
    library: SampleLibrary, *, rows: Sequence[int] | None, tokens: int, multiple: int
) -> list[BatchPlan]:
    """A batch of every shape that may come, those of the commonest lengths first.

    Args:
      rows: how many windows a batch may hold, ascending; None: as many as `tokens` has room for.
      tokens: most padded tokens in a batch of several windows.
      multiple: what the library's lengths are padded to.
    """
    lengths = padded_lengths(library.lengths, multiple, library.longest).tolist()
    index = {length: sample for sample, length in enumerate(lengths)}
    return [
        BatchPlan(rows=np.full(count, index[length]), length=length)
        for length, _ in collections.Counter(lengths).most_common()
        for count in rows or [max(1, tokens // length)]
        if count == 1 or count * length <= tokens
    ]


def warm_up(backend: Backend, library: SampleLibrary, plans: Sequence[BatchPlan]) -> None:
    """Run every shape once on every stream.

    An engine prepares its kernels when it first meets a shape, which takes several times as long as running one:
    under a latency bound the first seconds would decide the result.
    """
    meet(backend, library, tqdm.tqdm(plans, desc="warm-up", unit="shape", leave=False, disable=None))


def fix_shapes(
    backend: Backend, library: SampleLibrary, plans: Sequence[BatchPlan], *, seconds: float
) -> Sequence[BatchPlan]:
    """Give shapes a compiled model each, the first ones first, and run it once on every stream.

    Only OpenVINO gains from it; nothing happens on another backend. The models take about FIXED_BYTES at most, or
    FIXED_SHARE of the machine's memory where that is less.

    Args:
      seconds: none is begun after so long.

    Returns:
      The plans whose shapes got none.
    """
    if not isinstance(backend, OpenVINOBackend):
        return plans
    together, memory = 4 * cpu.cores(), min(FIXED_BYTES, FIXED_SHARE * machine()["memory_bytes"])
    before, begin, done = resident_bytes() or 0, time.monotonic(), 0
    with (
        concurrent.futures.ThreadPoolExecutor(cpu.cores()) as pool,  # compiling a model keeps one core busy
        tqdm.tqdm(total=len(plans), desc="compile", unit="shape", leave=False, disable=None) as bar,
    ):
        while done < len(plans) and time.monotonic() - begin <= seconds:
            if (resident_bytes() or 0) - before > memory:
                break
            some = plans[done : done + together]
            shapes = [((len(plan.rows), plan.length), stream) for plan in some for stream in range(backend.streams)]
            list(pool.map(backend.fix, *zip(*shapes, strict=True)))
            meet(backend, library, some)
            done += len(some)
            bar.update(len(some))
    return plans[done:]


def meet(backend: Backend, library: SampleLibrary, plans: Iterable[BatchPlan]) -> None:
    """Run each batch once on every stream: OpenVINO prepares its kernels anew for each."""
    with concurrent.futures.ThreadPoolExecutor(backend.streams) as pool:
        for plan in plans:
            batch = library.gather(plan.rows, plan.length)
            list(pool.map(lambda _, batch=batch: backend.infer(*batch), range(backend.streams)))
