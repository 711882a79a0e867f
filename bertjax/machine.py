"""This machine: cores, instruction sets, GPU, memory, versions, allocator."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib.metadata
import os
import platform
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
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that figures depend on; a package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def describe() -> dict[str, Any]:
    """Processor, cores, instruction sets that decide INT8 speed, and memory in bytes."""
    model, flags = platform.processor() or platform.machine(), set()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
            if line.startswith("flags"):
                flags = set(line.split(":", 1)[1].split())
    except OSError:
        pass
    telling = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": model,
        "cores": cores,
        "instructions": [name for name in telling if name in flags],
        "memory_bytes": memory,
    }


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
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(number: int, count: int) -> set[int]:
    """The cores for one of `count` processes: an equal part of this one's cores, or one core where they are too few."""
    known = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(cores()))
    if count > len(known):
        return {known[number % len(known)]}
    return set(known[number * len(known) // count : (number + 1) * len(known) // count])


def _flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())
