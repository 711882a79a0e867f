"""Which names of TensorRT's Python API bertjax uses, read from its source."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("bindings.json")

# In each file: what a variable, an attribute or a method's result holds; "" is the module.
CLASSES = {
    "bertjax/tensorrt/binding.py": {"trt": ""},
    "bertjax/tensorrt/export.py": {"trt": ""},
    "bertjax/tensorrt/build.py": {
        "trt": "",
        "builder": "Builder",
        "config": "IBuilderConfig",
        "parser": "OnnxParser",
        "error": "ParserError",
        "profile": "IOptimizationProfile",
        "cache": "ITimingCache",
        "runtime": "Runtime",
        "engine": "ICudaEngine",
        "get_timing_cache": "ITimingCache",
        "create_engine_inspector": "EngineInspector",
    },
    "bertjax/engines/tensorrt.py": {
        "trt": "",
        "_trt": "",
        "_runtime": "Runtime",
        "_engine": "ICudaEngine",
        "engine": "ICudaEngine",
        "context": "IExecutionContext",
    },
}
_TYPES = ("ModuleType", "Any")  # how a function annotates what comes from TensorRT
_OWN_METHODS = {"__init__", "clear", "last_error"}  # that subclasses of TensorRT's classes add


def used_names() -> dict[str, list[tuple[str, frozenset[str]]]]:
    """Every name as `Class.attribute`, or alone where it is the module's.

    Returns:
      For each name, where it is used: the function, and the names that this function guards with `hasattr`. A name
      that stands in `hasattr` alone has an empty list.
    """
    found: dict[str, list[tuple[str, frozenset[str]]]] = {}
    for file, classes in CLASSES.items():
        for function in _functions(ast.parse((ROOT / file).read_text())):
            names = list(_names(function, classes))
            guards = frozenset(name for name, guard in names if guard)
            for name, guard in names:
                uses = found.setdefault(name, [])
                if not guard:
                    uses.append((f"{file}, {function.name}", guards))
    return found


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """Every function or method that is not inside another function."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            yield from (child for child in ast.iter_child_nodes(node) if isinstance(child, ast.FunctionDef))


def _names(function: ast.FunctionDef, classes: Mapping[str, str]) -> Iterator[tuple[str, bool]]:
    """Each name, and whether it stands in a `hasattr`."""
    arguments = [*function.args.args, *function.args.kwonlyargs]
    others = {entry.arg for entry in arguments if entry.annotation and ast.unparse(entry.annotation) not in _TYPES}
    classes = {name: holder for name, holder in classes.items() if name not in others}
    for node in ast.walk(function):
        if isinstance(node, ast.Attribute) and (holder := _class_of(node.value, classes)) is not None:
            if node.attr != "__init__":
                yield _join(holder, node.attr), False
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr":
            yield _join(_class_of(node.args[0], classes) or "", ast.literal_eval(node.args[1])), True
        elif isinstance(node, ast.ClassDef):
            for holder in filter(None, (_class_of(base, classes) for base in node.bases)):
                methods = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
                yield from ((_join(holder, method), False) for method in methods - _OWN_METHODS)


def _class_of(node: ast.expr, classes: Mapping[str, str]) -> str | None:
    """The TensorRT class that an expression holds, "" for the module, None for anything else."""
    if isinstance(node, ast.Call):
        return classes.get(node.func.attr) if isinstance(node.func, ast.Attribute) else None
    if isinstance(node, ast.Attribute):
        of_module = _class_of(node.value, classes) == ""
        return node.attr if of_module else classes.get(node.attr)
    return classes.get(node.id) if isinstance(node, ast.Name) else None


def _join(holder: str, attribute: str) -> str:
    return f"{holder}.{attribute}" if holder else attribute
