"""For the tests of a submission: its scenarios, its windows, and where in a tree its results lie."""

from __future__ import annotations

from pathlib import Path

from bertjax.data.windows import WindowSettings

WINDOWS = WindowSettings(max_seq=128, doc_stride=64, max_query=32)
SCENARIOS = ("Offline", "Server", "SingleStream")


def results(root: Path, benchmark: str = "bert-99") -> Path:
    (found,) = (root / "open" / "Somebody" / "results").glob(f"*/{benchmark}")
    return found
