"""The Makefile: its list of targets, and what `make clean` removes."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

MAKEFILE = Path(__file__).resolve().parents[1] / "Makefile"


def make(folder: Path, target: str) -> str:
    shutil.copyfile(MAKEFILE, folder / "Makefile")
    done = subprocess.run(["make", "--no-print-directory", target], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_help_describes_every_target(tmp_path: Path) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE.read_text(), re.MULTILINE)
    assert phony is not None
    described = [line.split(maxsplit=1) for line in make(tmp_path, "help").splitlines()]
    assert {name for name, text in described if text} == set(phony[1].split())


def test_make_clean_leaves_logs_and_figures(tmp_path: Path) -> None:
    kept = ["build/logs/run/mlperf_log_detail.txt", "build/benchmarks/serving.json", "runs/demo/metrics.json"]
    gone = [".venv/bin/python", "build/lib/bertjax/errors.py", "build/bdist.linux-x86_64/x"]
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    make(tmp_path, "clean")
    assert [name for name in (*kept, *gone) if (tmp_path / name).exists()] == kept
