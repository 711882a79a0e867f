"""A session: one LoadGen run of one model, from files to a result, in a process of its own.

Its parts: `prepare` opens the backend and plans the test, `loadgen` runs LoadGen's test over the system under test
(`sut`), `logs` reads what LoadGen wrote, `result` holds it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pickle
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from bertjax.data.windows import WindowSettings
from bertjax.engines.backend import BACKENDS
from bertjax.engines.workers import processes
from bertjax.errors import UserError, WorkFailed
from bertjax.files import disk_error
from bertjax.mlperf.conf import HIGHEST_RATE, LOWEST_RATE, MODES, SCENARIOS, Conf, read_conf
from bertjax.mlperf.result import Result

ENDING_SECONDS = 10.0  # for a session's process to end what it has started; Ray takes some


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionSettings:
    """One session. What is None is chosen: see `run`."""

    model: Path  # a model directory
    data: Path  # a SQuAD v1.1 file
    scenario: str  # one of SCENARIOS
    mode: str  # one of MODES
    log_root: Path  # LoadGen writes into <log_root>/<scenario>/<mode>
    windows: WindowSettings = WindowSettings()
    backend: str = "auto"
    streams: int | None = None  # concurrent batches
    threads: int | None = None  # of each stream
    batch_tokens: int | None = None  # padded tokens in a batch
    workers: int | None = None  # processes that share the streams; None: no workers, or with Ray one per GPU
    ray: str | None = None  # a Ray cluster's address, or LOCAL for one of this machine; None: no Ray
    duration_seconds: float | None = None
    compile_seconds: float | None = None  # for compiling shapes for themselves; None: `compile_seconds` of the duration
    target_qps: float | None = None
    user_conf: Path | None = None
    audit_conf: Path | None = None  # stronger than everything else

    @property
    def log_dir(self) -> Path:
        return self.log_root / self.scenario / self.mode


@dataclasses.dataclass(frozen=True, kw_only=True)
class Confs:
    """The settings of a session's user.conf and audit.conf, as `read_conf` gives them; empty without a file."""

    user: Mapping[str, float]
    audit: Mapping[str, float]
    notes: tuple[str, ...]  # of both: lines that LoadGen accepts and does nothing with


def compile_seconds(duration: float) -> float:
    """Most seconds that compiling shapes may take before a run of `duration` seconds."""
    return min(60.0, 0.5 * duration)


def run(settings: SessionSettings) -> Result:
    """Hold a session in a process of its own (see `loadgen` for why one session takes a process).

    Tokenization happens before LoadGen's test; scoring, `summary.json` and the picture come after it. Without a
    duration, neither in the settings nor in the user.conf, the test takes SHORT_SECONDS. Without streams and threads,
    SingleStream gets one stream, of as many threads as a short measurement finds fastest; Offline and Server get the
    split of the cores that one finds fastest, and so do their batches; AccuracyOnly and MultiStream get one
    single-threaded stream per core (SingleStream one stream over all). Without a rate, Server issues a share of the
    throughput measured beforehand.

    Raises:
      UserError: a setting or a file is wrong, or the backend cannot run here.
      WorkFailed: the backend failed in the middle of the test, or LoadGen gave no result.
      KeyboardInterrupt: the session's process has then ended too.
    """
    confs = check(settings)
    read_end, write_end = os.pipe()
    process = processes.start("bertjax.mlperf.session_process", (settings, confs), [write_end])
    os.close(write_end)
    try:
        with open(read_end, "rb") as answer:
            content = answer.read()
        code = process.wait()
    finally:
        processes.close_stdin(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(ENDING_SECONDS)
        process.kill()
        process.wait()
    if not content:
        how = processes.how_it_ended(code)
        raise WorkFailed(f"the serving process of {settings.model} ended with {how} before its session was done")
    outcome = pickle.loads(content)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def check(settings: SessionSettings) -> Confs:
    """Check all that can be checked without reading the model or the data, and make the log folder.

    Returns:
      The user.conf and the audit.conf, read once for the whole session.

    Raises:
      UserError: a setting is wrong, the user.conf or audit.conf is malformed or does not fit the mode, or the log
        folder cannot be written.
    """
    for flag, value, known in (
        ("--scenario", settings.scenario, SCENARIOS),
        ("--mode", settings.mode, MODES),
        ("--backend", settings.backend, BACKENDS),
    ):
        if value not in known:
            raise UserError(f"{flag} {value}: unknown; choose one of {', '.join(known)}")
    for name in ("streams", "threads", "batch_tokens", "workers", "duration_seconds", "target_qps"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:
            flag = "--" + name.removesuffix("_seconds").replace("_", "-")
            raise UserError(f"{flag} {value}: must be above 0")
    if settings.target_qps is not None and not LOWEST_RATE <= settings.target_qps <= HIGHEST_RATE:
        raise UserError(f"--target-qps {settings.target_qps:g}: must lie between {LOWEST_RATE} and {HIGHEST_RATE:,.0f}")
    if settings.mode == "FindPeakPerformance" and settings.scenario != "Server":
        raise UserError(
            f"--mode FindPeakPerformance: LoadGen searches for a rate in Server only, and {settings.scenario} has none"
            " to set: PerformanceOnly measures it"
        )
    nothing = Conf(values={}, notes=())
    user = read_conf(settings.user_conf, settings.scenario) if settings.user_conf else nothing
    audit = read_conf(settings.audit_conf, settings.scenario, audit=True) if settings.audit_conf else nothing
    mode = audit.values.get("mode")
    if mode is not None and mode != MODES.index(settings.mode):
        raise UserError(f"{settings.audit_conf}: its mode {mode:g} is {MODES[int(mode)]}, not --mode {settings.mode}")
    try:
        settings.log_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=settings.log_dir):
            pass  # LoadGen itself goes on without a word where it cannot write
    except OSError as error:
        raise disk_error(settings.log_dir, error) from None
    return Confs(user=user.values, audit=audit.values, notes=user.notes + audit.notes)


def check_counts(settings: SessionSettings, confs: Confs, windows: int) -> None:
    """Check settings of the confs that count samples against the samples there are.

    Args:
      windows: samples of the data file.

    Raises:
      UserError: LoadGen would go past the samples' end, or would log that there were more.
    """
    held = {**confs.user, **confs.audit}
    loaded = min(windows, int(held.get("performance_sample_count_override", 0)) or windows)
    for key, most in (
        ("accuracy_sample_count_override", windows),
        ("performance_sample_count_override", windows if "performance_sample_count_override" in confs.audit else None),
        ("performance_issue_same_index", loaded - 1 if held.get("performance_issue_same") else None),
    ):
        if most is not None and held.get(key, 0) > most:
            path = settings.audit_conf if key in confs.audit else settings.user_conf
            raise UserError(f"{path}: {key} {held[key]:g}: must be at most {most}, as there are {windows} samples")
    if held.get("performance_issue_same") and held.get("performance_issue_unique"):
        path = settings.audit_conf or settings.user_conf
        raise UserError(f"{path}: performance_issue_same and performance_issue_unique exclude each other")
