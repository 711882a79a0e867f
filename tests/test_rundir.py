import multiprocessing

import pytest

from bertjax.errors import UserError, WorkFailed
from bertjax.rundir import read_metrics, read_settings, update_metrics


@pytest.mark.parametrize("name, read", [("metrics.json", read_metrics), ("settings.json", read_settings)])
@pytest.mark.parametrize("content", [b'{"teacher": ', b"\xff\xfe"])
def test_a_broken_record_is_told_with_its_file_and_an_absent_one_is_empty(tmp_path, name, read, content):
    assert read(tmp_path) == {}
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}: not valid JSON .*; .+"):
        read(tmp_path)


def _write_many(folder, name):
    for number in range(40):
        update_metrics(folder, {"stages": {f"{name}-{number}": number}})


def test_updates_of_several_processes_at_once_are_all_kept(tmp_path):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_write_many, args=(tmp_path, name)) for name in "abcde"]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert read_metrics(tmp_path)["stages"] == {f"{name}-{number}": number for name in "abcde" for number in range(40)}


def test_below_its_depth_a_record_replaces_its_predecessor_whole(tmp_path):
    old = {"Offline": {"peak": {"rate": 1}, "performance": {"valid": True, "reasons": ["old"]}}}
    update_metrics(tmp_path, {"seed": 7, "loadgen": {"student": old}})
    update_metrics(tmp_path, {"loadgen": {"student": {"Offline": {"performance": {"valid": False}}}}}, depth=4)
    kept = {"peak": {"rate": 1}, "performance": {"valid": False}}
    assert read_metrics(tmp_path) == {"seed": 7, "loadgen": {"student": {"Offline": kept}}}


def test_a_run_that_cannot_be_locked_is_told_and_left_as_it_was(tmp_path):
    update_metrics(tmp_path, {"seed": 7})
    (tmp_path / ".metrics.json.lock").unlink()
    (tmp_path / ".metrics.json.lock").mkdir()  # for root too, whom no permission stops
    with pytest.raises((UserError, WorkFailed), match=r"\.metrics\.json\.lock: cannot be written"):
        update_metrics(tmp_path, {"seed": 8})
    assert read_metrics(tmp_path) == {"seed": 7}
