"""The steps of an engine, read from the builder's log or from the engine inspector.

With `ProfilingVerbosity.DETAILED` both give for every step its name, its type, the tensors that it reads and writes
with their dtypes, and its ONNX nodes. The inspector needs the engine loaded, so an engine built for a GPU that is not
here has only the log.

The form differs from version to version. Of a tensor, TensorRT 10 says `Format/Datatype: Half`, or
`Format/Datatype: Row major Int8 format` outside its compiler's graphs, where TensorRT for RTX says `Datatype: Half,
Format: ...`; constants have a list of their own in RTX, stand among the inputs in 10.0, and are left out in 10.10. With
several optimization profiles every profile has its own steps, marked `[profile 1]` from the second one on.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

_STEP = re.compile(
    r"^Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[(?P<constants>.*?)\], )?Outputs: \[(?P<outputs>| \{.*?\})\], (?P<rest>.*)$",
    re.MULTILINE,
)
_TENSOR = re.compile(r"Name: (?P<name>.*?), .*?Dimensions: \[(?P<dimensions>[^\]]*)\].*?Datatype: (?P<dtype>[^,}]*)")
_TACTIC = re.compile(r"TacticName: ([^,]*)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_PROFILE = re.compile(r"\[profile (\d+)\]")
_GRAPH = re.compile(r"_(myl\d+)_\d+$")  # which of the compiler's graphs a step belongs to
_CONSTANT = re.compile(r"_(dconst|alpha|beta|constant\w*)(_myl\d+)?$")  # a constant's name among inputs
_DTYPES = {"float": "Float", "fp32": "Float", "half": "Half", "fp16": "Half", "int8": "Int8"}


class Tensor(NamedTuple):
    """A tensor that a step reads or writes."""

    name: str
    elements: int  # an unknown axis counts as 1
    dtype: str  # in TensorRT's words: Float, Half, Int8, Int64, ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One step of an engine in one optimization profile."""

    name: str
    kind: str  # in TensorRT's words: gemm, kgen (a generated kernel), signal, ...
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    tactic: str
    nodes: frozenset[str]  # names of the ONNX nodes that it computes, wholly or in part
    profile: int


def steps_from_log(log: str) -> list[Step]:
    """The steps that a builder's log lists, in the order in which they run; empty if it lists none."""
    found = []
    for match in _STEP.finditer(log):
        tactic = _TACTIC.search(match["rest"])
        inputs, constants, outputs = (_tensors(match[field] or "") for field in ("inputs", "constants", "outputs"))
        nodes = _NODE.findall(match["rest"])
        found.append(_step(match["name"], match["kind"], inputs, constants, outputs, tactic and tactic[1], nodes))
    return _with_profiles(found)


def steps_from_inspector(text: str) -> list[Step]:
    """The same from the JSON that `EngineInspector.get_engine_information` gives; empty if it has names only."""
    found = []
    for entry in json.loads(text)["Layers"]:
        if not isinstance(entry, dict):
            return []
        inputs, constants, outputs = (_tensors_of(entry.get(field, [])) for field in ("Inputs", "Constants", "Outputs"))
        kind, tactic, nodes = entry.get("LayerType", ""), entry.get("TacticName"), entry.get("Metadata", "")
        found.append(_step(entry["Name"], kind, inputs, constants, outputs, tactic, _NODE.findall(nodes)))
    return _with_profiles(found)


def _tensors(text: str) -> list[Tensor]:
    return [
        _tensor(match["name"], [int(value) for value in match["dimensions"].split(",") if value], match["dtype"])
        for match in _TENSOR.finditer(text)
    ]


def _tensors_of(entries: list[dict[str, Any]]) -> list[Tensor]:
    return [
        _tensor(entry["Name"], entry.get("Dimensions", []), entry.get("Datatype") or entry.get("Format/Datatype", ""))
        for entry in entries
    ]


def _tensor(name: str, dimensions: list[int], dtype: str) -> Tensor:
    known = (_DTYPES[word] for word in dtype.lower().split() if word in _DTYPES)
    return Tensor(name, math.prod(max(1, value) for value in dimensions), next(known, dtype.strip()))


def _step(
    name: str,
    kind: str,
    inputs: list[Tensor],
    constants: list[Tensor],
    outputs: list[Tensor],
    tactic: str | None,
    nodes: Sequence[str],
) -> Step:
    constants = constants + [tensor for tensor in inputs if _CONSTANT.search(tensor.name)]
    names = [name, *(tensor.name for tensor in inputs + outputs)]
    marks = [int(mark[1]) for text in names if (mark := _PROFILE.search(text))]
    return Step(
        name=name,
        kind=kind,
        inputs=tuple(tensor for tensor in inputs if tensor not in constants),
        constants=tuple(constants),
        outputs=tuple(outputs),
        tactic=tactic or "",
        nodes=frozenset(nodes),
        profile=max(marks, default=0),
    )


def _with_profiles(steps: list[Step]) -> list[Step]:
    """Give every step without a mark the profile of its graph, which has only one."""
    profiles: dict[str, int] = {}
    for step in steps:
        if graph := _GRAPH.search(step.name):
            profiles[graph[1]] = max(profiles.get(graph[1], 0), step.profile)
    return [
        dataclasses.replace(step, profile=profiles[graph[1]]) if (graph := _GRAPH.search(step.name)) else step
        for step in steps
    ]
