"""The description of the machine: systems/<id>.json."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bertjax.errors import UserError
from bertjax.machine import describe, package_versions, sockets
from bertjax.mlperf.submission.reading import read_object
from bertjax.mlperf.submission.rules import (
    DIVISION,
    STATUSES,
    SYSTEM_COUNTS,
    SYSTEM_NOTES,
    SYSTEM_TEXTS,
    SYSTEM_TYPES,
    SYSTEM_VALUES,
)

_ENGINES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "jax": "JAX"}


def read_system(path: Path, submitter: str) -> dict[str, Any]:
    """A system description, with `submitter` and `division` filled in where they are empty.

    Raises:
      UserError: the file is no JSON object, or what the official checker asks for is missing; one line tells all.
    """
    faults: list[str] = []
    record = read_object(Path(path), faults)
    if faults:
        raise UserError(f"{'; '.join(faults)}; --example-system writes one to start from")
    for field, value in (("submitter", submitter), ("division", DIVISION)):
        record[field] = record.get(field) or value
    problems = system_problems(record, submitter)
    if problems:
        raise UserError(f"{path}: {'; '.join(problems)}")
    return record


def system_problems(record: Mapping[str, Any], submitter: str) -> list[str]:
    """Faults of a system's record that the official checker, or its table of results, would stumble over."""
    found = []
    missing = [field for field in (*SYSTEM_VALUES, *SYSTEM_NOTES) if field not in record]
    empty = [field for field in SYSTEM_VALUES if field in record and record[field] in ("", None)]
    if missing:
        found.append(f"missing fields: {', '.join(missing)}")
    if empty:
        found.append(f"fields that need a value (N/A where there is none): {', '.join(empty)}")
    given = {field: value for field, value in record.items() if field not in empty}
    for field in (*SYSTEM_VALUES, *SYSTEM_NOTES):
        kinds = (str,) if field in SYSTEM_TEXTS else (str, int, float)
        if field in given and (isinstance(given[field], bool) or not isinstance(given[field], kinds)):
            found.append(f"{field} is {given[field]!r}, wanted a text")
    for field, allowed in (("status", STATUSES), ("system_type", SYSTEM_TYPES), ("division", (DIVISION,))):
        if isinstance(given.get(field), str) and given[field] not in allowed:
            found.append(f"{field} is {given[field]!r}, wanted {' or '.join(map(repr, allowed))}")
    if isinstance(given.get("submitter"), str) and given["submitter"].lower() != submitter.lower():
        found.append(f"submitter is {given['submitter']!r}, wanted {submitter!r}")
    for field in SYSTEM_COUNTS:
        if isinstance(given.get(field), str | int) and not _is_count(given[field]):
            found.append(f"{field} is {given[field]!r}, wanted a whole number")
    if given.get("is_network"):  # which the official checker takes for a system behind a network, whatever it says
        found.append("is_network is given; leave it out")
    return found


def _is_count(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isdecimal() and len(value) < 10
    return isinstance(value, int) and value >= 0


def system_id(record: Mapping[str, Any]) -> str:
    """The name of the system's files and folders, from its `system_name`."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", str(record["system_name"])).strip("_.") or "system"


def example_system() -> dict[str, str]:
    """A description of this machine: what could be read off it, the rest empty for a person to fill in."""
    machine, versions = describe(), package_versions()
    memory, storage = machine["memory_bytes"] / 2**30, shutil.disk_usage(Path.cwd()).total / 1e9
    accelerators = _accelerators()
    known = {
        "division": DIVISION,
        "system_name": f"{machine['processor']} ({machine['cores']} cores)",
        "number_of_nodes": "1",
        "host_processor_model_name": machine["processor"],
        "host_processors_per_node": str(sockets() or ""),
        "host_processor_core_count": str(machine["cores"]),
        "host_processor_caches": _caches(),
        "host_memory_capacity": f"{memory:.1f} GiB" if memory else "",
        "host_storage_capacity": f"{storage:.0f} GB",
        "framework": ", ".join(f"{name} {versions[key]}" for key, name in _ENGINES.items() if key in versions),
        "operating_system": _operating_system(),
        "other_software_stack": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "accelerators_per_node": str(len(accelerators)),
        "sw_notes": f"instruction sets: {', '.join(machine['instructions'])}" if machine["instructions"] else "",
    }
    if accelerators:
        known["accelerator_model_name"], known["accelerator_memory_capacity"] = accelerators[0]
    else:
        none = (field for field in (*SYSTEM_VALUES, *SYSTEM_NOTES) if field.startswith("accelerator_"))
        known |= dict.fromkeys(none, "N/A")
    return {field: known.get(field, "") for field in (*SYSTEM_VALUES, *SYSTEM_NOTES)}


def _accelerators() -> list[tuple[str, str]]:
    """Name and memory of every NVIDIA GPU that its driver tells of."""
    command = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [(name, memory) for name, _, memory in (line.partition(", ") for line in told.splitlines() if line)]


def _caches() -> str:
    found = []
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((folder / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        found.append(f"L{level} {kind.lower()} {size}")
    return ", ".join(found)


def _operating_system() -> str:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return f"{name}, kernel {os.uname().release}" if hasattr(os, "uname") else name
