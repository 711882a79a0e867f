"""This machine: cores, instruction sets, GPU, memory, versions, allocator."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# A model for each shape is a lot of memory, of which each batch meets another part: with small pages, 2 to 9 % slower
# (docs/serving.md).
HUGE_PAGES = "glibc.malloc.hugetlb=1"

# Large temporaries are the rule here, and by default glibc asks the kernel for each of them and gives it back, so that
# every step pays for its page faults again. Kept memory and huge pages make training faster by more than a fifth
# (benchmarks/train_step.py). The price is memory: steps of every length want a block of another size, and kept ones lie
# between others, so that few of them can be used again.
ALLOCATOR = ":".join(
    f"glibc.malloc.{name}={value}"
    for name, value in {
        "hugetlb": 1,
        "mmap_threshold": 1 << 34,
        "trim_threshold": 1 << 34,
        "top_pad": 1 << 28,
        "arena_max": 1,
    }.items()
)

_PACKAGES = ("bertjax", "jax", "flax", "optax", "tokenizers", "onnx", "onnxruntime", "openvino", "mlcommons-loadgen")

_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h

# uint8 x int8 dot products that accumulate in 32 bits. Without one of these x86 kernels add two products in
# 16 bits, which saturates: 2 x 255 x 127 is past 32,767.
_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}


def resident_bytes() -> int | None:
    """Memory that this process holds now; None where the system does not tell."""
    for line in _lines(Path("/proc/self/statm")):
        return int(line.split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on; a package that is not installed is left out."""
    import importlib.metadata  # here, as it takes longer than all else that a program imports before `main`

    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Processor, instruction sets that decide INT8 speed, and the cores and bytes of memory that a process may use."""
    names = _cpuinfo().get("model name", set())
    telling = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8")
    return {
        "processor": min(names, default=platform.processor() or platform.machine()),
        "cores": cores(),
        "instructions": [name for name in telling if name in _flags()],
        "memory_bytes": memory_bytes(),
    }


def sockets() -> int | None:
    """Number of the machine's processors; None where the system does not tell."""
    return len(_cpuinfo().get("physical id", set())) or None


@functools.cache
def memory_bytes() -> int:
    """Memory that this process may use: the machine's, or less where its cgroup has a limit; 0 where unknown."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    limit = cgroup_limits().memory_bytes
    return physical if limit is None else min(limit, physical or limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CgroupLimits:
    """The strictest limits of a process's control groups; None: no limit."""

    cpus: float | None  # processors' worth of time
    memory_bytes: int | None


def cgroup_limits(root: Path = Path("/")) -> CgroupLimits:
    """This process's limits, of control groups in version 1 or 2, its own and those around it.

    Args:
      root: the folder that holds `proc` and `sys`.
    """
    cpus: list[float] = []
    memory: list[int] = []
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            for folder in _upwards(root / "sys/fs/cgroup", path):
                quota, _, period = " ".join(_lines(folder / "cpu.max")).partition(" ")
                if quota.isdigit():
                    cpus.append(int(quota) / int(period))
                memory += [int(text) for text in _lines(folder / "memory.max") if text.isdigit()]
        for folder in _upwards(root / "sys/fs/cgroup" / controllers, path) if controllers else ():
            for text, period in zip(
                _lines(folder / "cpu.cfs_quota_us"), _lines(folder / "cpu.cfs_period_us"), strict=False
            ):
                if text.isdigit():  # -1: no limit
                    cpus.append(int(text) / int(period))
            memory += [int(text) for text in _lines(folder / "memory.limit_in_bytes")]
    return CgroupLimits(cpus=min(cpus, default=None), memory_bytes=min(memory, default=None))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """A group's folder and those of the groups around it; in a container `path` may name folders outside of it."""
    folder = mount / path.strip("/")
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _lines(path: Path) -> list[str]:
    """A file's lines; none where it cannot be read."""
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return []


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it."""

    name: str  # "NVIDIA L4"
    compute_capability: str  # "8.9"


def find_gpu() -> Gpu | None:
    """The first GPU that NVIDIA's driver shows; None without a driver or a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value, name = ctypes.c_int(0), ctypes.c_int(0), ctypes.create_string_buffer(256)
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    driver.cuDeviceGetName(name, len(name), device)
    digits = []
    for attribute in _COMPUTE_CAPABILITY:
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device)
        digits.append(str(value.value))
    return Gpu(name=name.value.decode(), compute_capability=".".join(digits))


def has_gpu() -> bool:
    """Whether NVIDIA's driver is here and shows a device."""
    return find_gpu() is not None


@functools.cache
def saturates_int8() -> bool:
    """Whether this CPU's fast INT8 kernels may saturate (x86 without VNNI or AMX)."""
    return platform.machine() in ("x86_64", "AMD64") and not _DOT_PRODUCTS & _flags()


@functools.cache
def multiplies_signed() -> bool:
    """Whether int8 x int8 products cost this CPU no more than uint8 x int8 ones do (AMX)."""
    return "amx_int8" in _flags()


@functools.cache
def cores() -> int:
    """Number of cores this process can keep busy: those it may run on, or fewer where its cgroup has a quota of time.

    A part of a core counts for none: more threads than the quota has time for are stopped together for the rest of each
    period, and a query waits as long.
    """
    known = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_limits().cpus
    return known if quota is None else max(1, min(known, int(quota)))


def share(number: int, count: int) -> set[int]:
    """The cores for one of `count` processes: an equal part of this one's cores, or one core where they are too few."""
    known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores()))
    if count > len(known):
        return {known[number % len(known)]}
    return set(known[number * len(known) // count : (number + 1) * len(known) // count])


def _flags() -> set[str]:
    return set(" ".join(_cpuinfo().get("flags", set())).split())


@functools.cache
def _cpuinfo() -> dict[str, set[str]]:
    """The fields of /proc/cpuinfo, each with its values on all cores; empty where there is no such file."""
    found: dict[str, set[str]] = {}
    for line in _lines(Path("/proc/cpuinfo")):
        name, separator, value = line.partition(":")
        if separator:
            found.setdefault(name.strip(), set()).add(value.strip())
    return found
