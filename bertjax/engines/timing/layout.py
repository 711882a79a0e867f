"""How a CPU is shared out: batches at once, threads of each, and tokens in a batch, chosen by measuring."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from bertjax.engines.backend import Backend
from bertjax.engines.samples import SampleLibrary
from bertjax.engines.timing import measure

NOISE = 0.03  # what two measurements of one thing may differ by, as a share

Choice = TypeVar("Choice")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What was taken, and padded tokens per second of everything that was tried; nothing was where it is empty."""

    streams: int  # batches at once
    threads: int | None  # of each stream; None where the backend decides
    batch_tokens: int  # padded tokens in a batch
    tried: dict[str, float]  # "2 x 1, 1024 tokens" (streams, threads) to its rate

    def __str__(self) -> str:
        """`2 streams x 1 threads, batches of 1024 tokens; tried: ...` with rates as shares of the best."""
        threads = "" if self.threads is None else f" x {self.threads} threads"
        text = f"{self.streams} streams{threads}, batches of {self.batch_tokens} tokens"
        if not self.tried:
            return text
        best = max(self.tried.values())
        return f"{text}; tried: {', '.join(f'{name} {rate / best:.0%}' for name, rate in self.tried.items())}"


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
      open_with: opens the backend with so many streams, of so many threads each.
      library: with all windows loaded.
      shares: (streams, threads) to choose from, the usual one first.
      batch_tokens: padded tokens in a batch.
      batch_shares: where that is None: what to choose from, as shares of the backend's own number, the usual one first.
      batch_seconds: of these only such whose batches take no longer are chosen, or else the smallest.
      seconds: about the time to spend on each candidate; where there is no choice, nothing is measured.
    """
    first = open_with(*shares[0])
    counts = (batch_tokens,) if batch_tokens else tuple(round(share * first.batch_tokens) for share in batch_shares)
    if not first.shares_cores:
        return first, Layout(streams=first.streams, threads=None, batch_tokens=counts[0], tried={})
    opened = {shares[0]: first} | {share: open_with(*share) for share in shares[1:]}
    tried: dict[str, float] = {}

    def pick(candidates: list[tuple[tuple[int, int], int]], longest: float) -> tuple[tuple[int, int], int]:
        if len(candidates) == 1:
            return candidates[0]
        rates = measure.token_rates([(opened[share], count) for share, count in candidates], library, seconds=seconds)
        for ((streams, threads), count), rate in zip(candidates, rates, strict=True):
            tried[f"{opened[streams, threads].streams} x {threads}, {count} tokens"] = rate
        short = [
            (choice, rate)
            for choice, rate in zip(candidates, rates, strict=True)
            if opened[choice[0]].streams * choice[1] <= longest * rate
        ]
        return fastest(*zip(*short, strict=True)) if short else min(candidates, key=lambda choice: choice[1])

    share, _ = pick([(share, counts[0]) for share in shares], math.inf)
    share, count = pick([(share, count) for count in counts], batch_seconds)
    return opened[share], Layout(streams=opened[share].streams, threads=share[1], batch_tokens=count, tried=tried)
