"""The page's server, asked with Python's own HTTP client."""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import re
import socket
import threading

import pytest

from bertjax.asking import server as serving
from bertjax.asking.reader import EXAMPLE
from bertjax.asking.server import AskServer
from bertjax.errors import UserError

JSON = {"Content-Type": "application/json"}
ASKED = {"text": "\U0001f600 the king of <b>the city</b> was by the river", "question": "who was by the river"}


@contextlib.contextmanager
def running(readers):
    with AskServer(readers, EXAMPLE, host="127.0.0.1", port=0) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def server(readers):
    with running(readers) as server:
        yield server


def send(server, method, path, body=None, headers=JSON):
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response, response.read()


def ask(server, asked):
    response, body = send(server, "POST", "/ask", json.dumps(asked))
    assert response.status == 200, body
    return json.loads(body)["replies"]


def test_every_model_answers_as_its_reader_does(server, readers):
    replies = ask(server, ASKED)
    assert len(replies) == 2
    for reply, reader in zip(replies, readers, strict=True):
        wanted = dataclasses.asdict(reader.answer(**ASKED))
        assert reply.pop("tokenize_ms") > 0 and reply.pop("infer_ms") > 0
        assert reply == {name: wanted[name] for name in reply}
        assert reply["answer"] == ASKED["text"][reply["start"] : reply["end"]] != ""


def test_the_page_names_its_models_and_loads_nothing_from_elsewhere(server, readers):
    about = json.loads(send(server, "GET", "/about")[1])
    assert [(m["name"], m["role"]) for m in about["models"]] == [("student-int8", "student"), ("teacher", "teacher")]
    assert about["models"][0]["description"] == readers[0].description and about["text"] == EXAMPLE.context
    for path in serving.FILES:
        response, body = send(server, "GET", path)
        assert response.status == 200 and response.headers["Content-Security-Policy"].startswith("default-src 'self'")
        addresses = set(re.findall(r"https?://[^\"' ]+", body.decode()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, path


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"text": " ", "question": "who"}, 400, "text: is empty"),
        ({"text": "a king", "question": ""}, 400, "question: is empty"),
        ({"text": "a \ud83d", "question": "who"}, 400, "text: holds half of a surrogate pair"),
        ({"question": "who"}, 400, "text: is missing"),
        ({"text": "a king", "question": 7}, 400, "question: is missing or no string"),
        (["a king", "who"], 400, "body: must be JSON"),
        (b"{", 400, "body: must be JSON"),
        (b"\xff", 400, "body: must be JSON"),
        (b"[" * 100_000, 400, "body: must be JSON"),
        ({"text": "a" * 100_001, "question": "who"}, 413, "text: has 100,001 characters; at most 100,000"),
        ({"text": "a king", "question": "a" * 1_001}, 413, "question: has 1,001 characters"),
    ],
)
def test_a_question_that_cannot_be_answered_is_told_in_json(server, body, status, told):
    response, content = send(server, "POST", "/ask", body if isinstance(body, bytes) else json.dumps(body))
    assert (response.status, response.headers["Content-Type"]) == (status, "application/json")
    error = json.loads(content)["error"]
    assert told in error and "\n" not in error


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/ask", {"Content-Type": "text/plain"}, 415),
        ("POST", "/ask", JSON | {"Content-Length": "99999999999"}, 413),
        ("POST", "/ask", JSON | {"Content-Length": "some"}, 411),
        ("POST", "/about", JSON, 404),
        ("GET", "/ask", {}, 405),
        ("GET", "/../server.py", {}, 404),
        ("DELETE", "/ask", {}, 501),
    ],
)
def test_a_request_that_is_none_is_told_in_json(server, method, path, headers, status):
    response, content = send(server, method, path, None, headers)
    assert response.status == status and list(json.loads(content)) == ["error"]


def test_many_at_once_each_get_their_own_answer(server):
    texts = ["the king of the city", "a river north of the ship", "who was in the city by the river", "an old bridge"]
    alone = [ask(server, {"text": text, "question": "what was"})[0]["answer"] for text in texts]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda text: ask(server, {"text": text, "question": "what was"})[0]["answer"], texts * 6)
    assert list(found) == alone * 6


def test_a_connection_that_says_nothing_more_is_closed(server, monkeypatch, capfd):
    monkeypatch.setattr(serving._Handler, "timeout", 0.1)
    with socket.create_connection(server.server_address[:2], timeout=20) as connection:
        connection.sendall(b"POST /ask HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
        assert connection.recv(1) == b""
    assert ask(server, ASKED) and capfd.readouterr().err == ""


def test_a_backend_that_breaks_is_told_on_the_page_and_in_the_terminal(readers, capfd):
    class Broken:
        name, description, macs, settings = "student", "", 0, readers[0].settings

        def answer(self, text, question):
            raise RuntimeError("out of memory")

    with running([Broken()]) as server:
        response, content = send(server, "POST", "/ask", json.dumps(ASKED))
    assert response.status == 500
    assert json.loads(content)["error"] == "answering failed: RuntimeError: out of memory"
    assert "Traceback" in capfd.readouterr().err


def test_a_place_that_cannot_be_had_is_told(server):
    taken = server.server_address[1]
    for host, port, told in (
        ("127.0.0.1", taken, f"--port {taken}: is taken on 127.0.0.1"),
        ("127.0.0.1", 70_000, "--port 70000: must lie between"),
        ("no such host", 0, "--host no such host: no such host"),
        ("198.51.100.7", 0, "--host 198.51.100.7: is no address of this machine"),
    ):
        with pytest.raises(UserError, match=told):
            AskServer([], EXAMPLE, host=host, port=port)
