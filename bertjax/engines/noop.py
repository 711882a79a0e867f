"""A backend that computes nothing: what a session then takes is LoadGen's, the queues' and the threads' own."""

from __future__ import annotations

import numpy as np

from bertjax.engines.backend import Backend, Logits


class NoopBackend(Backend):
    """Answers at once with zeros. See `backend.Backend`."""

    name = "noop"
    batch_tokens = 32768  # as a large GPU takes them

    def __init__(self, *, streams: int):
        self.streams = streams
        self.description = f"no model, zeros at once, streams {streams}"

    def infer(self, input_ids: np.ndarray, attention_mask: np.ndarray, token_type_ids: np.ndarray) -> Logits:
        return np.zeros(input_ids.shape, np.float32), np.zeros(input_ids.shape, np.float32)
