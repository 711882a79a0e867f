"""A run directory belongs to its settings and to what its inputs hold, wherever they and it lie."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pytest

from bertjax import rundir
from bertjax.data.corpus import write_corpus
from bertjax.errors import UserError
from bertjax.pipeline import stages
from bertjax.pipeline.settings import RunSettings
from tests.models import tiny_config, write_random_model


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a teacher, and a run that has taken it over."""
    folder = tmp_path_factory.mktemp("claim")
    write_corpus(folder / "data", seed=0, train=6, val=2, evaluation=2)
    write_random_model(folder / "teacher", tiny_config(quantized=False), seed=1)
    stages.prepare_teacher(settings(folder), "command")
    return folder


def settings(folder: Path, **change: object) -> RunSettings:
    given = RunSettings(
        output=str(folder / "run"),
        teacher=str(folder / "teacher"),
        train_file=str(folder / "data" / "train.json"),
        val_file=str(folder / "data" / "val.json"),
        eval_file=str(folder / "data" / "eval.json"),
        max_seq=64,
        max_query=24,
        skip=("evaluate",),
    )
    return dataclasses.replace(given, **change)


@pytest.fixture
def folder(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "copy"))


def test_a_run_is_continued_under_another_name_with_moved_files_and_from_another_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    (folder / "run").rename(folder / "renamed")
    (folder / "data").rename(folder / "files")
    shutil.rmtree(folder / "teacher")  # which the run has a copy of
    files = {f"{name}_file": f"files/{name}.json" for name in ("train", "val", "eval")}
    monkeypatch.chdir(folder)
    stages.prepare_teacher(settings(folder, output="renamed", **files), "command")
    assert rundir.read_settings(folder / "renamed")["output"] == "renamed"


@pytest.mark.parametrize("name", ["train", "val", "eval"])
def test_another_file_under_the_same_name_is_refused(folder: Path, name: str):
    path = folder / "data" / f"{name}.json"
    path.write_text(path.read_text().replace("?", " ?"))
    before = {path: path.read_bytes() for path in (folder / "run").rglob("*.json")}
    with pytest.raises(UserError, match=f"{name}_file .* is not what the run was begun with"):
        stages.prepare_teacher(settings(folder), "command")
    assert before == {path: path.read_bytes() for path in (folder / "run").rglob("*.json")}


def test_other_settings_are_refused_but_for_those_that_make_no_model(folder: Path):
    stages.prepare_teacher(settings(folder, cache_gib=1.0, cache=str(folder / "cache")), "command")
    with pytest.raises(UserError, match="seed was 0 and is now 1"):
        stages.prepare_teacher(settings(folder, seed=1), "command")


def test_wrong_input_claims_nothing(begun: Path, tmp_path: Path):
    (tmp_path / "train.json").write_text('{"data": 3}')
    wrong = settings(begun, output=str(tmp_path / "run"), train_file=str(tmp_path / "train.json"))
    with pytest.raises(UserError, match=r"train\.json"):
        stages.prepare_teacher(wrong, "command")
    with pytest.raises(UserError, match="max_position_embeddings 512; choose at most that"):
        stages.prepare_teacher(dataclasses.replace(settings(begun, output=wrong.output), max_seq=600), "command")
    assert not (tmp_path / "run").exists()


def test_a_run_of_0_1_knows_its_files_by_name(folder: Path):
    path = folder / "run" / "metrics.json"
    record = json.loads(path.read_text())
    del record["data"]["digests"]
    path.write_text(json.dumps(record))
    shutil.copyfile(folder / "data" / "train.json", folder / "other.json")
    with pytest.raises(UserError, match=r"train_file .*other\.json is not what the run was begun with, .*train\.json"):
        stages.prepare_teacher(settings(folder, train_file=str(folder / "other.json")), "command")


def test_the_evaluation_file_of_a_run_is_found_wherever_the_run_lies(folder: Path):
    run, model = folder / "run", folder / "run" / "student-int8"
    shutil.copytree(folder / "data", run / "corpus")
    for recorded in ("corpus/eval.json", "runs/demo/corpus/eval.json", "/gone/runs/demo/corpus/eval.json"):
        record = json.loads((run / "metrics.json").read_text())
        record["data"]["eval_file"] = recorded
        (run / "metrics.json").write_text(json.dumps(record))
        assert rundir.default_data(model) == run / "corpus" / "eval.json"
    shutil.rmtree(run / "corpus")
    with pytest.raises(UserError, match="no such file; give --data FILE"):
        rundir.default_data(model)


def test_own_files_are_recorded_relative_to_the_run_and_others_absolute(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert rundir.recorded_path(Path("run"), Path("run/corpus/eval.json")) == "corpus/eval.json"
    assert rundir.recorded_path(Path("run"), Path("eval.json")) == str(tmp_path / "eval.json")
