"""Shapes met, and compiled for themselves, before LoadGen's test."""

from __future__ import annotations

import collections
import concurrent.futures
import time
from collections.abc import Iterable, Sequence

import numpy as np
import tqdm

from bertjax import machine
from bertjax.data.batching import BatchPlan, padded_lengths
from bertjax.engines.backend import Backend
from bertjax.engines.samples import LENGTH_MULTIPLE, SINGLE_MULTIPLE, SampleLibrary

COMPILED_BYTES, COMPILED_SHARE = 8e9, 0.25  # of memory for models of one shape each, and as a share of the machine's


def single_multiple(backend: Backend) -> int:
    """SingleStream pads windows to multiples of this."""
    return SINGLE_MULTIPLE if backend.compiles_shapes else LENGTH_MULTIPLE


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


def compile_shapes(
    backend: Backend, library: SampleLibrary, plans: Sequence[BatchPlan], *, seconds: float
) -> Sequence[BatchPlan]:
    """Give shapes a compiled model each, the first ones first, and run it once on every stream.

    Only OpenVINO gains from it; nothing happens on another backend. The models take about COMPILED_BYTES at most, or
    COMPILED_SHARE of the machine's memory where that is less.

    Args:
      seconds: none is begun after so long.

    Returns:
      The plans whose shapes got none.
    """
    if not backend.compiles_shapes:
        return plans
    together, memory = 4 * machine.cores(), min(COMPILED_BYTES, COMPILED_SHARE * machine.memory_bytes())
    before, begin, done = backend.resident_bytes(), time.monotonic(), 0
    with tqdm.tqdm(total=len(plans), desc="compile", unit="shape", leave=False, disable=None) as bar:
        while done < len(plans) and time.monotonic() - begin <= seconds:
            if backend.resident_bytes() - before > memory:
                break
            some = plans[done : done + together]
            backend.compile_shapes([(len(plan.rows), plan.length) for plan in some])
            meet(backend, library, some)
            done += len(some)
            bar.update(len(some))
    return plans[done:]


def meet(backend: Backend, library: SampleLibrary, plans: Iterable[BatchPlan]) -> None:
    """Run each batch once on every stream: OpenVINO prepares its kernels anew for each."""
    with concurrent.futures.ThreadPoolExecutor(backend.calls) as pool:
        for plan in plans:
            batch = library.gather(plan.rows, plan.length)
            list(pool.map(lambda _, batch=batch: backend.infer(*batch), range(backend.calls)))
