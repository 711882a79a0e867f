"""OpenVINO on the CPU."""

from __future__ import annotations

import queue
import sys
from pathlib import Path

import numpy as np

from bertjax.config import BertConfig
from bertjax.errors import UserError
from bertjax.mlperf import cpu
from bertjax.mlperf.backend import Logits, require


class OpenVINOBackend:
    """One compiled model with an inference request per stream. See `backend.Backend`."""

    name = "openvino"
    batch_tokens = 1024

    def __init__(self, graph: Path, config: BertConfig, *, streams: int, threads: int):
        """Compile a graph in bertjax's ONNX form.

        What the graph leaves in float runs in bfloat16 where the CPU computes that natively. On a CPU whose INT8
        kernels saturate, OpenVINO has no exact INT8 kernel: there its INT8 passes are switched off and the same
        Q/DQ grid is computed in float, exact, at about the speed of FP32.

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
        native_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        in_float = config.quantization is not None and cpu.saturates_int8()
        settings = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            "INFERENCE_PRECISION_HINT": "bf16" if native_bf16 and config.quantization else "f32",
        }
        if in_float:
            settings["LP_TRANSFORMS_MODE"] = "NO"
        try:
            compiled = core.compile_model(str(graph), "CPU", settings)
        except RuntimeError as error:
            raise UserError(f"{graph}: OpenVINO refuses it ({_last_line(error)}); export it again") from None
        self._outputs = compiled.output("start_logits"), compiled.output("end_logits")
        self._requests: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())
        self.streams = streams
        arithmetic = "INT8 grid in FP32" if in_float else "INT8" if config.quantization else "FP32"
        arithmetic += " + BF16" if settings["INFERENCE_PRECISION_HINT"] == "bf16" else ""
        version = openvino.__version__.split("-")[0]
        self.description = f"OpenVINO {version}, {arithmetic}, {graph.name}, streams {streams} x threads {threads}"

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        request = self._requests.get()
        try:
            results = request.infer(feed, share_inputs=True)
            # The request owns its outputs and overwrites them in its next call.
            return results[self._outputs[0]].copy(), results[self._outputs[1]].copy()
        finally:
            self._requests.put(request)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1]
