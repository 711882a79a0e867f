"""Write `bindings.json`: which TensorRT versions have the names that bertjax uses, asked of the published bindings.

    pip download --no-deps -d wheels tensorrt-cu12-bindings==10.0.1 tensorrt-rtx-cu13-bindings ...
    python tests/tensorrt/read_bindings.py wheels/*.whl

A bindings wheel links to TensorRT's libraries, which it does not bring along. Of them it needs a handful of C functions
to load, so empty ones stand in (made with `cc` and `nm`), and the module then says itself what it has.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

if __name__ == "__main__":  # a program outside the top level: Python puts its own folder first on the path
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.tensorrt.names import TABLE, used_names

_ASK = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
def has(name):
    first, *rest = name.split(".")
    return hasattr(module, first) and (not rest or hasattr(getattr(module, first), rest[0]))
print(json.dumps([module.__version__, [name for name in sys.argv[2:] if not has(name)]]))
"""


def missing_names(wheel: Path, names: list[str]) -> tuple[str, list[str]]:
    """The version of a bindings wheel, as `tensorrt 10.0.1`, and those of `names` that it lacks."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        (extension,) = folder.glob("tensorrt*_bindings/tensorrt*.so")
        _write_stand_ins(extension, folder)
        environment = os.environ | {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
        command = [sys.executable, "-S", "-c", _ASK, extension.parent.name, *names]
        told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    version, missing = json.loads(told)
    return f"{extension.stem} {version}", missing


def _write_stand_ins(extension: Path, folder: Path) -> None:
    """Put libraries into `folder` that define what `extension` wants from TensorRT's, doing nothing."""
    undefined = subprocess.run(
        ["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True
    ).stdout
    functions = [line.split()[-1] for line in undefined.splitlines() if " U " in line and "@" not in line]
    source = folder / "stand_in.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in functions if "Py" not in name))
    headers = subprocess.run(["readelf", "-d", extension], capture_output=True, text=True, check=True).stdout
    for library in re.findall(r"NEEDED.*\[(lib(?:nv|tensorrt).*?)\]", headers):
        subprocess.run(["cc", "-shared", "-fPIC", "-w", "-o", folder / library, source], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, nargs="+", help="a bindings wheel for this Python, 10.x, 11.x or RTX")
    names = sorted(used_names())
    found = dict(missing_names(wheel, names) for wheel in parser.parse_args().wheel)
    versions = sorted(found, key=lambda text: (text.split()[0], [int(part) for part in re.findall(r"\d+", text)]))
    table = {
        "versions": versions,
        "missing_in": {name: [version for version in versions if name in found[version]] for name in names},
    }
    TABLE.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{TABLE}: {len(names)} names in {len(versions)} versions")


if __name__ == "__main__":
    main()
