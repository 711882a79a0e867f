"""The files and values that a submission must hold.

Source: mlcommons/inference, tools/submission/submission_checker, version v6.1 (constants.py and checks/), and
LoadGen's mlperf.conf. In v6.1 bert-99 and bert-99.9 are benchmarks of edge systems only: nothing is asked of Server
there any more. The bound of 130 ms on its 99th percentile is mlperf.conf's, which still has it.
"""

from __future__ import annotations

import dataclasses

from bertjax.mlperf.conf import OFFICIAL_SECONDS, SERVER_BOUND_MILLISECONDS
from bertjax.mlperf.gates import GATES, REFERENCE_F1

DIVISION = "open"
FOLDERS = ("src", "systems", "documentation", "results")
OTHER_DIVISIONS = ("closed", "network")  # which the official checker reads too, and this project does not make
BENCHMARKS = {"bert-99": GATES["default"], "bert-99.9": GATES["high_accuracy"]}  # shares of the reference's F1
REQUIRED_SCENARIOS = {"edge": ("SingleStream", "Offline"), "datacenter": ("Offline", "Server")}
SYSTEM_TYPES = ("edge", "datacenter", "datacenter,edge", "edge,datacenter")
STATUSES = ("available", "preview", "rdi")
SEEDS = {
    "qsl_rng_seed": 2085463073848966840,
    "sample_index_rng_seed": 2747215439041700203,
    "schedule_rng_seed": 16159082839903944936,
}
MAX_ACCURACY_LOG_BYTES = 10 * 1024

# The figure that a scenario is ranked by (constants.py, RESULT_FIELD_NEW), and its unit.
RESULTS = {
    "Offline": ("result_samples_per_second", "samples/s"),
    "Server": ("result_completed_samples_per_sec", "queries/s"),
    "SingleStream": ("early_stopping_latency_ss", "ns"),
    "MultiStream": ("early_stopping_latency_ms", "ns"),
}

PERFORMANCE_FILES = ("mlperf_log_detail.txt", "mlperf_log_summary.txt")
ACCURACY_FILES = ("accuracy.txt", "mlperf_log_accuracy.json", "mlperf_log_detail.txt", "mlperf_log_summary.txt")
SCENARIO_FILES = (
    "measurements.json",
    "user.conf",
    "README.md",
    *(f"performance/run_1/{name}" for name in PERFORMANCE_FILES),
    *(f"accuracy/{name}" for name in ACCURACY_FILES),
)
MEASUREMENTS = (
    "input_data_types",
    "retraining",
    "starting_weights_filename",
    "weight_data_types",
    "weight_transformations",
)

# Values of a detail log that are compared: numbers that are finite and not negative, and true or false.
_RUN_NUMBERS = ("effective_min_duration_ms", "effective_min_query_count", "effective_samples_per_query")
_PERFORMANCE_NUMBERS = (
    *_RUN_NUMBERS,
    "effective_performance_sample_count",
    "effective_max_duration_ms",
    "effective_max_query_count",
    *(f"effective_{name}" for name in SEEDS),
)
_SERVER_NUMBERS = ("effective_target_latency_ns", "effective_target_latency_percentile")
_LATENCY_BOUND = ("early_stopping_met",)  # of every scenario but Offline

# Fields of a systems/<id>.json that need a value, and those that may be empty.
SYSTEM_VALUES = (
    "division",
    "submitter",
    "status",
    "system_type",
    "system_name",
    "number_of_nodes",
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "host_memory_capacity",
    "host_memory_configuration",
    "host_storage_capacity",
    "host_storage_type",
    "host_networking",
    "host_networking_topology",
    "host_network_card_count",
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "accelerator_memory_configuration",
    "accelerator_host_interconnect",
    "accelerator_interconnect",
    "cooling",
    "framework",
    "operating_system",
    "other_software_stack",
)
SYSTEM_COUNTS = ("number_of_nodes", "accelerators_per_node")  # whole numbers: the official table multiplies them
# Texts that the official checker compares or joins; any other field may be a number as well.
SYSTEM_TEXTS = ("division", "submitter", "status", "system_type", "system_name", "hw_notes", "sw_notes")
SYSTEM_NOTES = (
    "system_type_detail",
    "host_processor_frequency",
    "host_processor_caches",
    "host_processor_interconnect",
    "accelerator_frequency",
    "accelerator_interconnect_topology",
    "accelerator_on-chip_memories",
    "hw_notes",
    "sw_notes",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """Least lengths and sample counts of the runs."""

    min_duration_ms: int = round(OFFICIAL_SECONDS * 1000)
    samples: int = 10_833  # windows of the whole SQuAD v1.1 development set; also least samples of an Offline query
    reference_f1: float = REFERENCE_F1  # in percent; a benchmark's gate is a share of it
    server_latency_ns: int = round(SERVER_BOUND_MILLISECONDS * 1e6)


def required_scenarios(system_type: str) -> tuple[str, ...]:
    """The scenarios that a system of this type must have; none for an unknown type."""
    found = (REQUIRED_SCENARIOS.get(part, ()) for part in system_type.split(","))
    return tuple(dict.fromkeys(scenario for scenarios in found for scenario in scenarios))


def performance_numbers(scenario: str) -> tuple[str, ...]:
    """The keys of a performance run's detail log that must hold numbers."""
    return (*_PERFORMANCE_NUMBERS, *(_SERVER_NUMBERS if scenario == "Server" else ()), RESULTS[scenario][0])


def performance_truths(scenario: str) -> tuple[str, ...]:
    """The keys of a performance run's detail log that must hold true or false."""
    return () if scenario == "Offline" else _LATENCY_BOUND
