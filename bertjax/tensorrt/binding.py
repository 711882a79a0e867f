"""Finding TensorRT: the full `tensorrt` wheel, which needs a GPU, or `tensorrt_rtx`, which builds without one."""

from __future__ import annotations

import ctypes
import importlib
from types import ModuleType

from bertjax.errors import UserError


def has_gpu() -> bool:
    """Whether NVIDIA's driver is here and finds a device."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


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
