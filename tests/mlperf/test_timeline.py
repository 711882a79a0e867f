import pytest

from bertjax.mlperf import timeline
from bertjax.mlperf.timeline import Timeline


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(timeline.time, "perf_counter", lambda: now[0])
    return now


def test_a_query_takes_until_its_last_sample_is_answered(clock):
    noted = Timeline()
    noted.issue([99])
    noted.begin()  # what came before is another phase
    for at, what, ids in [
        (200.0, "issue", [7, 5]),
        (201.0, "issue", [6]),
        (202.0, "complete", [6, 5]),
        (204.0, "complete", [7]),
    ]:
        clock[0] = at
        noted.issue(ids) if what == "issue" else noted.complete(ids)
    timing = noted.timing()
    assert timing.latencies.tolist() == [4.0, 1.0] and timing.issued.tolist() == [0.0, 1.0]
    assert timing.answered.tolist() == [2.0, 2.0, 4.0] and timing.samples.tolist() == [2, 1]
    times, inside = timing.samples_inside(5)
    assert times.tolist() == [0, 1, 2, 3, 4] and inside.tolist() == [2, 3, 1, 1, 0]
    assert timing.samples_per_second(2)[1].tolist() == [0.0, 1.5]


def test_a_phase_without_queries_has_no_timing():
    assert Timeline().timing() is None


def test_a_query_alone_is_timed_without_ids(clock):
    timings = []
    for one_query in (True, False):
        noted = Timeline(one_query=one_query)
        for at, step in enumerate((noted.issue, noted.complete, noted.complete)):
            clock[0] = 300.0 + 2 * at
            step([[1, 2, 3], [3, 1], [2]][at])
        timings.append(noted.timing())
    alone, usual = timings
    for name in ("issued", "latencies", "answered", "samples"):
        assert getattr(alone, name).tolist() == getattr(usual, name).tolist()
    assert alone.latencies.tolist() == [4.0]
