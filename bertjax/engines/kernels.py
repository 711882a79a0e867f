"""The kernel of every dense layer of the encoder, read from the graph as a CPU engine has optimized it.

Explicit Q/DQ only asks for INT8: an engine that does not recognise the pattern, or lacks the kernel for this CPU,
computes the same numbers in float and says nothing. `bertjax.tensorrt.account` is the same check for TensorRT.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from pathlib import Path
from typing import Protocol

import numpy as np

from bertjax.engines.backend import Backend
from bertjax.engines.choose import open_cpu_engine
from bertjax.modeldir.config import BertConfig
from bertjax.onnx.emit import dense_scopes


class CpuEngine(Backend, Protocol):
    """A backend that tells which kernels it runs: those of `backend.CPU_ENGINES`."""

    integer_kernels: re.Pattern[str]  # the engine's own names of its integer matrix products

    def node_kernels(self) -> dict[str, str]:
        """The kernel of every matrix product by the ONNX nodes that it stands for; after a first batch."""
        ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseKernel:
    """The kernel of one dense layer of the encoder."""

    name: str  # "layer3/ffn/out"
    kernel: str  # the engine's own word: "brgemm_avx512_I8", "MatMulIntegerToFloat"; "not found" where it names none
    integer: bool  # whether it multiplies integers


def check_engine(directory: Path, name: str) -> tuple[tuple[DenseKernel, ...], str]:
    """Kernels of the encoder's dense layers after one batch on an engine, and the engine's description.

    Raises:
      UserError: the directory is no complete model, or the engine cannot run here.
    """
    config = BertConfig.from_json(Path(directory) / "config.json")
    length = min(64, config.max_position_embeddings)
    engine = open_cpu_engine(name, directory, streams=1, threads=1)
    ones = np.ones((2, length), np.int64)
    engine.infer(ones, ones, np.zeros_like(ones))
    return dense_kernels(config, engine), engine.description


def dense_kernels(config: BertConfig, engine: CpuEngine) -> tuple[DenseKernel, ...]:
    """Every dense layer of the encoder on an engine that has run a batch on each of its streams."""
    found = engine.node_kernels()
    kernels = []
    for scope in dense_scopes(config).values():
        # Where an engine merges the product with its bias, it may keep only the name of the sum.
        kernel = found.get(f"{scope}/MatMul") or found.get(f"{scope}/Add", "not found")
        integer = engine.integer_kernels.fullmatch(kernel) is not None
        kernels.append(DenseKernel(name=scope, kernel=kernel, integer=integer))
    return tuple(kernels)


def format_share(kernels: tuple[DenseKernel, ...]) -> str:
    """`36 of 36`."""
    return f"{sum(entry.integer for entry in kernels)} of {len(kernels)}"


def format_kernels(kernels: tuple[DenseKernel, ...]) -> str:
    """The kernels and how many layers run on each: `36 brgemm_avx512_I8`."""
    counts = collections.Counter(entry.kernel for entry in kernels)
    return ", ".join(f"{count} {kernel}" for kernel, count in counts.most_common())
