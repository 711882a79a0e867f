"""Finding TensorRT: the full `tensorrt` wheel, which needs a GPU, or `tensorrt_rtx`, which builds without one."""

from __future__ import annotations

import importlib
from types import ModuleType

from bertjax.errors import UserError
from bertjax.machine import has_gpu


def load_tensorrt() -> ModuleType:
    """Import `tensorrt`, or else `tensorrt_rtx`; in the other order on a machine without a GPU.

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
