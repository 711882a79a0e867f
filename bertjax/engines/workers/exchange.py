"""A batch and its logits in memory that two processes share, so that they need not travel through a pipe."""

from __future__ import annotations

import mmap
import os
import tempfile
import weakref

import numpy as np

_TOKEN_BYTES = 3 * 8 + 2 * 4  # three int64 inputs, two float32 logits


class Exchange:
    """Room for one batch at a time, in a file without a name that grows with the largest batch.

    Whoever holds the batch's turn, as the two processes agree elsewhere, reads and writes.
    """

    def __init__(self, descriptor: int | None = None):
        """A new one, or the one of another process whose file is open here under this descriptor."""
        self.descriptor = _open_file() if descriptor is None else descriptor
        self._memory = np.empty(0, np.uint8)
        weakref.finalize(self, os.close, self.descriptor)  # views stay readable

    def views(self, rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs int64 [3, rows, length] and logits float32 [2, rows, length], for a batch of that shape."""
        size = rows * length * _TOKEN_BYTES
        if len(self._memory) < size:
            if os.fstat(self.descriptor).st_size < size:
                os.ftruncate(self.descriptor, size)
            self._memory = np.frombuffer(mmap.mmap(self.descriptor, 0), np.uint8)
        split = rows * length * 3 * 8
        inputs = self._memory[:split].view(np.int64).reshape(3, rows, length)
        logits = self._memory[split:size].view(np.float32).reshape(2, rows, length)
        return inputs, logits


def _open_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("bertjax")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
