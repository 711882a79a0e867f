"""Files and folders are complete or absent: after an exception, after a kill at any step, on a full disk."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bertjax import files
from bertjax.errors import UserError, WorkFailed


def test_a_folder_and_a_file_take_the_place_of_old_ones(tmp_path: Path):
    for round in ("first", "second"):
        with files.write_aside(tmp_path / "deep" / "m") as aside:
            (aside / "inner").mkdir()
            (aside / "inner" / round).write_text(round)
        files.write_file_aside(tmp_path / "deep" / "f", f"{round} é")
    assert [path.name for path in (tmp_path / "deep" / "m" / "inner").iterdir()] == ["second"]
    assert (tmp_path / "deep" / "f").read_bytes() == "second é".encode()
    assert sorted(os.listdir(tmp_path / "deep")) == ["f", "m"]


def test_nothing_is_left_of_a_block_that_fails(tmp_path: Path):
    with pytest.raises(RuntimeError), files.write_aside(tmp_path / "m") as aside:
        (aside / "config.json").write_text("{}")
        raise RuntimeError
    with pytest.raises(RuntimeError), files.write_files_aside(tmp_path / "f") as aside:
        (aside / "f").write_text("half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_of_several_files_the_named_one_comes_last_and_is_never_there_with_the_others_half_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for name in ("f", "f.data", "f.more"):
        (tmp_path / name).write_text("old")
    seen, replace = [], os.replace

    def watch(source: Path, target: Path) -> None:
        seen.append((target.name, (tmp_path / "f").exists()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    with files.write_files_aside(tmp_path / "f") as aside:
        for name in ("f", "f.data"):
            (aside / name).write_text("new")
    assert seen == [("f.data", False), ("f", False)]
    assert [(tmp_path / name).read_text() for name in ("f", "f.data", "f.more")] == ["new", "new", "old"]


_REPLACE = """
import os, pathlib, signal, sys
from bertjax import files

steps = int(sys.argv[2])

def counted(call):
    def step(*arguments, **others):
        global steps
        steps -= 1
        if steps < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments, **others)
    return step

for name in ("mkdir", "rename", "replace", "fsync", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
with files.write_aside(pathlib.Path(sys.argv[1]) / "m") as aside:
    (aside / "a").write_text("new")
    (aside / "b").write_text("new")
"""


def test_a_writer_killed_at_any_step_leaves_the_old_or_the_new_folder_and_the_next_one_clears_up(tmp_path: Path):
    found = []
    for steps in range(100):
        with files.write_aside(tmp_path / "m") as aside:
            for name in ("a", "b"):
                (aside / name).write_text("old")
        ended = subprocess.run([sys.executable, "-c", _REPLACE, tmp_path, str(steps)], cwd=Path(__file__).parents[1])
        files.repair(tmp_path / "m")
        contents = {(tmp_path / "m" / name).read_text() for name in ("a", "b")}
        assert len(contents) == 1 and os.listdir(tmp_path) == ["m"]
        found += contents
        if ended.returncode == 0:
            break
        assert ended.returncode == -signal.SIGKILL
    assert steps > 8 and found == sorted(found, reverse=True) and set(found) == {"old", "new"}


def test_leavings_of_a_gone_process_are_cleared_and_those_of_a_running_one_are_let_be(tmp_path: Path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for process in (ended.pid, os.getppid()):
        (tmp_path / f".f.writing-{process}").mkdir()
        (tmp_path / f".f.writing-{process}" / "f").write_text("half")
    (tmp_path / f".other.writing-{ended.pid}").write_text("of another file")
    (tmp_path / ".f.writing-copy").write_text("of another tool")
    files.write_file_aside(tmp_path / "f", "whole")
    kept = {"f", f".f.writing-{os.getppid()}", f".other.writing-{ended.pid}", ".f.writing-copy"}
    assert set(os.listdir(tmp_path)) == kept


def test_content_is_on_the_disk_before_it_gets_its_name_and_the_name_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    events, fsync, rename = [], os.fsync, os.rename

    def watch_fsync(descriptor: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    def watch_rename(source: Path, target: Path) -> None:
        events.append(f"rename to {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watch_fsync)
    monkeypatch.setattr(os, "rename", watch_rename)
    with files.write_aside(tmp_path / "m") as aside:
        (aside / "a").write_text("1")
    assert events == ["a", aside.name, tmp_path.name, "rename to m", tmp_path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_told(tmp_path: Path):
    with pytest.raises(WorkFailed, match="disk is full"), files.write_aside(tmp_path / "m"):
        Path("/dev/full").write_bytes(b"0" * 100_000)
    assert not (tmp_path / "m").exists()


def test_a_place_that_refuses_is_told(tmp_path: Path):
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match="f/m: cannot be written"):
        files.write_file_aside(tmp_path / "f" / "m", "")


def test_a_file_with_holes_gets_its_place_on_the_disk_or_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "cache"
    with path.open("wb") as file:
        file.truncate(1 << 20)
    assert path.stat().st_blocks * 512 < 1 << 20
    files.claim_disk(path)
    assert path.stat().st_blocks * 512 >= path.stat().st_size == 1 << 20

    def refuse(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(WorkFailed, match=r"cache: the disk is full"):
        files.claim_disk(path)
    assert not path.exists()
