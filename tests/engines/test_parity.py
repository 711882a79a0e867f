"""One model on every engine: what is compared, and what counts as a fault."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bertjax.data.metrics import Score
from bertjax.data.windows import WindowSettings
from bertjax.engines import parity
from bertjax.engines.noop import NoopBackend
from bertjax.engines.samples import read_dataset

SCORE = Score(exact_match=50.0, f1=60.0)


def engine(**bounds: float) -> parity.Engine:
    return parity.Engine(name="one", backend=NoopBackend(streams=1), **bounds)


def test_engines_agree_on_a_tiny_int8_model_and_jax_comes_first(run_dir: Path) -> None:
    data = read_dataset(run_dir / "eval.json", run_dir / "student-int8", WindowSettings(max_seq=128))
    found = list(parity.check_parity(run_dir / "student-int8", data, 128))
    assert [one.engine.split()[0] for one in found] == ["JAX", "ONNX", "OpenVINO", "ONNX"]
    assert (found[0].distance, found[0].largest, found[0].argmax) == (0.0, 0.0, 1.0)
    assert not any(one.faults for one in found) and all(0 < one.distance < 0.1 for one in found[1:])


def test_distance_and_argmax_are_over_all_windows_and_both_ends() -> None:
    exact = ([np.array([1.0, 0.0]), np.array([0.0, 2.0, 0.0])], [np.array([0.0, 2.0]), np.array([4.0, 0.0, 0.0])])
    other = ([np.array([1.0, 0.0]), np.array([0.0, 2.0, 0.0])], [np.array([0.0, 2.0]), np.array([4.0, 0.0, 5.0])])
    found = parity.compare(engine(distance=0.9), other, exact, SCORE)
    assert found.distance == pytest.approx(5 / 5) and found.largest == 5.0 and found.argmax == 3 / 4
    assert found.faults == ("relative L2 1.0e+00, at most 9e-01 expected",)
    found = parity.compare(engine(distance=1.1, argmax=0.8), other, exact, SCORE)
    assert found.faults == ("argmax 75.0%, at least 80% expected",)


def test_a_logit_that_is_not_a_number_is_a_fault() -> None:
    exact = ([np.array([1.0, 0.0])], [np.array([0.0, 1.0])])
    found = parity.compare(engine(distance=1.0), ([np.array([1.0, np.nan])], exact[1]), exact, SCORE)
    assert found.faults
