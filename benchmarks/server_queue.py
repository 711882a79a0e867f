"""Ways to batch Server's queries, compared by simulation: what rate each keeps to MLPerf's bound of p99 <= 130 ms.

    python benchmarks/server_queue.py --model runs/minilm/student-int8
    python benchmarks/server_queue.py --model runs/minilm/student-int8 --cost 3.08e-3 18.4e-6 2.85e-8

Time is simulated, so the machine's other work changes nothing: queries arrive at random (Poisson) with the lengths of
the evaluation file's windows, and a batch takes what the cost model says. The cost is measured on the model, or given:
seconds a batch, a padded token, and a pair of tokens. Rates are shares of Offline's rate under the same cost. The
last rows are the queue that serves (queues.DynamicQueue), the very class on a simulated clock, with batches of up to
all, half and a quarter of --batch-tokens, from which serving chooses.
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

from bertjax import programs
from bertjax.data.batching import padded_length, plan_inference
from bertjax.engines.samples import LENGTH_MULTIPLE, SERVER_MULTIPLE
from bertjax.engines.timing.cost import BatchCost
from bertjax.mlperf.conf import SERVER_BOUND_MILLISECONDS
from bertjax.mlperf.queues import Batch, BatchQueue, DynamicQueue

BOUND = SERVER_BOUND_MILLISECONDS / 1e3  # seconds, of the 99th percentile
SEEDS = range(3)  # of arrivals; the mean of their p99 counts
STEP = 0.005  # to which the highest rate is found, as a share of Offline's
OVERLOAD = 1.2  # of Offline's rate, for a run in which not everything can be in time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serving:
    lengths: np.ndarray  # int32 [windows]
    tokens: int  # most padded tokens in a batch
    streams: int
    cost: BatchCost

    def offline_rate(self) -> float:
        """Samples per second where all are there from the beginning."""
        longest = int(self.lengths.max())
        plans = plan_inference(self.lengths, tokens=self.tokens, multiple=LENGTH_MULTIPLE, longest=longest)
        seconds = sum(self.cost.seconds(len(plan.rows), plan.length) for plan in plans)
        return self.streams * len(self.lengths) / seconds

    def latencies(
        self, make_queue: Callable[[Serving, Callable[[], float]], BatchQueue], rate: float, seed: int, seconds: float
    ) -> tuple[np.ndarray, float]:
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

    def take(self) -> Batch:
        length, share = self._waiting[0][2], -(-len(self._waiting) // self._serving.streams)
        room = 1 if self._alone else max(1, min(share, self._serving.tokens // length))
        like = sorted(
            (one for one in self._waiting if self._nearest * length <= one[2] <= length), key=lambda one: -one[2]
        )
        taken = like[:room]
        for one in taken:
            self._waiting.remove(one)
        ids, indices, _ = zip(*taken, strict=True)
        return Batch(ids=list(ids), indices=list(indices), length=length)

    def close(self) -> None: ...


def dynamic(serving: Serving, clock: Callable[[], float], *, share: float) -> DynamicQueue:
    tokens = round(share * serving.tokens)
    return DynamicQueue(serving.lengths, tokens=tokens, cost=serving.cost, budget=BOUND, clock=clock)


POLICIES = {
    "oldest first, one at a time": functools.partial(OldestFirst, alone=True),
    "oldest first, with its like": functools.partial(OldestFirst, alone=False),
    "cheapest batches (DynamicQueue)": functools.partial(dynamic, share=1.0),
    "the same, batches half as long": functools.partial(dynamic, share=0.5),
    "the same, a quarter as long": functools.partial(dynamic, share=0.25),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=Path, help="model directory, for lengths and cost (default: the newest run's INT8 student)")
    add("--cost", type=float, nargs=3, metavar=("BATCH", "TOKEN", "PAIR"), help="seconds (default: measured)")
    add("--streams", type=int, help="batches at once (default: one per core)")
    add("--batch-tokens", type=int, default=1024, help="most padded tokens in a batch (default: 1024)")
    add("--seconds", type=float, default=30.0, help="simulated length of each run (default: 30)")
    options = parser.parse_args()

    from bertjax import machine, rundir
    from bertjax.engines.choose import open_backend
    from bertjax.engines.samples import open_library
    from bertjax.engines.timing.cost import batch_cost
    from bertjax.rundir import newest_student

    model, streams = options.model or newest_student(), options.streams or machine.cores()
    dataset, library = open_library(rundir.default_data(model), model, rundir.window_settings(model))
    if options.cost:
        batch, token, pair = options.cost
        cost = BatchCost(batch=batch, token=token, pair=pair)
    else:
        library.load(range(len(library.lengths)))
        backend = open_backend("auto", model, streams=streams, threads=1, longest=library.longest)
        cost = batch_cost(backend, library, tokens=options.batch_tokens, multiple=SERVER_MULTIPLE)
    serving = Serving(lengths=dataset.lengths, tokens=options.batch_tokens, streams=streams, cost=cost)
    print(f"Cost of a batch: {cost.batch:.3g} s + rows x ({cost.token:.3g} s x length + {cost.pair:.3g} s x length^2)")
    print(f"Windows: {len(dataset.lengths)}, {dataset.lengths.mean():.0f} tokens on average; {streams} streams,")
    offline = serving.offline_rate()
    print(f"batches of up to {serving.tokens} tokens. Offline: {offline:.0f} samples/s\n")
    header = ("queue", "p99 at 80 %", "p99 at 85 %", "highest rate", "in time at 120 %", "served at 120 %")
    print(f"{header[0]:<32}" + "".join(f"{name:>18}" for name in header[1:]))
    for name, make_queue in tqdm.tqdm(POLICIES.items(), leave=False, disable=None):
        figures = _figures(serving, make_queue, offline, options.seconds)
        tqdm.tqdm.write(f"{name:<32}" + "".join(f"{figure:>18}" for figure in figures))


def _figures(serving: Serving, make_queue: Callable[..., BatchQueue], offline: float, seconds: float) -> list[str]:
    def p99(share: float) -> float:
        runs = (serving.latencies(make_queue, share * offline, seed, seconds)[0] for seed in SEEDS)
        return float(np.mean([np.percentile(latencies, 99) for latencies in runs]))

    low, high = 0.0, 1.2
    while high - low > STEP:
        middle = (low + high) / 2
        low, high = (middle, high) if p99(middle) <= BOUND else (low, middle)
    over, served = serving.latencies(make_queue, OVERLOAD * offline, 0, seconds)
    in_time = float(np.mean(over <= BOUND))
    milliseconds = [f"{1e3 * p99(share):.0f} ms" for share in (0.80, 0.85)]
    return [*milliseconds, f"{low:.1%}", f"{in_time:.0%}", f"{served / offline:.0%}"]


if __name__ == "__main__":
    programs.run(main)
