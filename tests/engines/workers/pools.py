"""For the tests of both kinds of workers: backends for them to open, and a pool that loses a worker in a run."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from bertjax.engines.backend import Backend
from bertjax.mlperf.plans import by_length
from bertjax.mlperf.queues import PlannedQueue
from bertjax.mlperf.sut import SystemUnderTest


class Echo(Backend):
    """Answers each token with its own id, and with minus its type, after a little while."""

    name = description = "echo"
    batch_tokens = 256

    def __init__(self, streams: int):
        self.streams = streams

    def infer(self, input_ids, attention_mask, token_type_ids):
        time.sleep(0.02)
        return input_ids.astype(np.float32), -token_type_ids.astype(np.float32)


class Dying(Echo):
    def infer(self, input_ids, attention_mask, token_type_ids):
        os._exit(7)


class Fickle(Echo):
    """Dies on its second batch."""

    calls = 0

    def infer(self, input_ids, attention_mask, token_type_ids):
        self.calls += 1
        if self.calls == 2:
            os._exit(9)
        return super().infer(input_ids, attention_mask, token_type_ids)


class Picky(Echo):
    """Takes only shapes that were compiled."""

    compiles_shapes = True
    compiled = ()

    def compile_shapes(self, shapes):
        self.compiled = shapes

    def infer(self, input_ids, attention_mask, token_type_ids):
        if input_ids.shape not in self.compiled:
            raise MemoryError("out of memory")
        return np.ones(input_ids.shape, np.float32), np.ones(input_ids.shape, np.float32)


def open_picky(*, streams, threads):
    return Picky(streams)


def open_fickle(*, streams, threads):
    return Fickle(streams)


def open_echo(*args, streams, threads, **rest):
    return Echo(streams)


def open_dying(*, streams, threads):
    return Dying(streams)


def open_wrong(*, streams, threads):
    from bertjax.errors import UserError

    raise UserError("/nowhere/config.json: no such file")


def answers_while(pool, library, lose):
    """Every window's answers through a pool that loses workers in mid-run: how often, and which."""
    found: dict[int, list[np.ndarray]] = {}

    def complete(ids, logits, lengths):
        for sample, row, length in zip(ids, logits, lengths, strict=True):
            found.setdefault(sample, []).append(row[:length])

    system = SystemUnderTest(pool, library, complete, PlannedQueue(by_length(library.lengths, tokens=256)), multiple=8)
    count = len(library.lengths)
    system.issue(range(count), range(count))
    while len(found) < 5 and system.failure is None:
        time.sleep(0.005)
    assert system.failure is None
    assert len(found) < count - 5, "the run was over before a worker was lost"
    lose()
    system.close()
    assert system.failure is None
    assert sorted(found) == list(range(count)) and {len(answers) for answers in found.values()} == {1}
    return {sample: answers[0] for sample, answers in found.items()}


def lose_one_and_get_it_back(pool, library, windows) -> tuple[int, list[int]]:
    """Kill a worker of three in mid-run, and see that no answer is lost and that a new one takes its place.

    Returns the process that was killed and those of the workers afterwards.
    """
    before = pids(pool)
    answers = answers_while(pool, library, lambda: os.kill(before[1], signal.SIGKILL))
    for index, window in enumerate(windows):
        np.testing.assert_array_equal(answers[index][:, 0], window.input_ids)
    end = time.monotonic() + 30
    while len(pids(pool)) < 3 and time.monotonic() < end:
        time.sleep(0.02)
    after = pids(pool)
    assert len(after) == 3 and len(set(after) & set(before)) == 2
    return before[1], after


def pids(pool) -> list[int]:
    return [worker.pid for worker in pool.workers.values()]


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process ends within some time; a zombie of someone else's has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with open(f"/proc/{pid}/stat") as file:
                if file.read().rsplit(")", 1)[1].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.02)
    return False
