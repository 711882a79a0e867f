import collections
import math

import numpy as np
import pytest

from bertjax import machine
from bertjax.data.windows import WindowSettings
from bertjax.engines.backend import Backend
from bertjax.engines.samples import SampleLibrary, read_dataset
from bertjax.engines.timing import layout, measure, warmup
from bertjax.engines.timing.cost import batch_cost
from bertjax.engines.timing.layout import choose_layout, core_shares, fastest
from bertjax.modeldir.config import BertConfig


class Engine(Backend):
    """A backend on which a token takes so many seconds of a clock of its own, and one of a new shape ten times that."""

    name, batch_tokens, shares_cores = "engine", 1024, True

    def __init__(self, streams, threads, *, token_seconds=0.0):
        self.streams, self.threads, self.token_seconds = streams, threads, token_seconds
        self.clock, self.met = [0.0], set()

    def infer(self, ids, mask, types):
        self.clock[0] += ids.size * self.token_seconds * (1 if ids.shape in self.met else 10)
        self.met.add(ids.shape)
        return np.zeros(ids.shape, np.float32), np.zeros(ids.shape, np.float32)


@pytest.fixture(scope="module")
def library(run_dir):
    windows = WindowSettings(max_seq=128, doc_stride=64, max_query=32)
    dataset = read_dataset(run_dir / "eval.json", run_dir / "student-int8", windows)
    library = SampleLibrary(dataset, BertConfig.from_json(run_dir / "student-int8" / "config.json").pad_token_id)
    library.load(range(len(dataset.windows)))
    return library


def test_cores_are_shared_out_from_a_stream_each_to_one_stream():
    assert core_shares(1) == [(1, 1)]
    assert core_shares(2) == [(2, 1), (1, 2)]
    assert core_shares(6) == [(6, 1), (3, 2), (1, 6)]


def test_the_usual_choice_stays_unless_another_is_faster_by_more_than_noise():
    assert fastest(["usual", "other"], [98.0, 100.0]) == "usual"
    assert fastest(["usual", "other", "best"], [90.0, 98.0, 100.0]) == "other"


def choose(library, monkeypatch, rates, *, cores=4, batch_tokens=None, batch_seconds=math.inf):
    """Choose among engines whose rates, by streams and tokens, are given."""
    monkeypatch.setattr(
        measure, "token_rates", lambda runs, library, seconds: [rates[engine.streams, count] for engine, count in runs]
    )
    return choose_layout(
        Engine,
        library,
        core_shares(cores),
        batch_tokens=batch_tokens,
        batch_shares=(1, 0.5, 2),
        batch_seconds=batch_seconds,
        seconds=1.0,
    )


def test_streams_are_chosen_before_batches(library, monkeypatch):
    rates = {(4, 1024): 80.0, (2, 1024): 100.0, (1, 1024): 60.0, (2, 512): 99.0, (2, 2048): 110.0}
    engine, found = choose(library, monkeypatch, rates)
    assert (engine.streams, engine.threads) == (found.streams, found.threads) == (2, 2)
    assert found.batch_tokens == 2048
    assert found.tried["4 x 1, 1024 tokens"] == 80.0 and len(found.tried) == len(rates)
    assert str(found).startswith("2 streams x 2 threads, batches of 2048 tokens; tried: 4 x 1, 1024 tokens 73%")


@pytest.mark.parametrize(("batch_seconds", "tokens"), [(0.25, 2048), (0.21, 1024), (0.11, 512), (0.01, 512)])
def test_batches_that_take_too_long_are_not_chosen_but_for_the_smallest(library, monkeypatch, batch_seconds, tokens):
    rates = {(2, 1024): 10_000.0, (1, 1024): 5_000.0, (2, 512): 9_600.0, (2, 2048): 17_000.0}  # 0.2048 s, 0.11, 0.24
    _, found = choose(library, monkeypatch, rates, cores=2, batch_seconds=batch_seconds)
    assert (found.streams, found.batch_tokens, len(found.tried)) == (2, tokens, 4)


def test_what_is_given_is_not_measured(library, monkeypatch):
    engine, found = choose(library, monkeypatch, {}, cores=1, batch_tokens=300)
    assert found == layout.Layout(streams=1, threads=1, batch_tokens=300, tried={})
    monkeypatch.setattr(Engine, "shares_cores", False)
    _, found = choose(library, monkeypatch, {})
    assert (found.threads, found.batch_tokens, found.tried) == (None, 1024, {})


def test_a_rate_is_that_of_shapes_met_before(library, monkeypatch):
    """At a tenth of the speed a first meeting would show in any mean."""
    engine = Engine(1, 1, token_seconds=1e-4)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: engine.clock[0])
    (rate,) = measure.token_rates([(engine, 512)], library, seconds=1.0)
    assert rate == pytest.approx(1e4)


def test_the_cost_of_a_batch_is_that_of_shapes_met_before(library, monkeypatch):
    engine = Engine(1, 1, token_seconds=1e-4)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: engine.clock[0])
    cost = batch_cost(engine, library, tokens=512, multiple=16)
    assert cost.seconds(3, 64) == pytest.approx(3 * 64 * 1e-4) and cost.batch < 1e-6


class Compiling(Engine):
    """A backend whose compiled models take a gigabyte each."""

    compiles_shapes = True

    def __init__(self):
        super().__init__(1, 1)
        self.compiled = []

    def compile_shapes(self, shapes):
        self.compiled += shapes

    def resident_bytes(self):
        return len(self.compiled) * 10**9


def test_shapes_of_most_windows_are_compiled_for_themselves_until_time_or_memory_is_spent(library, monkeypatch):
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 10**12)
    padded = collections.Counter((-(-library.lengths // 8) * 8).clip(max=library.longest).tolist())
    plans = warmup.shapes_to_come(library, rows=None, tokens=1024, multiple=8)
    monkeypatch.setattr(warmup, "COMPILED_BYTES", 10**12)
    backend = Compiling()
    assert warmup.compile_shapes(backend, library, plans, seconds=60.0) == []
    assert sorted(backend.compiled) == sorted((1024 // length, length) for length in padded)
    assert [padded[length] for _, length in backend.compiled] == sorted(padded.values(), reverse=True)
    monkeypatch.setattr(warmup, "COMPILED_BYTES", 7e9)
    assert warmup.compile_shapes(Compiling(), library, plans, seconds=60.0) == plans[8:]  # one round of 8 GB
    assert warmup.compile_shapes(Engine(1, 1), library, plans, seconds=60.0) == plans  # which compiles none


class Threaded(Engine):
    """A backend on which a window takes its own time by the number of threads, and sometimes ten times that."""

    SECONDS = {4: 1.0, 2: 0.8, 1: 1.5}
    stolen = 0.0  # share of calls during which another program has a core, of several threads

    def infer(self, ids, mask, types):
        self.met.add(ids.shape)
        calls = self.clock[1:]
        self.clock.append(None)
        late = self.threads > 1 and self.stolen and len(calls) % round(1 / self.stolen) == 0
        Threaded.now += self.SECONDS[self.threads] * (10 if late else 1)
        return np.zeros(ids.shape, np.float32), np.zeros(ids.shape, np.float32)


@pytest.mark.parametrize(("stolen", "threads"), [(0.0, 2), (0.2, 1)])
def test_single_stream_takes_the_threads_with_the_lowest_90th_percentile(library, monkeypatch, stolen, threads):
    monkeypatch.setattr(Threaded, "now", 0.0, raising=False)
    monkeypatch.setattr(Threaded, "stolen", stolen)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: Threaded.now)
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: None)
    engine, found = layout.choose_threads(Threaded, library, [4, 2, 1], seconds=300.0)
    assert (found.streams, found.threads, engine.threads) == (1, threads, threads)
    (shape,) = engine.met
    padded = -(-library.lengths // 8) * 8
    assert shape == (1, min(sorted(padded)[-(-len(padded) * 9 // 10) :][0], library.longest))
    assert set(found.tried) == {f"1 x {count}, {shape[1]} tokens" for count in (4, 2, 1)}
    if not stolen:
        assert found.tried[f"1 x 1, {shape[1]} tokens"] == pytest.approx(shape[1] / 1.5)


def test_one_number_of_threads_is_not_measured(library):
    _, found = layout.choose_threads(Engine, library, [1], seconds=1.0)
    assert found == layout.Layout(streams=1, threads=1, batch_tokens=1024, tried={})
