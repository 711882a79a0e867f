"""The highest rate at which Server is VALID, found by bisection over separate LoadGen runs.

LoadGen's own FindPeakPerformance doubles the rate until the bound is missed, and bisects from there, all in one process
and without its early-stopping rule: the rate that it finds may be called INVALID by the same log. Here each probe has
a process of its own, and what was found is confirmed by a run of full length, judged as a submission's would be.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bertjax.errors import UserError, WorkFailed
from bertjax.mlperf import session
from bertjax.mlperf.conf import SHORT_SECONDS, read_user_conf, server_bound_seconds
from bertjax.mlperf.result import Result
from bertjax.mlperf.session import SessionSettings

STEP = 0.02  # to which the rate is found, as a share of Offline's
STEP_DOWN = 0.03  # by which the rate falls, as a share of itself, after a confirming run that failed
CONFIRMATIONS = 10  # runs of full length before the search gives up
PROBE_SECONDS = 10.0  # of a short run
QUERIES = 1000  # at least, in any run: LoadGen's early stopping wants 459 that are in time, and more if some are late


@dataclasses.dataclass(frozen=True, kw_only=True)
class Probe:
    """One Server run."""

    rate: float  # queries per second that were issued
    p99_seconds: float
    valid: bool  # LoadGen's verdict
    confirming: bool  # a run of full length


def find_peak(probe: Callable[[float, bool], Probe], *, highest: float, bound: float, step: float) -> list[Probe]:
    """Probe rates until one is confirmed; the last probe is the confirmed one.

    Short runs bisect between 0 and `highest`, beginning near the top, where a good server's rate lies. They are judged
    by their p99 alone: with few queries LoadGen's early-stopping rule calls a rate INVALID that a longer run confirms.
    The best rate is then run at full length, and a smaller one as long as that run is not VALID.

    Args:
      probe: makes one Server run at a rate, at full length or not.
      highest: a rate that cannot be kept up, such as Offline's.
      bound: seconds that the 99th percentile may take.
      step: the bisection ends when it knows the rate to this share of `highest`.

    Raises:
      WorkFailed: no short run kept to the bound, or none of CONFIRMATIONS full ones was VALID.
    """
    probes: list[Probe] = []
    low, high, rate = 0.0, highest, 0.8 * highest
    while high - low > step * highest:
        found = probe(rate, False)
        probes.append(found)
        low, high = (rate, high) if found.p99_seconds <= bound else (low, rate)
        rate = (low + high) / 2
    if not low:
        raise WorkFailed(f"Server keeps to its bound at no rate above {high:.3g} queries/s")
    for attempt in range(CONFIRMATIONS):
        found = probe(low * (1 - STEP_DOWN) ** attempt, True)
        probes.append(found)
        if found.valid:
            return probes
    raise WorkFailed(f"no full-length Server run was VALID, down to {probes[-1].rate:.3g} queries/s")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Peak:
    offline: Result  # what the search began from
    confirmed: Result  # the run of full length at the highest VALID rate
    probes: tuple[Probe, ...]  # in the order in which they ran
    bound_seconds: float  # of the 99th percentile


def check(settings: SessionSettings) -> None:
    """Check that a search can begin with these settings.

    Raises:
      UserError: they are not of Server in PerformanceOnly, or name a rate.
    """
    if (settings.scenario, settings.mode) != ("Server", "PerformanceOnly") or settings.target_qps is not None:
        raise UserError("--find-peak: goes with --scenario Server in PerformanceOnly, and finds --target-qps itself")


def server_peak(settings: SessionSettings, on_probe: Callable[[Probe, float], None]) -> Peak:
    """Find the highest VALID rate of a model. Streams and threads are measured once, in an Offline run.

    Args:
      settings: of the full-length run; scenario and rate are the search's own. Logs go to `offline`, `probe-<n>` and
        `confirm-<n>` under its `log_root`.
      on_probe: told of each run, and of Offline's samples per second.

    Raises:
      UserError: a setting or a file is wrong, or the backend cannot run here.
      WorkFailed: a run failed, or no rate was confirmed.
    """
    conf = read_user_conf(settings.user_conf, "Server") if settings.user_conf else {}
    bound = server_bound_seconds(conf)
    full = settings.duration_seconds or conf.get("min_duration", 1e3 * SHORT_SECONDS) / 1e3
    short = min(full, PROBE_SECONDS)
    root, results = settings.log_root, list[Result]()
    begin = dataclasses.replace(
        settings, scenario="Offline", log_root=root / "offline", duration_seconds=short, target_qps=None
    )
    offline = session.run(begin)
    layout, highest = offline.layout, offline.measured.samples_per_second
    base = dataclasses.replace(
        settings,
        scenario="Server",
        streams=layout.streams,
        threads=layout.threads,
        compile_seconds=session.compile_seconds(full),  # probes are to be as fast as the full run
    )

    def probe(rate: float, confirming: bool) -> Probe:
        number = 1 + len(results)
        name = f"confirm-{number}" if confirming else f"probe-{number}"
        seconds = max(full if confirming else short, QUERIES / rate)
        run = dataclasses.replace(base, log_root=root / name, duration_seconds=seconds, target_qps=rate)
        result = session.run(run)
        results.append(result)
        p99 = result.measured.latency_ns["99.00"] / 1e9
        found = Probe(rate=rate, p99_seconds=p99, valid=result.measured.valid, confirming=confirming)
        on_probe(found, highest)
        return found

    probes = find_peak(probe, highest=highest, bound=bound, step=STEP)
    return Peak(offline=offline, confirmed=results[-1], probes=tuple(probes), bound_seconds=bound)
