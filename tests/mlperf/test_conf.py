"""user.conf and audit.conf are read as LoadGen reads them, and what it misreads or passes over is told."""

from __future__ import annotations

import random
from pathlib import Path

import mlperf_loadgen
import pytest

from bertjax.errors import UserError
from bertjax.mlperf.conf import FIXED, KEYS, SCENARIOS, TOKENS, UNREAD, read_conf
from bertjax.mlperf.conf_lines import whole
from tests.mlperf.loadgen_conf import agreed_values, loadgen_reads

VALUES = (
    *(
        "0",
        "1",
        "2",
        "3",
        "5",
        "8",
        "90",
        "99",
        "100",
        "600000",
        "5000.0",
        "007",
        "+5",
        "0x10",
        "1.5",
        "99.9",
        ".5",
        "2.",
    ),
    *("6e5", "1.3e2", "010000", "08", "0x", "0x1p3", "-1", "-5.5", "inf", "nan", "nan(a)", "Infinity", "1e999", "1e-7"),
    *(
        "18446744073709551615",
        "18446744073709551616",
        "99999999999999999999999999",
        "9223372036855",
        "many",
        "5s",
        "5,5",
    ),
)


def _line(scenario: str, draw: random.Random) -> str:
    keys = [name for name, _ in KEYS] * 5 + [*FIXED, *UNREAD, *TOKENS]
    models, scenarios = ["bert", "*", "*"] * 3 + ["bert-99"], [scenario, "*"] * 4 + list(SCENARIOS)
    name = ".".join(map(draw.choice, (models, scenarios, keys)))
    value, form = draw.choice((*VALUES, *VALUES[:18] * 2)), draw.random()
    if form < 0.7:
        return f"{name} = {value}"
    return draw.choice(
        (
            *(f"# {name} = {value}", f"#{name} = {value}", f"#{name}", "#end of file", "#", "# end", "", " \t "),
            *(f"{name}={value}", f"{name} ={value}", f"{name} = {value} # why", f"{name} = {value} #why"),
            *(f"{name}", f"{name} =", f"{name} # = {value}", f"{name} = {value} 7", f"{name} = {value} x"),
            *(f"\t{name}\t=\v{value} ", f"{name} = {value}\r", f"{name}\xa0= {value}", f"{name} == {value}"),
        )
    )


@pytest.mark.parametrize("audit", [False, True])
def test_what_is_accepted_is_what_loadgen_reads(tmp_path: Path, audit: bool):
    """1,000 generated files of one to four lines for each kind of conf."""
    path, draw = tmp_path / "a.conf", random.Random(7)
    found = []
    for _ in range(1000):
        scenario = draw.choice(SCENARIOS)
        lines = [_line(scenario, draw) for _ in range(draw.choice((1, 1, 2, 4)))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found.append(agreed_values(path, scenario, audit=audit))
    counts = [count for count in found if count is not None]
    assert len(counts) > 200 and sum(counts) > 50


@pytest.mark.parametrize("value", [*VALUES, "-18446744073709551615", "-18446744073709551616", "0X1f", "1e3", "-0x10"])
def test_whole_numbers_are_strtoulls(tmp_path: Path, value: str):
    (tmp_path / "a.conf").write_text(f"*.*.accuracy_log_rng_seed = {value}\n")
    code, settings = loadgen_reads(tmp_path / "a.conf", "Offline")
    assert code or settings.accuracy_log_rng_seed == whole(value)


def test_the_more_exact_line_holds_and_lines_of_others_are_told(tmp_path: Path):
    path = tmp_path / "user.conf"
    path.write_text(
        "# a comment\n"
        "bert.Server.target_qps = 40\n*.Server.target_qps = 30\n\n*.*.min_duration = 5000\n"
        "bert.*.min_duration = 6000\nbert-99.Server.min_query_count = 9\nbert.Offline.target_qps = 7\n"
        "bert-99.Server.target_qps = 9\n*.*.min_duration = 7000\n"
        "*.*.qsl_rng_seed = 7\nbert.Server.mode = 1\n*.*.samples_per_query = 4\n*.*.target_duration = 0\n"
    )
    found = read_conf(path, "Server")
    assert found.values == {"target_qps": 40.0, "min_duration": 6000}
    assert [note.removeprefix(str(path)) for note in found.notes] == [
        ":5: min_duration stands again in line 10, which holds",
        ":11: LoadGen keeps its own qsl_rng_seed, that of mlperf.conf",
        ":12: the mode is --mode's, whatever a user.conf says",
        ":13: samples_per_query has no effect in Server",
        ":14: LoadGen does not read target_duration",
        ": lines 7, 9: bert-99.Server is not this run, which is bert.Server; passed over",
        ": line 8: bert.Offline is not this run, which is bert.Server; passed over",
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("bert.Server.target_qps=40 ", "1 value|spaces included"),
        ("bert.Server.target_qps = many", "'many' is no number; a line reads .*LoadGen drops the whole file"),
        ("bert.Server.target_qps = 40 # why", "a comment has a line of its own; LoadGen drops the whole file"),
        ("#my comment here", "a comment has a blank after its #; LoadGen drops the whole file"),
        ("bert.Server.target_qps =", "with one value"),
        ("bert.Server.target_qps = 4 5", "with one value"),
        ("target_qps = 40", "'target_qps': a line reads"),
        ("bert.Server.target_qsp = 40", "'target_qsp' is no setting"),
        ("*.*.use_token_latencies = 1", "'use_token_latencies' is no setting of LoadGen for bert"),
        ("bert.Sevrer.target_qps = 40", "scenario 'Sevrer': one of Offline, "),
        ("*.*.min_duration = 6e5", "min_duration = 6e5: LoadGen wants plain digits and reads 6; write 600000"),
        ("*.*.min_duration = 010000", "reads 4096; write 10000"),
        ("*.*.min_duration = -1", "reads 18446744073709551615$"),
        ("*.*.min_duration = inf", "reads 0$"),
        ("*.*.min_duration = 9223372036855", "must lie between 0 and 9,223,372,036,854 milliseconds"),
        ("bert.Server.target_latency = 1.3e2", "reads 1; write 130"),
        ("bert.Server.target_latency = 0", "must lie between 1 and"),
        ("bert.Server.target_latency_percentile = 0.99", "must lie between 1 and 99.99 percent, such as 99"),
        ("bert.Server.target_latency_percentile = 100", "must lie between 1 and 99.99"),
        *((f"*.*.target_qps = {value}", "must lie between 0.01 and 10,000,000") for value in ("0", "-1", "inf", "nan")),
        ("*.*.min_query_count = 0", "must lie between 1 and 1,000,000,000"),
        ("*.*.min_query_count = 18446744073709551615", "must lie between 1 and 1,000,000,000"),
        ("*.*.performance_issue_same = 2", "must lie between 0 and 1"),
        ("bert.MultiStream.samples_per_query = 0", "must lie between 1 and"),  # whatever scenario runs
        ("bert.SingleStream.target_latency = 0", "must lie between 0.0001 and"),
    ],
)
def test_a_line_that_loadgen_drops_or_misreads_is_told_with_its_number(tmp_path: Path, line: str, told: str):
    path = tmp_path / "user.conf"
    path.write_text("bert.Offline.target_qps = 1\n" + line + "\n")
    with pytest.raises(UserError, match=f"user.conf:2: .*({told})"):
        read_conf(path, "Server")


def test_a_byte_order_mark_is_told(tmp_path: Path):
    path = tmp_path / "user.conf"
    path.write_bytes("bert.Server.target_qps = 40\n".encode("utf-8-sig"))
    assert loadgen_reads(path, "Server")[1].server_target_qps == mlperf_loadgen.TestSettings().server_target_qps
    with pytest.raises(UserError, match="user.conf:1: begins with a byte order mark"):
        read_conf(path, "Server")


TEST01 = "# mode dictionary\n*.*.mode = 2\n*.*.accuracy_log_rng_seed = 720381539243781796\n" + (
    "*.*.accuracy_log_sampling_target = 4096\n"
)
TEST04 = "*.Offline.mode = 2\n*.Offline.performance_issue_same = 1\n*.Offline.performance_issue_same_index = 3\n" + (
    "*.Server.mode = 2\nstable-diffusion-xl.Offline.min_query_count = 500\n"
)


def test_mlcommons_audit_files_are_read_and_what_has_no_part_in_bert_is_told(tmp_path: Path):
    (tmp_path / "a").write_text(TEST01)
    found = read_conf(tmp_path / "a", "Offline", audit=True)
    assert found.notes == () and found.values["accuracy_log_rng_seed"] == 720381539243781796
    (tmp_path / "a").write_text(TEST04)
    found = read_conf(tmp_path / "a", "Offline", audit=True)
    assert found.values == {"mode": 2, "performance_issue_same": 1, "performance_issue_same_index": 3}
    assert [note.split(": ", 2)[1] for note in found.notes] == ["line 4", "line 5"]
