"""OpenVINO on the CPU."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import hashlib
import json
import queue
import re
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from bertjax import machine
from bertjax.engines.backend import Backend, Logits, Shape, require
from bertjax.engines.compiled import kept_models
from bertjax.errors import UserError
from bertjax.modeldir.config import INPUTS, OUTPUTS, BertConfig
from bertjax.onnx.dense import with_signed_activations


def takes_signed(config: BertConfig) -> bool:
    """Whether a model's INT8 activations become signed for OpenVINO here, because that is faster.

    Kernels of unsigned ones have to subtract the zero point after every product, and OpenVINO's fused attention does
    not take them at all. Signed ones need one more step before every product on a CPU that has VNNI alone.
    `docs/cpu.md` has the measurements. ONNX Runtime's fast kernels need them unsigned.
    """
    return config.quantization is not None and (config.quantization.attention or machine.multiplies_signed())


def read_served(core: Any, graph: Path, config: BertConfig) -> Any:
    """Read the ONNX file in the form that OpenVINO runs fastest.

    A changed graph is written to a file too: from a graph that comes as bytes OpenVINO drops the inputs that nothing
    reads, as `attention_mask` of a model without attention.
    """
    if not takes_signed(config):
        return core.read_model(str(graph))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / graph.name
        path.write_bytes(with_signed_activations(graph.read_bytes()))
        return core.read_model(str(path))


class _OneShape:
    """A request whose sizes stay, and the arrays that it reads from and writes to.

    Handing arrays over in a dictionary and getting results in another takes Python 50 us more, 1 % of a short window.
    """

    def __init__(self, request: Any):
        self.request = request
        self._inputs = [request.get_tensor(name).data for name in INPUTS]
        self._outputs = [request.get_tensor(name).data for name in OUTPUTS]

    def infer(self, *feed: np.ndarray) -> list[np.ndarray]:
        for mine, given in zip(self._inputs, feed, strict=True):
            mine[:] = given
        self.request.infer(share_outputs=True)
        return self._outputs


class OpenVINOBackend(Backend):
    """One compiled model with an inference request per stream. See `backend.Backend`."""

    name = "openvino"
    batch_tokens = 1024
    shares_cores = True
    compiles_shapes = True
    # "undef" is a kernel not chosen yet, "ref" one that multiplies in plain loops; I8 has unsigned inputs, i8 signed.
    integer_kernels = re.compile(r"(?!undef|ref).*_[Ii]8")
    # The types of steps that dense layers become, the second with signed integers as input.
    dense_steps = ("FullyConnected", "FullyConnectedQuantizedLegacy")

    def __init__(
        self,
        graph: Path,
        config: BertConfig,
        *,
        streams: int,
        threads: int,
        bf16: bool | None = None,
        profile: bool = False,
    ):
        """Compile a graph in bertjax's ONNX form, or load what was compiled before from beside it.

        On a CPU whose INT8 kernels saturate, OpenVINO has no exact INT8 kernel: there its INT8 passes are switched off
        and the same Q/DQ grid is computed in float, exact, at about the speed of FP32.

        Args:
          bf16: whether what the graph leaves in float runs in bfloat16. None: in a quantized model it does where the
            CPU computes that natively, in any other it does not.
          profile: keep the time of every step for `step_seconds`; such a model is compiled anew.

        Raises:
          UserError: OpenVINO is missing or refuses the file.
        """
        # Importing openvino forks a process that reports the import to Intel. A fork beside running threads can hang
        # for ever, and nothing here goes to the network; without this module openvino takes its silent stand-in.
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
        openvino = require("openvino", self.name, "pip install openvino")
        # The first call ever of to_dtype, which every inference makes, fills a table under a lock of C++ and lets go of
        # Python's meanwhile: two threads that make it at once wait for each other for ever. Later ones read the table.
        openvino.Type.i64.to_dtype()
        core = openvino.Core()
        if bf16 is None:
            bf16 = config.quantization is not None and "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        in_float = config.quantization is not None and machine.saturates_int8()
        arithmetic = {"INFERENCE_PRECISION_HINT": "bf16" if bf16 else "f32"}
        if in_float:
            arithmetic["LP_TRANSFORMS_MODE"] = "NO"
        settings = arithmetic | {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": streams * threads}
        if profile:
            settings["PERF_COUNT"] = True
        try:
            key = _cache_key(graph, core, openvino.__version__, arithmetic | {"signed": takes_signed(config)})
            with contextlib.nullcontext() if profile else kept_models(graph, key) as folder:
                if folder is not None:
                    settings["CACHE_DIR"] = str(folder)
                # A file as it is comes from the cache without being read.
                changed = read_served(core, graph, config) if takes_signed(config) else None
                compiled = core.compile_model(str(graph) if changed is None else changed, "CPU", settings)
        except (RuntimeError, DecodeError) as error:
            raise UserError(f"{graph}: OpenVINO refuses it ({_last_line(error)}); export it again") from None
        # A model of one shape is one stream's own: where a model has two streams, each change from one model to another
        # takes longer, a fifth of the rate on two cores. Pinned, the only stream of each would be on the same core. No
        # cache: it would fill the disk.
        one_stream = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
        self._fixed_settings = settings | one_stream | {"CACHE_DIR": "", "ENABLE_CPU_PINNING": False}
        self._core, self._graph, self._compiled, self.streams = core, graph, compiled, streams
        self._requests = [compiled.create_infer_request() for _ in range(streams)]
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()  # streams
        for stream in range(streams):
            self._free.put(stream)
        self._fixed: dict[tuple[int, int, int], _OneShape] = {}  # by (stream, batch, seq)
        self._last: Any = None  # the request that ended last
        self._model: Any = changed  # or as read, once a shape is fixed
        self._reading = threading.Lock()
        numbers = "INT8 grid in FP32" if in_float else "INT8" if config.quantization else "" if bf16 else "FP32"
        numbers = " + ".join(filter(None, (numbers, "BF16" if bf16 else "")))
        version = openvino.__version__.split("-")[0]
        self.description = f"OpenVINO {version}, {numbers}, {graph.name}, streams {streams} x threads {threads}"

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        feed = (input_ids, attention_mask, token_type_ids)
        stream = self._free.get()
        try:
            rows, length = input_ids.shape
            fixed = self._fixed.get((stream, rows, length))
            if fixed is None:
                self._last = request = self._requests[stream]
                results = request.infer(dict(zip(INPUTS, feed, strict=True)), share_inputs=True)
                starts, ends = (results[name] for name in OUTPUTS)
            else:
                self._last = fixed.request
                starts, ends = fixed.infer(*feed)
            return starts.copy(), ends.copy()  # the request owns them and overwrites them in its next call
        finally:
            self._free.put(stream)

    def compile_shapes(self, shapes: Sequence[Shape]) -> None:
        """Compile the model once more for batches of just each of these shapes, on every stream.

        With open sizes OpenVINO plans every step of every batch anew, which takes a tenth or more of a batch of 1,024
        tokens and a third of a single window. Each model costs a core some tenths of a second, and memory of about the
        size of the encoder's weights.
        """
        keys = [(stream, *shape) for shape in shapes for stream in range(self.streams)]
        with concurrent.futures.ThreadPoolExecutor(machine.cores()) as pool:  # compiling a model keeps one core busy
            list(pool.map(self._compile_shape, [key for key in keys if key not in self._fixed]))

    def _compile_shape(self, key: tuple[int, int, int]) -> None:
        stream, *shape = key
        with self._reading:
            if self._model is None:
                self._model = self._core.read_model(str(self._graph))
        model = self._model.clone()  # shares the weights
        model.reshape({name: shape for name in INPUTS})
        compiled = self._core.compile_model(model, "CPU", self._fixed_settings)
        self._fixed[key] = _OneShape(compiled.create_infer_request())

    def step_seconds(self) -> dict[tuple[str, str], float]:
        """Seconds by the clock of the last batch, by the steps' type and kernel; needs `profile`."""
        seconds: collections.Counter[tuple[str, str]] = collections.Counter()
        for step in self._last.profiling_info:
            seconds[step.node_type, step.exec_type] += step.real_time.total_seconds()
        return dict(seconds)

    def node_kernels(self) -> dict[str, str]:
        """The kernel of every matrix product, by each node that it stands for; picked when a shape is first met."""
        kernels = {}
        for step in self._compiled.get_runtime_model().get_ops():
            about = step.get_rt_info()
            if about["layerType"].value in (*self.dense_steps, "MatMul"):
                # A step behind fused attention may list the names of that one, and keep its own only as its name.
                for node in (step.get_friendly_name(), *about["originalLayersNames"].value.split(",")):
                    kernels[node] = about["primitiveType"].value
        return kernels


def _cache_key(graph: Path, core: Any, version: str, arithmetic: dict[str, Any]) -> str:
    """Key of the compile cache: graph, OpenVINO version, arithmetic and CPU.

    OpenVINO's own key knows a file by its path, size and time of change in seconds, and leaves out
    LP_TRANSFORMS_MODE: it would serve old weights, or INT8 kernels where they are switched off.
    """
    with graph.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    machine = [core.get_property("CPU", name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    return hashlib.sha256(json.dumps([content, version, arithmetic, machine]).encode()).hexdigest()[:16]


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
