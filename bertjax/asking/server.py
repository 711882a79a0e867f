"""One page and two JSON routes over HTTP, with Python's own server: for a person at this machine, not for the internet.

`GET /about`: the `models` (`name`, `role`, `description`, `macs` of a window of `max_seq` tokens), an example's `text`
and `question`, and the limits `max_text` and `max_question`, in characters.

`POST /ask` with `{"text": ..., "question": ...}`: `{"replies": [...]}`, one for each model in the order of `/about`,
with the fields of `reader.Reply`. `start` and `end` count code points, as Python does; JavaScript counts UTF-16 units.

Whatever goes wrong is `{"error": one line}` with a status of 400 or above.
"""

from __future__ import annotations

import dataclasses
import errno
import http.server
import importlib.resources
import json
import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from bertjax.asking.reader import Reader
from bertjax.data.squad import Example
from bertjax.errors import UserError

MAX_TEXT = 100_000  # characters: about 20,000 tokens, seconds of work for a small model
MAX_QUESTION = 1_000
MAX_BODY = 12 * (MAX_TEXT + MAX_QUESTION) + 100  # bytes; JSON may write a character as two escapes of six
QUIET_SECONDS = 30.0  # a connection on which nothing comes for so long is closed

FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/script.js": ("script.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class _Refused(Exception):
    """A request that is answered with this status and this line."""

    def __init__(self, status: HTTPStatus, line: str):
        super().__init__(line)
        self.status = status


class AskServer(http.server.ThreadingHTTPServer):
    """A thread for each connection; the models answer one question at a time, so that its milliseconds are its own."""

    def __init__(self, readers: Sequence[Reader], example: Example, *, host: str, port: int):
        """Listen; nothing is answered before `serve_forever`.

        Args:
          readers: the model, then, if there is one, its teacher.

        Raises:
          UserError: the host or the port cannot be had.
        """
        if not 0 <= port <= 65_535:
            raise UserError(f"--port {port}: must lie between 0 and 65535")
        try:
            self.address_family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        except (OSError, UnicodeError):
            raise UserError(f"--host {host}: no such host; 127.0.0.1 is this machine") from None
        try:
            super().__init__((str(address[0]), int(address[1])), _Handler)
        except OSError as error:
            raise _refusal(error, host, port) from None
        page = importlib.resources.files("bertjax.asking") / "page"
        self.files = {path: ((page / name).read_bytes(), kind) for path, (name, kind) in FILES.items()}
        self.readers, self.answering = readers, threading.Lock()
        self.about = {
            "models": [
                {
                    "name": reader.name,
                    "role": "teacher" if reader.name == "teacher" else "student",
                    "description": reader.description,
                    "macs": reader.macs,
                    "max_seq": reader.settings.max_seq,
                }
                for reader in readers
            ],
            "text": example.context,
            "question": example.question,
            "max_text": MAX_TEXT,
            "max_question": MAX_QUESTION,
        }
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_address[1]}/"

    def server_bind(self) -> None:
        # HTTPServer's own also asks the name service for this machine's full name, which may take seconds.
        socketserver.TCPServer.server_bind(self)
        name, self.server_port = self.server_address[:2]
        self.server_name = str(name)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Called with an exception that a connection ended with; one that the other side broke off is no news."""
        error = sys.exc_info()[1]
        if not isinstance(error, (ConnectionError, TimeoutError)):
            traceback.print_exc()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: AskServer
    protocol_version = "HTTP/1.1"
    timeout = QUIET_SECONDS

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/about":
            self._send_json(HTTPStatus.OK, self.server.about)
        elif path in self.server.files:
            self._send(HTTPStatus.OK, *self.server.files[path])
        elif path == "/ask":
            self.send_error(HTTPStatus.METHOD_NOT_ALLOWED, "/ask takes POST only")
        else:
            self.send_error(HTTPStatus.NOT_FOUND, f"{path}: no such page")

    def do_POST(self) -> None:
        try:
            text, question = self._read_question()
            with self.server.answering:
                replies = [reader.answer(text, question) for reader in self.server.readers]
        except _Refused as refused:
            self.send_error(refused.status, str(refused))
        except UserError as error:
            self.send_error(HTTPStatus.BAD_REQUEST, str(error))
        except (ConnectionError, TimeoutError):
            raise
        except Exception as error:  # a bug, or a backend that broke: the page tells it, the terminal tells where
            traceback.print_exc()
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, f"answering failed: {type(error).__name__}: {error}")
        else:
            self._send_json(HTTPStatus.OK, {"replies": [dataclasses.asdict(reply) for reply in replies]})

    def _read_question(self) -> tuple[str, str]:
        """The body's text and question.

        Raises:
          _Refused: the request is no question; the rest of its body must not be read.
        """
        if self.path != "/ask":
            raise _Refused(HTTPStatus.NOT_FOUND, f"{self.path}: only /ask takes POST")
        # A page of another site can send forms here, but JSON only if this server allowed it to.
        if self.headers.get_content_type() != "application/json":
            raise _Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Content-Type: must be application/json")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise _Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length: is missing or no number")
        if len(length) > 12 or int(length) > MAX_BODY:
            raise _Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"text: is too long; at most {MAX_TEXT:,} characters")
        try:
            asked = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            asked = None
        if not isinstance(asked, dict):
            raise _Refused(HTTPStatus.BAD_REQUEST, 'body: must be JSON, {"text": ..., "question": ...}')
        for name, limit in (("text", MAX_TEXT), ("question", MAX_QUESTION)):
            if not isinstance(asked.get(name), str):
                raise _Refused(HTTPStatus.BAD_REQUEST, f"{name}: is missing or no string")
            if len(asked[name]) > limit:
                raise _Refused(
                    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                    f"{name}: has {len(asked[name]):,} characters; at most {limit:,}",
                )
        return asked["text"], asked["question"]

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """The base class calls this too, for what is no HTTP and for other methods, and would answer in HTML."""
        self.close_connection = True  # a body may be left unread
        self._send_json(code, {"error": message or HTTPStatus(code).phrase})

    def _send_json(self, status: int, content: object) -> None:
        self._send(status, json.dumps(content).encode(), "application/json")

    def _send(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: a line for each request would bury what matters."""


def serve(readers: Sequence[Reader], example: Example, *, host: str, port: int) -> None:
    """Serve the page until Ctrl-C, and tell its address; arguments as `AskServer`.

    Raises:
      UserError: the host or the port cannot be had.
    """
    with AskServer(readers, example, host=host, port=port) as server:
        for reader in readers:
            print(f"{reader.name}: {reader.description}")
        print(f"{server.url}   Ctrl-C ends", flush=True)
        server.serve_forever()


def _refusal(error: OSError, host: str, port: int) -> UserError:
    if error.errno == errno.EADDRINUSE:
        return UserError(f"--port {port}: is taken on {host}; choose another, or 0 for any free one")
    if error.errno == errno.EACCES:
        return UserError(f"--port {port}: is not allowed to this user; choose one above 1023")
    if error.errno == errno.EADDRNOTAVAIL:
        return UserError(f"--host {host}: is no address of this machine; 127.0.0.1 is, 0.0.0.0 is all of them")
    return UserError(f"--host {host} --port {port}: cannot be listened on ({error.strerror})")
