"""Ways to batch Server's queries, compared by simulation: the highest rate of each within p99 <= 130 ms.

    python benchmarks/server_queue.py --model runs/minilm/student-int8
    python benchmarks/server_queue.py --model runs/minilm/student-int8 --cost 3.08e-3 18.4e-6 2.85e-8

Time is simulated, so the machine's other work changes nothing: queries arrive at random (Poisson) with the lengths of
the evaluation file's windows, and a batch takes the time that the cost model gives. The cost is measured on the model
or given: seconds a batch, a padded token, and a pair of tokens. Rates are shares of Offline's rate under the same cost.
The last rows are the queue that serves (queues.DynamicQueue), the class itself on a simulated clock, with batches of up
to all, half and a quarter of --batch-tokens, from which serving chooses.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import heapq
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tqdm

import bench
from bertjax import machine, programs, rundir
from bertjax.data.batching import padded_length, plan_inference
from bertjax.engines.choose import open_backend
from bertjax.engines.samples import LENGTH_MULTIPLE, SERVER_MULTIPLE, open_library
from bertjax.engines.timing.cost import BatchCost, batch_cost
from bertjax.mlperf.conf import SERVER_BOUND_MILLISECONDS
from bertjax.mlperf.plans import SampleBatch
from bertjax.mlperf.queues import BatchQueue, DynamicQueue

BOUND = SERVER_BOUND_MILLISECONDS / 1e3  # seconds, of the 99th percentile
SEEDS = range(3)  # of arrivals; the mean of their p99 counts
STEP = 0.005  # to which the highest rate is found, as a share of Offline's
OVERLOAD = 1.2  # of Offline's rate, for a run in which not everything can be in time

MakeQueue = Callable[["Serving", Callable[[], float]], BatchQueue]  # from what is served and a clock


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    """Windows, streams, and the time that their batches take."""

    lengths: np.ndarray  # int32 [windows]
    tokens: int  # most padded tokens in a batch
    streams: int
    cost: BatchCost

    def offline_rate(self) -> float:
        """Samples per second if all are there from the beginning."""
        longest = int(self.lengths.max())
        plans = plan_inference(self.lengths, tokens=self.tokens, multiple=LENGTH_MULTIPLE, longest=longest)
        seconds = sum(self.cost.seconds(len(plan.rows), plan.length) for plan in plans)
        return self.streams * len(self.lengths) / seconds

    def latencies(self, make_queue: MakeQueue, rate: float, seed: int, seconds: float) -> tuple[np.ndarray, float]:
        """Seconds of each sample, float64 [samples], and samples per second until the last one's end."""
        random, now = np.random.default_rng(seed), 0.0
        count = round(rate * seconds)
        arrivals = np.cumsum(random.exponential(1 / rate, count))
        indices = random.integers(0, len(self.lengths), count)
        queue = make_queue(self, lambda: now)
        free, done, arrived, ended = [0.0] * self.streams, np.zeros(count), 0, 0
        while ended < count:
            begin = heapq.heappop(free)
            if arrived == ended:  # nothing waits
                begin = max(begin, arrivals[arrived])
            while arrived < count and arrivals[arrived] <= begin:
                now = arrivals[arrived]
                queue.put([arrived], indices[arrived : arrived + 1].tolist())
                arrived += 1
            now = begin
            batch = queue.take()
            assert batch is not None, "the queue is open"
            end = begin + self.cost.seconds(len(batch.ids), batch.length)
            done[batch.ids] = end
            ended += len(batch.ids)
            heapq.heappush(free, end)
        return done - arrivals, count / done.max()


class OldestFirst:
    """The oldest sample with waiting ones of `nearest` to 1 times its length, at most one stream's share of all."""

    def __init__(self, serving: Serving, clock: Callable[[], float], *, alone: bool, nearest: float = 0.75):
        self._serving, self._alone, self._nearest = serving, alone, nearest
        self._waiting: list[tuple[int, int, int]] = []  # id, index, padded length, in order of arrival

    def put(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        longest = int(self._serving.lengths.max())
        for sample, index in zip(ids, indices, strict=True):
            length = padded_length(int(self._serving.lengths[index]), LENGTH_MULTIPLE, longest)
            self._waiting.append((sample, index, length))

    def take(self) -> SampleBatch:
        length, share = self._waiting[0][2], -(-len(self._waiting) // self._serving.streams)
        room = 1 if self._alone else max(1, min(share, self._serving.tokens // length))
        like = sorted(
            (one for one in self._waiting if self._nearest * length <= one[2] <= length), key=lambda one: -one[2]
        )
        taken = like[:room]
        for one in taken:
            self._waiting.remove(one)
        ids, indices, _ = zip(*taken, strict=True)
        return SampleBatch(ids=list(ids), indices=list(indices), length=length)

    def close(self) -> None: ...


def dynamic(serving: Serving, clock: Callable[[], float], *, share: float) -> DynamicQueue:
    tokens = round(share * serving.tokens)
    return DynamicQueue(serving.lengths, tokens=tokens, cost=serving.cost, budget=BOUND, clock=clock)


POLICIES: dict[str, MakeQueue] = {
    "oldest first, one at a time": functools.partial(OldestFirst, alone=True),
    "oldest first, with its like": functools.partial(OldestFirst, alone=False),
    "cheapest batches (DynamicQueue)": functools.partial(dynamic, share=1.0),
    "the same, batches half as long": functools.partial(dynamic, share=0.5),
    "the same, a quarter as long": functools.partial(dynamic, share=0.25),
}


def open_serving(options: argparse.Namespace) -> Serving:
    """Lengths of the model's evaluation windows, and the cost of its batches as given or measured."""
    model, streams = options.model or rundir.newest_student(), options.streams or machine.cores()
    dataset, library = open_library(rundir.default_data(model), model, rundir.window_settings(model))
    if options.cost:
        batch, token, pair = options.cost
        cost = BatchCost(batch=batch, token=token, pair=pair)
    else:
        library.load(range(len(library.lengths)))
        backend = open_backend("auto", model, streams=streams, threads=1, longest=library.longest)
        cost = batch_cost(backend, library, tokens=options.batch_tokens, multiple=SERVER_MULTIPLE)
    return Serving(lengths=dataset.lengths, tokens=options.batch_tokens, streams=streams, cost=cost)


def simulate(serving: Serving, make_queue: MakeQueue, offline: float, seconds: float) -> bench.Row:
    """One policy's figures.

    Args:
      offline: samples per second of Offline.
      seconds: simulated length of each run.
    """

    def p99(share: float) -> float:
        runs = (serving.latencies(make_queue, share * offline, seed, seconds)[0] for seed in SEEDS)
        return float(np.mean([np.percentile(latencies, 99) for latencies in runs]))

    low, high = 0.0, 1.2
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if p99(middle) <= BOUND else (low, middle)
    over, served = serving.latencies(make_queue, OVERLOAD * offline, 0, seconds)
    return {
        "p99_seconds_at_80_percent": p99(0.80),
        "p99_seconds_at_85_percent": p99(0.85),
        "highest_rate_share": low,
        "overload_in_time_share": np.mean(over <= BOUND),
        "overload_rate_share": served / offline,
    }


def tabulate(serving: Serving, rows: list[bench.Row], offline: float) -> tuple[bench.Table, bench.Table]:
    """The cost of a batch and Offline's rate, and the policies' figures."""
    cost = serving.cost
    setting = {
        "batch_seconds": cost.batch,
        "token_seconds": cost.token,
        "pair_seconds": cost.pair,
        "windows": len(serving.lengths),
        "mean_tokens": serving.lengths.mean(),
        "streams": serving.streams,
        "offline_samples_per_second": offline,
    }
    heads = {
        "s a batch": "{batch_seconds:.3g}",
        "s a token": "{token_seconds:.3g}",
        "s a pair": "{pair_seconds:.3g}",
        "windows": "{windows}",
        "mean tokens": "{mean_tokens:.0f}",
        "streams": "{streams}",
        "Offline samples/s": "{offline_samples_per_second:.0f}",
    }
    note = "seconds of a batch = batch + rows x (token x length + pair x length^2)"
    columns: dict[str, bench.Cell] = {
        "queue": "{queue}",
        "p99 at 80 %": lambda row: f"{1e3 * row['p99_seconds_at_80_percent']:.0f} ms",
        "p99 at 85 %": lambda row: f"{1e3 * row['p99_seconds_at_85_percent']:.0f} ms",
        "highest rate": "{highest_rate_share:.1%}",
        "in time at 120 %": "{overload_in_time_share:.0%}",
        "served at 120 %": "{overload_rate_share:.0%}",
    }
    return (
        bench.Table(name="cost", columns=heads, rows=[setting], note=note),
        bench.Table(name="queues", columns=columns, rows=rows),
    )


def main() -> None:
    parser = bench.flags("server_queue", __doc__)
    add = parser.add_argument
    add("--model", type=Path, metavar="DIR", help="for lengths and cost (default: the newest run's INT8 student)")
    add("--cost", type=float, nargs=3, metavar=("BATCH", "TOKEN", "PAIR"), help="seconds (default: measured)")
    add("--streams", type=int, metavar="N", help="batches at once (default: one per core)")
    add("--batch-tokens", type=int, default=1024, metavar="N", help="most padded tokens in a batch (default 1024)")
    add("--seconds", type=float, default=30.0, metavar="N", help="simulated length of each run (default 30)")
    options = parser.parse_args()

    serving = open_serving(options)
    offline, rows = serving.offline_rate(), []
    for name, make_queue in tqdm.tqdm(POLICIES.items(), desc="queues", leave=False, disable=None):
        rows.append({"queue": name} | simulate(serving, make_queue, offline, options.seconds))
    bench.report(options, *tabulate(serving, rows, offline))


if __name__ == "__main__":
    programs.run(main)
