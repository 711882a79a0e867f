"""Walls that import-linter cannot see: what an import loads, and whether a contract names every file."""

import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import bertjax

ROOT = Path(bertjax.__file__).parents[1]
WITH_JAX = ("cli", "model", "training", "quantization", "pruning", "pipeline")
PROBE = """
import importlib, json, sys
heavy = {"jax", "jaxlib", "flax", "optax", "orbax", "transformers", "torch", "tensorflow", "matplotlib"}
loaded_by = {}
for module in json.loads(sys.argv[1]):
    importlib.import_module(module)
    for name in heavy & set(sys.modules) - set(loaded_by):
        loaded_by[name] = module
print(json.dumps(loaded_by))
"""


def modules() -> list[str]:
    return sorted(found.name for found in pkgutil.walk_packages(bertjax.__path__, "bertjax."))


def is_light(module: str) -> bool:
    return module.split(".")[1] not in WITH_JAX


def test_rooms_that_serve_load_no_training_library():
    """One process imports them one after the other, and tells which module brought a heavy library in."""
    light = [module for module in modules() if is_light(module) and module != "bertjax.onnx.twin"]
    light.append("bertjax.pipeline.flags")  # programs read their flags before they pay for JAX
    probe = subprocess.run([sys.executable, "-c", PROBE, json.dumps(light)], cwd=ROOT, capture_output=True, text=True)
    assert probe.returncode == 0, probe.stderr
    assert json.loads(probe.stdout) == {}


def test_the_contract_against_jax_names_every_module_that_must_not_import_it():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [one for one in contracts if "jax" in one.get("forbidden_modules", ())]
    named = contract["source_modules"]
    rooms = {"bertjax.engines", "bertjax.engines.jax"}  # engines/ file by file, because of jax.py
    left_out = [
        module
        for module in modules()
        if is_light(module) and module not in rooms and not any(f"{module}.".startswith(f"{one}.") for one in named)
    ]
    assert left_out == []


def test_no_room_holds_more_than_a_fifth_of_the_lines():
    """mlperf/submission/ counts for itself: a contract keeps the rest of mlperf/ from knowing it."""
    lines: dict[str, int] = {}
    for path in (ROOT / "bertjax").rglob("*.py"):
        parts = path.relative_to(ROOT / "bertjax").parts
        room = "mlperf/submission" if parts[:2] == ("mlperf", "submission") else parts[0]
        lines[room] = lines.get(room, 0) + len(path.read_text(encoding="utf-8").splitlines())
    total = sum(lines.values())
    assert {room: count for room, count in lines.items() if count > 0.2 * total} == {}


def test_the_page_on_the_code_names_what_is_there():
    """Its paths exist, and of names like `pruning.search.search` the module and what it defines."""
    page = (ROOT / "docs/design.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`([\w/]+\.py)`", page))
    dotted = set(re.findall(r"`(\w+(?:\.\w+)+)`", page))
    dotted = {name for name in dotted if (ROOT / "bertjax" / name.split(".")[0]).is_dir()}
    dotted = {name for name in dotted if not name.endswith((".onnx", ".engine", ".safetensors"))}  # files of a model
    gone = {name for name in paths if not any((ROOT / top / name).exists() for top in ("", "bertjax"))}
    for name in dotted:
        *module, defined = name.split(".")
        path = (ROOT / "bertjax").joinpath(*module).with_suffix(".py")
        if not path.exists() or not re.search(rf"(def|class) {defined}\b", path.read_text(encoding="utf-8")):
            gone.add(name)
    assert gone == set()
