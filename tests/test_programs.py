"""Exit codes and interrupts, which every program shares."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _run(body: str, **environment: str) -> subprocess.CompletedProcess:
    """A program whose `main` is `body`."""
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    imports = "import os, signal, time\nfrom bertjax import programs\nfrom bertjax.errors import UserError, WorkFailed"
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment = inherited | environment | {"PYTHONPATH": str(ROOT)}
    script = f"{imports}\ndef main():\n{lines}\nprograms.run(main)"
    return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("body", "code", "told"),
    [
        ("print('done')", 0, ""),
        ("raise UserError('x.json: cut short')", 2, "error: x.json: cut short\n"),
        ("raise WorkFailed('the disk is full')", 1, "error: the disk is full\n"),
        ("raise KeyboardInterrupt", 130, "\ninterrupted; the same command continues where it stopped\n"),
    ],
)
def test_a_program_ends_with_its_exit_code_and_one_line(body: str, code: int, told: str):
    done = _run(body)
    assert (done.returncode, done.stderr) == (code, told)


def test_an_interrupt_that_falls_into_a_destructor_is_not_lost():
    done = _run(
        "class Dying:\n"
        "    def __del__(self):\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(0.01)\n"
        "dying = Dying()\n"
        "del dying\n"
        "time.sleep(20)\n"
        "print('went on')"
    )
    assert done.returncode == 130 and "went on" not in done.stdout


def test_an_interrupt_of_the_imports_before_main_is_not_lost():
    """The signal comes when the program has started itself again, before it calls `programs.run`."""
    script = (
        "import os, signal\n"
        "if 'GLIBC_TUNABLES' in os.environ: os.kill(os.getpid(), signal.SIGINT)\n"
        "from bertjax import programs\n"
        "programs.run(lambda: print('went on'))"
    )
    inherited = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    command, environment = [sys.executable, "-c", script], inherited | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (130, "") and "Traceback" not in done.stderr


def test_the_allocator_is_set_once_and_a_given_setting_stays():
    assert "mmap_threshold" in _run("print(os.environ['GLIBC_TUNABLES'])").stdout
    given = "glibc.malloc.hugetlb=0"
    assert _run("print(os.environ['GLIBC_TUNABLES'])", GLIBC_TUNABLES=given).stdout == f"{given}\n"
