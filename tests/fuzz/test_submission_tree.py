"""Submission trees with something wrong in them: never a traceback, and never less strict than MLCommons' checker."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given

from bertjax.errors import UserError
from bertjax.mlperf.submission.check import check_submission
from bertjax.mlperf.submission.rules import Bounds
from tests.fuzz.budget import bounded, draws
from tests.fuzz.mutations import mutate_bytes, mutate_text, mutate_tree

SAMPLE = Path(__file__).resolve().parents[2] / "docs" / "submission-sample"
BOUNDS = Bounds(reference_f1=77.489)
CHECKOUT = os.environ.get("MLCOMMONS_INFERENCE")  # a checkout of mlcommons/inference


def mutate_log(path: Path, draw: random.Random) -> None:
    """Change an entry of a detail log, or put it in once more."""
    lines = path.read_text().split("\n")
    at = draw.randrange(len(lines))
    mark, found, entry = lines[at].partition(":::MLLOG ")
    if found:
        # No surrogate can be written, and NaN stays as Python's json writes it.
        changed = json.dumps(mutate_tree(json.loads(entry), draw))
        lines[at : at + draw.randrange(2)] = [f"{mark}{found}{changed}"]
    else:
        lines[at] = mutate_text(lines[at], draw)
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


def mutate_json(path: Path, draw: random.Random) -> None:
    path.write_text(json.dumps(mutate_tree(json.loads(path.read_text()), draw)))


def mutate_characters(path: Path, draw: random.Random) -> None:
    path.write_bytes(mutate_text(path.read_text(), draw).encode("utf-8", "surrogatepass"))


def mutate_raw(path: Path, draw: random.Random) -> None:
    path.write_bytes(mutate_bytes(path.read_bytes(), draw))


def mutate_place(path: Path, draw: random.Random) -> None:
    """Remove a file, put a folder in its place or beside it, or copy its folder."""
    action = draw.randrange(4)
    if action < 2:
        path.unlink()
    if action == 1:
        path.mkdir()
    if action == 2:
        folder = draw.choice(path.parents[: len(path.parts) - len(Path(path.anchor).parts) - 3])
        (folder / draw.choice((".git", "power", "TEST01", "Offline", "bert-99.9", "results"))).mkdir(exist_ok=True)
    if action == 3:
        with contextlib.suppress(FileExistsError):
            shutil.copytree(
                path.parent, path.parent.with_name(draw.choice(("Server", "bert-99.9", "power", "x", "closed")))
            )


def mutate(root: Path, draw: random.Random) -> None:
    paths = sorted(path for path in root.rglob("*") if path.is_file() and "src" not in path.parts)
    path = draw.choice(paths)
    changes: list[Callable[[Path, random.Random], None]] = [mutate_characters, mutate_raw, mutate_place]
    if path.name == "mlperf_log_detail.txt":
        changes += [mutate_log] * 9
    elif path.suffix == ".json" and "accuracy" not in path.name:
        changes += [mutate_json] * 9
    draw.choice(changes)(path, draw)


def official_refuses(root: Path, csv: Path) -> bool:
    """Whether MLCommons' checker, unmodified, finds a fault or ends in a traceback."""
    from submission_checker import main  # type: ignore[import-not-found]

    arguments, sys.argv = sys.argv, ["main", "--input", str(root), "--version", "v6.1", "--csv", str(csv)]
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return main.main() != 0
    except Exception:
        return True
    finally:
        logging.disable(logging.NOTSET)
        sys.argv = arguments


def test_a_spoilt_tree_is_told_in_lines_and_nothing_passes_that_is_refused_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if CHECKOUT:
        monkeypatch.syspath_prepend(str(Path(CHECKOUT) / "tools" / "submission"))
        assert not official_refuses(SAMPLE, tmp_path / "csv")

    @bounded
    @given(draws)
    def tried(draw: random.Random) -> None:
        root = tmp_path / "tree"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(SAMPLE, root)
        mutate(root, draw)
        try:
            faults = check_submission(root, BOUNDS).faults
        except UserError as error:
            faults = (str(error),)
        assert not any("\n" in fault for fault in faults)
        if CHECKOUT and not faults:
            assert not official_refuses(root, tmp_path / "csv")

    tried()
