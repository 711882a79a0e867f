"""The models that OpenVINO compiled from a graph, kept beside it in `<graph>.openvino/<key>/` and known by digest.

OpenVINO itself serves a file whose weights were changed without a word.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from bertjax.errors import UserError, WorkFailed
from bertjax.files import locked, write_file_aside
from bertjax.identity import digest_file


@contextlib.contextmanager
def kept_models(graph: Path, key: str) -> Iterator[Path | None]:
    """Yield the folder for models compiled from `graph`; at the block's end those that were added are recorded.

    Files that are not as they were recorded are removed first, which is said, and so are those of other keys. Processes
    that do this at the same time wait for one another, so that the second one finds what the first one compiled.

    Args:
      key: of graph, OpenVINO and arithmetic.

    Yields:
      The folder; None where it can neither be found nor made: then the graph is compiled every time.
    """
    place = Path(graph).with_name(f"{Path(graph).name}.openvino")
    with contextlib.ExitStack() as ending:
        with contextlib.suppress(UserError, WorkFailed):  # a place that cannot be written may hold sound files
            ending.enter_context(locked(place))
        folder, record = place / key, place / f"{key}.json"
        if not _is_sound(folder, record) and not _make(folder):
            yield None
            return
        before, digests = _stamps(folder), _read(record)
        yield folder
        after = _stamps(folder)
        if after != before:
            fresh = [name for name, stamp in after.items() if before.get(name) != stamp]
            digests |= {name: digest_file(folder / name) for name in fresh}
            content = json.dumps({name: digests[name] for name in after}, indent=2) + "\n"
            with contextlib.suppress(UserError, WorkFailed):  # without it they are compiled again
                write_file_aside(record, content)


def _is_sound(folder: Path, record: Path) -> bool:
    """Whether the folder is there with the files of its record; tells where it is there with others."""
    if not folder.is_dir():
        return False
    try:
        sound = {path.name: digest_file(path) for path in folder.iterdir()} == _read(record)
    except OSError:
        sound = False
    if not sound:
        print(f"{folder}: not what OpenVINO compiled here; compiled again")
    return sound


def _make(folder: Path) -> bool:
    try:
        shutil.rmtree(folder.parent, ignore_errors=True)
        folder.mkdir(parents=True)
    except OSError:
        return False
    return True


def _read(record: Path) -> dict[str, str]:
    """Digests by the names of files; empty where there is no record, or a broken one."""
    try:
        found = json.loads(record.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Time of change and size of each file."""
    return {path.name: ((stat := path.stat()).st_mtime_ns, stat.st_size) for path in sorted(folder.iterdir())}
