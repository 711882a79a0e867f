"""The system under test: takes samples from LoadGen, runs them on a backend, hands the logits back.

Of a sample LoadGen is given float32 [tokens, 2], start logits and end logits side by side without padding: the
layout that the MLPerf reference's accuracy script reads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from bertjax.data.batching import padded_length
from bertjax.engines.backend import Backend
from bertjax.engines.samples import SampleLibrary
from bertjax.mlperf.plans import SampleBatch
from bertjax.mlperf.queues import BatchQueue

# complete(ids, logits, lengths): answer samples, one a row; logits float32 [rows, length, 2].
Complete = Callable[[Sequence[int], np.ndarray, Sequence[int]], None]


class SystemUnderTest:
    """Runs samples in the issuing thread, or through a queue in one worker thread per stream of the backend.

    After a failure nothing is answered any more, so LoadGen would wait for ever: its caller watches `failure`.
    """

    def __init__(
        self,
        backend: Backend,
        library: SampleLibrary,
        complete: Complete,
        queue: BatchQueue | None,
        *,
        multiple: int,
        ahead: bool = False,
    ):
        """`queue` None means that samples run one by one in the thread that issues them (SingleStream).

        Args:
          multiple: lengths of such samples are padded to multiples of it; a queue pads by itself.
          ahead: take batches ahead of the streams, where the backend's `calls` have room for some: best without a bound
            for latencies.
        """
        self._backend, self._library, self._complete, self._queue = backend, library, complete, queue
        self._multiple = multiple
        self.failure: Exception | None = None
        self.non_finite = 0  # samples whose logits, padding apart, held NaN or infinity
        self._counting = threading.Lock()
        self.completed = 0  # samples answered, for a progress bar; rough while several workers count
        threads = backend.calls if ahead else backend.streams
        self._workers = [
            threading.Thread(target=self._work, args=(queue,), name=f"serve-{number}", daemon=True)
            for number in range(threads if queue is not None else 0)
        ]
        for worker in self._workers:
            worker.start()

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """Take samples; called by LoadGen. Nothing is raised here: an exception would end the process in C++."""
        try:
            if self._queue is not None:
                self._queue.put(ids, indices)
                return
            for sample, row in zip(ids, indices, strict=True):
                length = padded_length(self._library.sizes[row], self._multiple, self._library.longest)
                self._run(SampleBatch(ids=[sample], indices=[row], length=length))
        except Exception as error:
            self.failure = error

    def close(self) -> None:
        """End the workers once everything issued has run."""
        if self._queue is not None:
            self._queue.close()
        for worker in self._workers:
            worker.join()

    def _work(self, queue: BatchQueue) -> None:
        try:
            while (batch := queue.take()) is not None:
                self._run(batch)
        except Exception as error:
            self.failure = error

    def _run(self, batch: SampleBatch) -> None:
        starts, ends = self._backend.infer(*self._library.gather(batch.indices, batch.length))
        logits = np.empty((*starts.shape, 2), np.float32)
        logits[..., 0], logits[..., 1] = starts, ends
        sizes = [self._library.sizes[index] for index in batch.indices]
        if not np.isfinite(logits).all():
            with self._counting:
                self.non_finite += sum(
                    not np.isfinite(row[:size]).all() for row, size in zip(logits, sizes, strict=True)
                )
        self._complete(batch.ids, logits, sizes)
        self.completed += len(batch.ids)
