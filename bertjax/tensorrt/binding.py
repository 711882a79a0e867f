"""Finding TensorRT: the full `tensorrt` wheel, which needs a GPU, or `tensorrt_rtx`, which builds without one."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib
from types import ModuleType

from bertjax.errors import UserError

_COMPUTE_CAPABILITY = (75, 76)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h


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


def load_tensorrt() -> ModuleType:
    """Import TensorRT: `tensorrt` before `tensorrt_rtx`, the other way round on a machine without a GPU.

    Raises:
      UserError: neither is installed.
    """
    names = ("tensorrt", "tensorrt_rtx") if has_gpu() else ("tensorrt_rtx", "tensorrt")
    for name in names:
        try:
            return importlib.import_module(name)
        except (ImportError, OSError):  # OSError: the wheel is there, its libraries are not
            continue
    raise UserError(
        "TensorRT is not installed; run pip install tensorrt-rtx-cu13 (builds without a GPU), "
        "or pip install tensorrt on a machine with an NVIDIA GPU"
    )


def has_timing_cache(trt: ModuleType) -> bool:
    """Whether this TensorRT times kernels while it builds, and can keep the times.

    TensorRT for RTX compiles its kernels when the engine first runs; its timing cache is there in name only
    ("Timing cache operations are no-ops in TensorRT-RTX"), and a runtime cache takes its place.
    """
    return not hasattr(trt, "IRuntimeCache")
