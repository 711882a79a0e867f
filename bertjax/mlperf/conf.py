"""LoadGen's settings for bert: names, mlperf.conf's values, and user.conf and audit.conf read as LoadGen reads them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from bertjax.errors import UserError
from bertjax.mlperf.conf_lines import FORM, LARGEST, MalformedLine, meant, split_line, whole

MODES = ("SubmissionRun", "AccuracyOnly", "PerformanceOnly", "FindPeakPerformance")  # in LoadGen's own order
SCORED = ("SubmissionRun", "AccuracyOnly")  # those of MODES that give an accuracy
SCENARIOS = ("Offline", "SingleStream", "Server", "MultiStream")
SHORT_SECONDS = 10.0  # a run for people
SERVER_BOUND_MILLISECONDS = 130.0  # mlperf.conf's target_latency of bert in Server, of the 99th percentile
OFFICIAL_SECONDS = 600.0  # mlperf.conf's min_duration: a run for the record
# mlperf.conf's min_query_count, where it has none LoadGen's own; of Offline's one query these are samples.
OFFICIAL_QUERIES = {"Offline": 10_833, "SingleStream": 100, "Server": 100, "MultiStream": 662}
OFFICIAL_PERCENTILES = {"SingleStream": 90.0, "Server": 99.0, "MultiStream": 99.0}
SAMPLES_PER_QUERY = 8  # mlperf.conf's, in MultiStream
BENCHMARK = "bert"  # LoadGen's name for it in mlperf.conf
AUDIT_CONF = Path("audit.config")  # LoadGen takes it from the working folder if it lies there

LOWEST_RATE, HIGHEST_RATE = 0.01, 1e7  # per second; Server waits for the query after its last second
_LONGEST = 2**63 // 10**6  # milliseconds that LoadGen's nanoseconds hold
_MOST_QUERIES = 10**9  # LoadGen plans all queries beforehand, 250 bytes each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Key:
    """A setting as LoadGen reads it: a whole number, or a real, from `low` to `high`."""

    low: float
    high: float
    real: bool = False
    unit: str = ""
    scenarios: tuple[str, ...] = SCENARIOS  # those in which LoadGen obeys it

    def value(self, text: str) -> float:
        """The value that LoadGen reads.

        Raises:
          ValueError: it is not what a person means, or lies outside the range. The message says which form is right.
        """
        intended = meant(text)
        if self.real:
            if intended is None or not self.low <= intended <= self.high:
                raise ValueError(f"must lie between {self.low:g} and {self.high:,.12g}{self.unit}")
            return float(intended)
        read = whole(text)
        if intended != read or (isinstance(intended, float) and read >= 2**53):
            form = f"; write {int(intended)}" if intended is not None and _is_whole(intended) else ""
            raise ValueError(f"LoadGen wants plain digits and reads {read}{form}")
        if not self.low <= read <= self.high:
            raise ValueError(f"must lie between {self.low} and {self.high:,}{self.unit}")
        return read


def _is_whole(value: float) -> bool:
    return math.isfinite(value) and value == int(value) and 0 <= value < 2**63


_MS, _PERCENT = " milliseconds", " percent, such as 99"
_SWITCH = Key(low=0, high=1)
_COUNT = Key(low=0, high=_MOST_QUERIES)
_EXPECTED = Key(real=True, low=1e-4, high=1e9, unit=_MS, scenarios=("SingleStream", "MultiStream"))
_RATE = Key(real=True, low=LOWEST_RATE, high=HIGHEST_RATE, unit=" per second", scenarios=("Server", "Offline"))
# The keys that LoadGen 6.0.17 looks up. A key that is read differently in different scenarios has several entries.
KEYS: tuple[tuple[str, Key], ...] = (
    ("min_duration", Key(low=0, high=_LONGEST, unit=_MS)),
    ("max_duration", Key(low=0, high=_LONGEST, unit=_MS)),  # 0: no limit
    ("min_query_count", Key(low=1, high=_MOST_QUERIES)),
    ("max_query_count", Key(low=0, high=LARGEST)),  # 0: no limit
    ("performance_sample_count_override", _COUNT),  # 0: the library's own count
    ("accuracy_sample_count_override", _COUNT),
    ("performance_issue_unique", _SWITCH),
    ("performance_issue_same", _SWITCH),
    ("performance_issue_same_index", _COUNT),
    ("sample_concatenate_permutation", _SWITCH),
    ("print_timestamps", _SWITCH),
    ("accuracy_log_rng_seed", Key(low=0, high=LARGEST)),
    ("accuracy_log_sampling_target", _COUNT),
    ("target_qps", _RATE),
    ("target_latency", Key(low=1, high=_LONGEST, unit=_MS, scenarios=("Server",))),
    ("target_latency", _EXPECTED),
    (
        "target_latency_percentile",
        Key(real=True, low=1.0, high=99.99, unit=_PERCENT, scenarios=("SingleStream", "Server", "MultiStream")),
    ),
    ("samples_per_query", Key(low=1, high=10**4, scenarios=("MultiStream",))),
    ("coalesce_queries", dataclasses.replace(_SWITCH, scenarios=("Server",))),
    ("max_async_queries", Key(low=0, high=2**31 - 1, scenarios=("Server",))),  # 0: no limit
    ("mode", Key(low=0, high=len(MODES) - 1)),
)
_NAMES = frozenset(name for name, _ in KEYS)
# LoadGen takes these from its built-in mlperf.conf alone, whatever a file says.
_RNG_SEEDS = ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed")
FIXED = frozenset([*_RNG_SEEDS, *(f"test05_{name}" for name in _RNG_SEEDS), "test05", "accuracy_log_probability"])
UNREAD = frozenset({"target_duration", "num_issue_query_threads"})  # names of settings that no conf sets
TOKEN_SWITCHES = frozenset({"use_token_latencies", "infer_token_latencies"})  # of language models' runs
TOKENS = TOKEN_SWITCHES | {"ttft_latency", "tpot_latency", "token_latency_scaling_factor"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conf:
    """A conf file as LoadGen reads it for one scenario of bert.

    `values` are the settings that hold, by key, in the file's own units. `notes` tell of the lines that LoadGen
    accepts and does nothing with.
    """

    values: dict[str, float]
    notes: tuple[str, ...]


def find_audit_conf(given: Path | None) -> Path | None:
    """The given file, else AUDIT_CONF where it is there."""
    return given or (AUDIT_CONF if AUDIT_CONF.exists() else None)


def read_user_conf(path: Path, scenario: str) -> dict[str, float]:
    """Read the settings of a user.conf that hold in a scenario, by key, in the file's own units.

    Raises:
      UserError: as for `read_conf`.
    """
    return read_conf(path, scenario).values


def read_conf(path: Path, scenario: str, *, audit: bool = False) -> Conf:
    """Read a user.conf or an audit.conf as LoadGen does for a scenario.

    Raises:
      UserError: the file is missing, or a line is one for which LoadGen drops the file, has an unknown scenario or
        key, or a value that LoadGen misreads, hangs on or crashes over.
    """
    path = Path(path)
    found: dict[tuple[int, str], tuple[float, int]] = {}  # by strength and key
    foreign: dict[str, list[int]] = {}
    notes: list[str] = []
    for number, name, value_text in _entries(path, audit):
        place = f"{path}:{number}"
        model, asked, key = _split_name(name, place)
        if model not in (BENCHMARK, "*") or asked not in (scenario, "*"):
            foreign.setdefault(f"{model}.{asked}", []).append(number)
        if model not in (BENCHMARK, "*"):
            continue
        if audit and model != "*":
            raise UserError(
                f"{place}: model {model!r}: of an audit.conf LoadGen reads only lines of all models, '*.*.{key} = ...'"
            )
        value, note = _checked(key, value_text, scenario if asked == "*" else asked, place, audit=audit)
        if asked not in (scenario, "*"):
            continue
        if note:
            notes.append(f"{place}: {note}")
            continue
        # A line that names its model or scenario is stronger than one with a star.
        slot = (model != "*") + 2 * (asked != "*"), key
        if slot in found:
            notes.append(f"{path}:{found[slot][1]}: {key} stands again in line {number}, which holds")
        found[slot] = value, number
    for name, numbers in foreign.items():
        lines = ("line " if len(numbers) == 1 else "lines ") + ", ".join(map(str, numbers))
        notes.append(f"{path}: {lines}: {name} is not this run, which is {BENCHMARK}.{scenario}; passed over")
    return Conf(values={key: value for (_, key), (value, _) in sorted(found.items())}, notes=tuple(notes))


def _entries(path: Path, audit: bool) -> list[tuple[int, str, str]]:
    """Number, key and value of each line that sets something."""
    try:
        text = path.read_bytes().decode("utf-8", "replace")
    except OSError as error:
        flag = "--audit-conf" if audit else "--user-conf"
        raise UserError(f"{path}: not readable ({error.strerror}); {flag} wants a file in LoadGen's form") from None
    if text.startswith("\ufeff"):
        raise UserError(f"{path}:1: begins with a byte order mark, which LoadGen takes for text; save it without")
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        place = f"{path}:{number}: {line.strip()[:80]!r}"
        try:
            split = split_line(line)
        except MalformedLine as error:
            raise UserError(f"{place}: {error}; LoadGen drops the whole file for it") from None
        if split is None or split[0].startswith("#"):
            continue
        if len(split[1]) != 1:
            raise UserError(f"{place}: {FORM}, with one value")
        found.append((number, split[0], split[1][0]))
    return found


def _split_name(name: str, place: str) -> tuple[str, str, str]:
    """Model, scenario and key of a line's name."""
    parts = name.rsplit(".", 2)
    if len(parts) < 3:
        raise UserError(f"{place}: {name!r}: {FORM}")
    model, scenario, key = parts
    if scenario not in (*SCENARIOS, "*"):
        raise UserError(f"{place}: scenario {scenario!r}: one of {', '.join(SCENARIOS)}, *")
    return model, scenario, key


def _checked(key: str, text: str, scenario: str, place: str, *, audit: bool) -> tuple[float, str]:
    """The value of a line, and a note if LoadGen does nothing with it."""
    if key in TOKENS and not (key in TOKEN_SWITCHES and whole(text) == 1):
        return 0, f"{key} is for runs that count tokens; bert's do not"
    if key in FIXED:
        return 0, f"LoadGen keeps its own {key}, that of mlperf.conf"
    if key in UNREAD:
        return 0, f"LoadGen does not read {key}"
    if key not in _NAMES:
        raise UserError(f"{place}: {key!r} is no setting of LoadGen for bert; see mlperf.conf for the names")
    known = [entry for name, entry in KEYS if name == key]
    entry = next((entry for entry in known if scenario in entry.scenarios), None)
    if entry is None:
        return 0, f"{key} has no effect in {scenario}"
    try:
        value = entry.value(text)
    except ValueError as error:
        raise UserError(f"{place}: {key} = {text}: {error}") from None
    if key == "mode" and not audit:
        return 0, "the mode is --mode's, whatever a user.conf says"
    return value, ""


def server_bound_seconds(conf: Mapping[str, float]) -> float:
    """The bound of Server's latency percentile, by a user.conf's settings as `read_user_conf` gives them."""
    return conf.get("target_latency", SERVER_BOUND_MILLISECONDS) / 1e3
