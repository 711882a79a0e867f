"""The public SQuAD: fetched once, from a server that stands in for the public one."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertjax.data import download
from bertjax.errors import UserError


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The paths that a server is asked for; it knows the development file alone."""
    paths: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            paths.append(self.path)
            self.send_response(200 if self.path == "/dataset/dev-v1.1.json" else 404)
            self.end_headers()
            self.wfile.write(b"x" * 3_000_000)

        def log_message(self, *about: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(download, "_SQUAD_ADDRESS", f"http://127.0.0.1:{server.server_port}/dataset/")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield paths
        server.shutdown()


def test_a_file_is_fetched_once_into_the_cache(tmp_path: Path, asked: list[str]):
    for _ in range(2):
        path = download.squad_file("dev")
        assert path == tmp_path / "cache" / "bertjax" / "dev-v1.1.json"
        assert path.read_bytes() == b"x" * 3_000_000
    assert asked == ["/dataset/dev-v1.1.json"]


def test_what_cannot_be_fetched_is_told_with_the_flags_that_help(tmp_path: Path, asked: list[str]):
    with pytest.raises(UserError, match="train-v1.1.json: cannot be fetched .*404.*--train-file and --eval-file"):
        download.squad_file("train")
    assert not (tmp_path / "cache").exists()


def test_without_the_variable_the_cache_is_in_the_home_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert download.cache_folder() == Path.home() / ".cache" / "bertjax"
