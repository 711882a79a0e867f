"""The layout of a CPU's work: batches at once, threads of each, and tokens in a batch, chosen by measuring."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from bertjax.engines.backend import Backend
from bertjax.engines.samples import SampleLibrary
from bertjax.engines.timing import measure

NOISE = 0.03  # by which two measurements of one thing may differ, as a share

Choice = TypeVar("Choice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The chosen split of the cores, and the rate of every split that was tried (empty if there was no choice)."""

    streams: int  # batches at once
    threads: int | None  # of each stream; None where the backend decides
    batch_tokens: int  # padded tokens in a batch
    tried: dict[str, float]  # "2 x 1, 1024 tokens" (streams x threads) to its padded tokens per second

    def __str__(self) -> str:
        """`2 streams x 1 threads, batches of 1024 tokens; tried: ...` with rates as shares of the best."""
        threads = "" if self.threads is None else f" x {self.threads} threads"
        text = f"{self.streams} streams{threads}, batches of {self.batch_tokens} tokens"
        if not self.tried:
            return text
        best = max(self.tried.values())
        return f"{text}; tried: {', '.join(f'{name} {rate / best:.0%}' for name, rate in self.tried.items())}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A layout to measure."""

    streams: int
    threads: int  # of each stream
    tokens: int  # padded ones in a batch


def core_shares(cores: int) -> list[tuple[int, int]]:
    """(streams, threads of each) over all cores: a stream per core, half as many, and so on down to one."""
    streams = [cores]
    while streams[-1] > 1:
        streams.append(streams[-1] // 2)
    return [(count, cores // count) for count in streams]


def fastest(choices: Sequence[Choice], rates: Sequence[float]) -> Choice:
    """The first choice that is as fast as the fastest, within NOISE."""
    best = max(rates)
    return next(choice for choice, rate in zip(choices, rates, strict=True) if rate >= (1 - NOISE) * best)


def choose_threads(
    open_with: Callable[[int, int], Backend], library: SampleLibrary, counts: Sequence[int], *, seconds: float
) -> tuple[Backend, Layout]:
    """Open a backend with one stream, of as many threads as give one window at a time the lowest 90th percentile.

    More threads are slower where a window's work is small against what they wait for each other, or where another
    program has a core.

    Args:
      open_with: opens the backend for a number of streams, and of threads of each.
      library: with all windows loaded.
      counts: numbers of threads to choose from, the usual one first.
      seconds: about the time to spend on each; where there is no choice, nothing is measured.
    """
    first = open_with(1, counts[0])
    if not first.shares_cores:
        return first, Layout(streams=first.streams, threads=None, batch_tokens=first.batch_tokens, tried={})
    backends = [first, *(open_with(1, count) for count in counts[1:])]
    chosen, tried = 0, {}
    if len(counts) > 1:
        found = measure.slow_latencies(backends, library, seconds=seconds)
        rates = [found.tokens / p90 for p90 in found.p90_seconds]
        tried = {f"1 x {count}, {found.tokens} tokens": rate for count, rate in zip(counts, rates, strict=True)}
        chosen = fastest(range(len(counts)), rates)
    backend = backends[chosen]
    return backend, Layout(streams=1, threads=counts[chosen], batch_tokens=backend.batch_tokens, tried=tried)


def choose_layout(
    open_with: Callable[[int, int], Backend],
    library: SampleLibrary,
    shares: Sequence[tuple[int, int]],
    *,
    batch_tokens: int | None,
    batch_shares: Sequence[float],
    batch_seconds: float,
    seconds: float,
) -> tuple[Backend, Layout]:
    """Open a backend as it is fastest: first its streams and threads are chosen, then its batches.

    Args:
      open_with: opens the backend for a number of streams, and of threads of each.
      library: with all windows loaded.
      shares: (streams, threads) to choose from, the usual one first.
      batch_tokens: padded tokens in a batch; None: chosen.
      batch_shares: the numbers to choose from, as shares of the backend's own, the usual one first.
      batch_seconds: a number whose batches take longer is not chosen, unless it is the smallest of them.
      seconds: about the time to spend on each candidate; where there is no choice, nothing is measured.
    """
    first = open_with(*shares[0])
    counts = (batch_tokens,) if batch_tokens else tuple(round(share * first.batch_tokens) for share in batch_shares)
    if not first.shares_cores:
        return first, Layout(streams=first.streams, threads=None, batch_tokens=counts[0], tried={})
    opened = {shares[0]: first} | {share: open_with(*share) for share in shares[1:]}
    tried: dict[str, float] = {}

    def pick(candidates: Sequence[Candidate], longest: float) -> Candidate:
        """The fastest one whose batches take at most `longest` seconds; where there is none, that of the smallest."""
        if len(candidates) == 1:
            return candidates[0]
        backends = [opened[candidate.streams, candidate.threads] for candidate in candidates]
        pairs = [(backend, candidate.tokens) for backend, candidate in zip(backends, candidates, strict=True)]
        rates = measure.token_rates(pairs, library, seconds=seconds)
        in_time = {}
        for backend, candidate, rate in zip(backends, candidates, rates, strict=True):
            tried[f"{backend.streams} x {candidate.threads}, {candidate.tokens} tokens"] = rate
            if backend.streams * candidate.tokens <= longest * rate:
                in_time[candidate] = rate
        if not in_time:
            return min(candidates, key=lambda candidate: candidate.tokens)
        return fastest(list(in_time), list(in_time.values()))

    share = pick(
        [Candidate(streams=streams, threads=threads, tokens=counts[0]) for streams, threads in shares], math.inf
    )
    found = pick([dataclasses.replace(share, tokens=tokens) for tokens in counts], batch_seconds)
    backend = opened[found.streams, found.threads]
    layout = Layout(streams=backend.streams, threads=found.threads, batch_tokens=found.tokens, tried=tried)
    return backend, layout
