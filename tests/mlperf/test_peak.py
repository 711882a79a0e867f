import math

import pytest

from bertjax.errors import WorkFailed
from bertjax.mlperf import peak
from bertjax.mlperf.output import draw_peak
from bertjax.mlperf.peak import Probe, find_peak, server_peak
from tests.mlperf.test_session import settings_for


def server(short: float, full: float):
    """A server whose p99 keeps to 0.13 s up to a rate, which in full runs is another one."""
    return lambda rate, confirming: Probe(
        rate=rate,
        p99_seconds=0.1 if rate <= short else 0.2,
        valid=rate <= (full if confirming else 0.0),  # short runs are never VALID: too few queries
        confirming=confirming,
    )


def rates(probes, confirming):
    return [probe.rate for probe in probes if probe.confirming == confirming]


def test_bisection_begins_near_the_top_and_confirms_the_best_rate():
    probes = find_peak(server(86.0, 100.0), highest=100.0, bound=0.13, step=0.02)
    assert rates(probes, False) == [80.0, 90.0, 85.0, 87.5, 86.25]
    assert rates(probes, True) == [85.0] and probes[-1].valid


def test_a_rate_that_a_full_run_does_not_confirm_falls():
    probes = find_peak(server(86.0, 81.0), highest=100.0, bound=0.13, step=0.02)
    assert rates(probes, True) == pytest.approx([85.0, 85.0 * 0.97, 85.0 * 0.97**2])
    assert [probe.valid for probe in probes[-3:]] == [False, False, True]


def test_a_server_that_keeps_no_rate_is_told():
    with pytest.raises(WorkFailed, match="at no rate above 1.25 queries/s"):
        find_peak(server(0.0, 0.0), highest=100.0, bound=0.13, step=0.02)
    with pytest.raises(WorkFailed, match="VALID, down to 64.6 queries/s"):  # 85 x 0.97^9
        find_peak(server(86.0, 0.0), highest=100.0, bound=0.13, step=0.02)


def test_the_found_rate_is_one_that_loadgen_calls_valid(run_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(peak, "STEP", 0.25)  # few runs: each takes seconds to begin
    monkeypatch.setattr(peak, "STEP_DOWN", 0.5)
    told = []
    settings = settings_for(run_dir, tmp_path, scenario="Server", streams=None, threads=None, duration_seconds=1.5)
    found = server_peak(settings, lambda probe, offline: told.append(probe))
    assert found.confirmed.performance.valid and found.probes == tuple(told)
    assert found.confirmed.target_qps == pytest.approx(found.probes[-1].rate, rel=1e-5)  # LoadGen logs six digits
    confirmed, offline = found.confirmed.layout, found.offline.layout
    assert (confirmed.streams, confirmed.threads) == (offline.streams, offline.threads)  # measured once
    assert math.isclose(found.bound_seconds, 0.13)
    picture = draw_peak(tmp_path, found.probes, found.bound_seconds, found.offline.performance.samples_per_second)
    assert "<svg" in picture.read_text()
