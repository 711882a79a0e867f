"""serve/ask.py, as a person calls it."""

import http.client
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from bertjax.data.squad import read_squad

ROOT = Path(__file__).resolve().parents[2]
TEXT = "\U0001f600 the king of the old city was by the river"


def start(run, *arguments, **streams):
    command = [sys.executable, ROOT / "serve" / "ask.py", "--backend", "onnxruntime", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=run.parents[1], env=environment, **streams)


def call(run, *arguments, given=b""):
    process = start(run, *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, error = process.communicate(given, timeout=60)
    return process.returncode, out.decode(), error.decode()


def test_one_question_about_a_file_or_a_pipe(run, tmp_path, readers):
    (tmp_path / "text").write_text(TEXT)
    wanted = readers[0].answer(TEXT, "who was king").answer
    piped = call(run, "--question", "who was king", given=TEXT.encode())
    read = call(run, "--question", "who was king", "--text", tmp_path / "text")
    for code, out, error in (piped, read):
        assert code == 0, error
        assert out.startswith(f"{wanted}   (score ") and f">>{wanted}<<" in out and " ms inference, 1 window\n" in out


def test_questions_from_a_pipe(run, tmp_path):
    (tmp_path / "text").write_text(TEXT)
    code, out, error = call(run, "--text", tmp_path / "text", given=b"who was king\n\nwhere\n")
    assert code == 0, error
    assert [line for line in out.splitlines() if line.startswith("? ")] == ["? who was king", "? where"]


def test_a_prompt_that_starts_with_an_example(run):
    ours, theirs = pty.openpty()
    process = start(run, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = _read_until(ours, "\n? ")
    assert read_squad(run / "eval.json")[0].question in shown and "Ctrl-D ends" in shown
    os.write(ours, b"what was built\n")
    shown = _read_until(ours, "\n? ")
    assert "(score " in shown and "\033[1;7m" in shown
    os.write(ours, b"\x04")
    assert process.wait(timeout=10) == 0
    os.close(ours)


def _read_until(descriptor, end):
    shown = ""
    while not shown.replace("\r", "").endswith(end):
        shown += os.read(descriptor, 4096).decode()
    return re.sub("\r", "", shown)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--text", "nowhere.txt"], "--text nowhere.txt: no such file"),
        (["--text", "runs"], "--text runs: cannot be read"),
        (["--text", "bytes"], "bytes: is not UTF-8 text (byte 1)"),
        (["--question", "who"], "text: is empty"),
        ([], "--text: give a file"),
        (["--model", "nowhere", "--question", "who"], "nowhere/config.json: no such file"),
        (["--web", "--question", "who"], "--web: takes no --text"),
        (["--web", "--port", "TAKEN"], "is taken on 127.0.0.1"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, told):
    (run.parents[1] / "bytes").write_bytes(b"a\xff")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, _, error = call(run, *(port if argument == "TAKEN" else argument for argument in arguments))
    assert code == 2
    assert error.startswith("error: ") and told in error and error.count("\n") == 1


def test_ctrl_c_ends_the_server_and_frees_its_port(run):
    process = start(run, "--web", "--port", "0", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    lines = [process.stdout.readline() for _ in range(3)]
    assert [line.split(":")[0] for line in lines[:2]] == ["student-int8", "teacher"]
    port = int(re.search(r"http://127.0.0.1:(\d+)/   Ctrl-C ends", lines[2])[1])
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", "/about")
    assert connection.getresponse().read()  # and the connection stays open
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=10)
    assert (process.returncode, error) == (130, "\nended\n")
    connection.close()
    with socket.create_server(("127.0.0.1", port)):
        pass
