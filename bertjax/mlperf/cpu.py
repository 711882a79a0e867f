"""What this machine's CPU can do that decides how an INT8 graph must be run on it."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

# uint8 x int8 dot products that accumulate in 32 bits. Without one of these x86 kernels add two products in
# 16 bits, which saturates: 2 x 255 x 127 is past 32,767.
_DOT_PRODUCTS = {"avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8"}


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
