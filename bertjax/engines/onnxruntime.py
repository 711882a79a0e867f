"""ONNX Runtime on the CPU."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from bertjax import machine
from bertjax.engines.backend import Backend, Logits, require
from bertjax.errors import UserError
from bertjax.modeldir.config import INPUTS, OUTPUTS, BertConfig


class OnnxRuntimeBackend(Backend):
    """One session; concurrent calls share it. See `backend.Backend`."""

    name = "onnxruntime"
    batch_tokens = 1024
    shares_cores = True
    integer_kernels = re.compile(r"MatMulInteger(ToFloat)?|QLinearMatMul|QGemm")

    def __init__(self, graph: Path, config: BertConfig, *, streams: int, threads: int):
        """Open a graph in bertjax's ONNX form.

        Raises:
          UserError: ONNX Runtime is missing or refuses the file.
        """
        self._onnxruntime = onnxruntime = require("onnxruntime", self.name, "pip install onnxruntime")
        self._graph, self._threads = graph, threads
        self._avoid_saturation = config.quantization is not None and machine.saturates_int8()
        try:
            self._session = self._open(self._options())
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise UserError(f"{graph}: ONNX Runtime refuses it ({_first_line(error)}); export it again") from None
        self.streams = streams
        arithmetic = "INT8" if config.quantization else "FP32"
        self.description = (
            f"ONNX Runtime {onnxruntime.__version__}, {arithmetic}, {graph.name}, streams {streams} x threads {threads}"
        )

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        feed = dict(zip(INPUTS, (input_ids, attention_mask, token_type_ids), strict=True))
        start_logits, end_logits = self._session.run(OUTPUTS, feed)
        return start_logits, end_logits

    def node_kernels(self) -> dict[str, str]:
        """The operator that stands for each MatMul node in the graph as this session's options optimize it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = self._options()
            options.optimized_model_filepath = str(path)
            # Weights apart, or a large graph is past what one file may hold.
            options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights")
            self._open(options)
            nodes = onnx.load(str(path), load_external_data=False).graph.node
        # A fused node keeps the first one's name, or a name that begins with it.
        products = (node for node in nodes if "MatMul" in node.op_type or "Gemm" in node.op_type)
        return {re.sub(r"/MatMul/.*", "/MatMul", node.name): node.op_type for node in products}

    def _open(self, options: Any) -> Any:
        return self._onnxruntime.InferenceSession(str(self._graph), options, providers=["CPUExecutionProvider"])

    def _options(self) -> Any:
        options = self._onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if self._avoid_saturation:
            # Makes weights uint8, too, around 128: the kernels for that are slower and do not saturate.
            options.add_session_config_entry("session.x64quantprecision", "1")
        return options


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
