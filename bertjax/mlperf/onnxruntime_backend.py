"""ONNX Runtime on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertjax.config import BertConfig
from bertjax.errors import UserError
from bertjax.mlperf import cpu
from bertjax.mlperf.backend import Logits, require


class OnnxRuntimeBackend:
    """One session; concurrent calls share it. See `backend.Backend`."""

    name = "onnxruntime"
    batch_tokens = 1024

    def __init__(self, graph: Path, config: BertConfig, *, streams: int, threads: int):
        """Open a graph in bertjax's ONNX form.

        Raises:
          UserError: ONNX Runtime is missing or refuses the file.
        """
        onnxruntime = require("onnxruntime", self.name, "pip install onnxruntime")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if config.quantization and cpu.saturates_int8():
            # Makes int8 x int8 of uint8 x int8, whose slower kernels do not saturate.
            options.add_session_config_entry("session.x64quantprecision", "1")
        try:
            self._session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's own exceptions share no base class
            raise UserError(f"{graph}: ONNX Runtime refuses it ({_first_line(error)}); export it again") from None
        self.streams = streams
        arithmetic = "INT8" if config.quantization else "FP32"
        self.description = (
            f"ONNX Runtime {onnxruntime.__version__}, {arithmetic}, {graph.name}, streams {streams} x threads {threads}"
        )

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        feed = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
        start_logits, end_logits = self._session.run(["start_logits", "end_logits"], feed)
        return start_logits, end_logits


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
