"""Identities tell things apart that differ, and only those."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from bertjax import identity


def test_a_file_is_its_bytes(tmp_path: Path):
    content = bytes(range(256)) * 5000
    (tmp_path / "f").write_bytes(content)
    assert identity.digest_file(tmp_path / "f") == hashlib.sha256(content).hexdigest()


def test_a_folder_is_its_files_with_their_names(tmp_path: Path):
    def written(files: dict[str, str], *patterns: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content)
        return identity.digest_folder(folder, *patterns)

    files = {"a": "1", "b/c": "2", "vocab.txt": "3"}
    same = written(files)
    assert same == written(dict(reversed(files.items())))
    others = [{**files, "a": "2"}, {**files, "d": ""}, {"a": "1", "vocab.txt": "3"}, {"A": "1", "b/c": "2"}]
    assert len({same, *map(written, others)}) == 5
    assert written(files, "vocab*") == written({"vocab.txt": "3", "x": "y"}, "vocab.txt", "none") != same


def test_arrays_are_names_dtypes_shapes_and_bytes():
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.float32)}
    same = identity.digest_arrays(arrays)
    assert same == identity.digest_arrays(dict(reversed(arrays.items())))
    assert same == identity.digest_arrays(arrays | {"w": np.asfortranarray(arrays["w"])})
    others = [
        arrays | {"w": arrays["w"].T},
        arrays | {"w": arrays["w"].reshape(3, 2)},
        arrays | {"w": arrays["w"].view(np.int32)},
        arrays | {"b": np.float32(-0.0)},
        {"w": arrays["w"], "c": arrays["b"]},
        {"w": arrays["w"]},
    ]
    half = [{"w": arrays["w"].astype(dtype)} for dtype in (np.float16, ml_dtypes.bfloat16)]
    assert len({same, *map(identity.digest_arrays, others + half)}) == 9
    assert identity.digest_arrays({"w": np.zeros((0, 3))})


def test_settings_are_what_json_says_of_them():
    @dataclasses.dataclass
    class Settings:
        epochs: float
        layers: tuple[int, ...]

    digest = identity.digest_settings(Settings(3.0, (1, 2)))
    assert digest == identity.digest_settings({"layers": [1, 2], "epochs": 3.0})
    assert digest != identity.digest_settings(Settings(3.0, (2, 1)))
    with pytest.raises(TypeError, match="PosixPath has no digest"):
        identity.digest_settings({"output": Path("runs")})


def test_an_identity_names_the_parts_that_differ():
    data, start = identity.digest_settings("data"), identity.digest_settings("start")
    found = identity.make_identity(start=start, data=data, method=1)
    assert found == f"data={data[:16]} method=1 start={start[:16]}"
    assert identity.differing_parts(found, found) == []
    assert identity.differing_parts(found, identity.make_identity(data=start, method=1, start=start)) == ["data"]
    assert identity.differing_parts(found, identity.make_identity(data=data, more=2)) == ["method", "more", "start"]
    assert identity.differing_parts("", found) == ["data", "method", "start"]
