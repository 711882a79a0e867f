"""TensorRT 10, 11 and RTX differ; `bindings.json` says in which published bindings each name is missing."""

from __future__ import annotations

import json

import pytest

from tests.tensorrt.names import TABLE, used_names

VERSIONS, MISSING_IN = json.loads(TABLE.read_text()).values()


def test_the_table_has_just_the_names_that_are_used() -> None:
    assert sorted(used_names()) == sorted(MISSING_IN), "run tests/tensorrt/read_bindings.py again"
    assert {version.split(".")[0] for version in VERSIONS} == {"tensorrt 10", "tensorrt 11", "tensorrt_rtx 1"}


def test_names_that_a_version_lacks_are_guarded() -> None:
    for name, uses in used_names().items():
        for where, guards in uses:
            covered = set().union(*(MISSING_IN[guard] for guard in guards))
            assert set(MISSING_IN[name]) <= covered, f"{where}: {name} needs a hasattr for {MISSING_IN[name]}"


@pytest.mark.parametrize("library", ["tensorrt", "tensorrt_rtx"])
def test_the_installed_version_has_what_the_table_says(library: str) -> None:
    trt = pytest.importorskip(library)
    if not hasattr(trt, "__version__"):
        pytest.skip(f"{library} is not installed")  # and pytest's path makes the folder tests/tensorrt pass for it
    version = f"{library} {trt.__version__}"
    for name, missing in MISSING_IN.items():
        first, *rest = name.split(".")
        there = hasattr(trt, first) and (not rest or hasattr(getattr(trt, first), rest[0]))
        if version in VERSIONS or not missing:
            assert there == (version not in missing), f"{name} in {version}"
