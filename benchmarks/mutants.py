"""Mutation tests of one room: which small faults in its code would its own tests notice?

    python benchmarks/mutants.py --room model --seed 0 --count 150

Draws mutants (mutmut's operators) from `bertjax/ROOM/` by seed and runs each against `tests/ROOM/`: only the tests that
run the changed lines, fastest first, until one fails. Prints every survivor as a difference of lines, then one line of
JSON. Left out are docstrings, texts of errors and progress bars, type annotations and aliases, decorators, files whose
libraries are not installed, and what `NOT_COUNTED` lists with its reason.

A mutant runs in a process that is forked from this one, which has imported the libraries, but neither bertjax nor any
backend of JAX: it costs its tests and no start. All share one folder of compiled functions, which the environment's
JAX_COMPILATION_CACHE_DIR keeps for the next time.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import dataclasses
import difflib
import functools
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import coverage
import hypothesis
import libcst as cst
import pytest
from libcst import matchers
from libcst.metadata import MetadataWrapper, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES: tuple[str, ...] = (
    *("jax", "flax.nnx", "optax", "orbax.checkpoint", "onnxruntime", "openvino", "onnx.reference", "torch"),
    *("transformers.models.bert.modeling_bert", "transformers.models.bert.tokenization_bert", "scipy.optimize"),
)
PROCESSES = 2
GRACE = 20.0  # seconds of processor time for a mutant beside five times what its tests take without it
BYTES = 12 << 30  # of memory for a mutant

# Mutants that no test can tell from the code, or not here: a pattern of "before -> after", and the reason.
NOT_COUNTED = (
    (r"(BATCH|INFERENCE)_TOKENS = .* -> .*= \d", "how many tokens are computed together changes no figure"),
    (r"ENCODED_TOGETHER = .* -> .*= \d", "the same of texts"),
    (r"LENGTH_MULTIPLE = .* -> .*= \d", "nor does padding (test_padding_to_one_length_changes_no_figure)"),
    (r'default_matmul_precision\("highest"\) -> ', "a CPU has one precision"),
    (r"madvise\(|mmap\.PAGESIZE|begin = hidden\.offset|\* token - page", "advice to the kernel changes the time alone"),
    (r"donate_argnums=0", "gives a buffer back sooner"),
    (r"tf2onnx|twin\.convert", "runs with the extra tf alone"),
)
# Nor a progress bar's label, and that the lengths agree where zip asserts it.
UNSEEN_ARGUMENT = re.compile(r",? *(strict|label)=[^,)]+|, *(?=\)|$)")

Lines = tuple[int, int]  # the first and the last, from 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """A file of the room with one fault in it."""

    path: Path
    lines: Lines  # of the statement that is changed
    source: str

    def difference(self) -> tuple[str, str]:
        """The changed lines before and after, each joined to one line."""
        old, new = (text.splitlines() for text in (self.path.read_text(), self.source))
        changed = list(difflib.unified_diff(old, new, n=0))[2:]
        before, after = (" ".join(line[1:].strip() for line in changed if line[0] == sign) for sign in "-+")
        return before, after

    def __str__(self) -> str:
        before, after = self.difference()
        return f"{self.path.relative_to(ROOT)}:{self.lines[0]}\n  - {before}\n  + {after}"

    def is_not_counted(self) -> bool:
        """Whether `NOT_COUNTED` lists it."""
        before, after = self.difference()
        if UNSEEN_ARGUMENT.sub("", before) == UNSEEN_ARGUMENT.sub("", after):
            return True
        return any(re.search(pattern, f"{before} -> {after}") for pattern, _ in NOT_COUNTED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Baseline:
    """The room's tests without a fault."""

    seconds: Mapping[str, float]  # of processor time, by test
    runs: Mapping[str, Mapping[int, set[str]]]  # by file and line: the tests, and "" for what runs at import

    def tests_of(self, mutant: Mutant) -> list[str]:
        """The tests that run the changed statement, fastest first; all tests if it runs at import."""
        by_line = self.runs.get(str(mutant.path), {})
        found = set().union(*(by_line.get(line, ()) for line in range(mutant.lines[0], mutant.lines[1] + 1)))
        if found == {""}:
            found = set(self.seconds)
        return sorted(found - {""}, key=self.seconds.__getitem__)


def sample(room: str, seed: int, count: int) -> list[Mutant]:
    """`count` mutants of a room's files, drawn at random; fewer if there are no more."""
    drawn: list[tuple[Path, cst.Module, cst.CSTNode, cst.CSTNode, Lines]] = []
    for path in filter(_has_its_libraries, sorted((ROOT / "bertjax" / room).rglob("*.py"))):
        wrapper = MetadataWrapper(cst.parse_module(path.read_text()))
        spans = wrapper.resolve(PositionProvider)
        drawn += [(path, wrapper.module, *change) for change in _changes(wrapper.module, spans, (1, 1))]
    random.Random(seed).shuffle(drawn)
    mutants: list[Mutant] = []
    for path, module, node, replacement, lines in drawn:
        changed = cst.ensure_type(module.deep_replace(node, replacement), cst.Module)
        mutant = Mutant(path=path, lines=lines, source=changed.code)
        if _is_another_program(module.code, mutant.source) and not mutant.is_not_counted():
            mutants.append(mutant)
        if len(mutants) == count:
            break
    return mutants


def _has_its_libraries(path: Path) -> bool:
    names: set[str] = set()
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom) and statement.module:
            names.add(statement.module)
    return all(importlib.util.find_spec(name.partition(".")[0]) for name in names)


def _is_another_program(source: str, changed: str) -> bool:
    try:
        return ast.dump(ast.parse(source)) != ast.dump(ast.parse(changed))
    except SyntaxError:
        return False


def _changes(
    node: cst.CSTNode, spans: Mapping[Any, Any], lines: Lines
) -> Iterator[tuple[cst.CSTNode, cst.CSTNode, Lines]]:
    """Every node below this one that an operator changes, what it becomes, and the lines of its statement."""
    if matchers.matches(node, LEFT_OUT):
        return
    if isinstance(node, cst.BaseSmallStatement | cst.BaseCompoundStatement):
        last = spans[node.body].start.line - 1 if hasattr(node, "body") else spans[node].end.line
        lines = spans[node].start.line, max(spans[node].start.line, last)
    bar = matchers.matches(node, PROGRESS_BAR)
    for kind, operator in mutation_operators:
        if isinstance(node, kind) and not bar:
            yield from ((node, replacement, lines) for replacement in operator(node))
    for child in node.children:
        if not (bar and isinstance(child, cst.Arg) and child.keyword):
            yield from _changes(child, spans, lines)


def _call(name: str) -> matchers.Call:
    return matchers.Call(func=matchers.Name(name) | matchers.Attribute(attr=matchers.Name(name)))


PROGRESS_BAR = (
    _call("tqdm")
    | _call("bar")
    | matchers.Call(func=matchers.Attribute(value=matchers.Name("bar")))
    | matchers.Call(args=[matchers.Arg(value=matchers.Name("tqdm")), matchers.ZeroOrMore()])
)
LEFT_OUT = (
    matchers.Annotation()
    | matchers.Decorator()
    | matchers.Import()
    | matchers.ImportFrom()
    | matchers.Raise(exc=_call("UserError") | _call("WorkFailed"))
    | matchers.Call(func=matchers.Attribute(value=matchers.Name("faults"), attr=matchers.Name("add")))
    | matchers.Expr(value=matchers.SimpleString())
    | matchers.Assign(value=_call("TypeVar"))
    | matchers.Assign(
        value=matchers.Subscript(
            value=matchers.OneOf(*map(matchers.Name, ("dict", "tuple", "Callable", "Literal", "Mapping", "Iterator")))
        )
    )
)


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a mutant in its file's place."""

    def __init__(self, mutant: Mutant):
        name = ".".join(mutant.path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        super().__init__(name, str(mutant.path))
        self.source = mutant.source

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec", dont_inherit=True)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the mutant where its module is imported."""

    def __init__(self, mutant: Mutant):
        self.loader = _Loader(mutant)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.loader.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.loader.path, loader=self.loader)


class _Chosen:
    """A pytest plugin that runs these tests in this order."""

    def __init__(self, tests: list[str]):
        self.rank = {test: rank for rank, test in enumerate(tests)}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((item for item in items if item.nodeid in self.rank), key=lambda item: self.rank[item.nodeid])


class _Recorder:
    """A pytest plugin that makes a `Baseline`. What a test's fixtures run counts for all tests of its file."""

    def __init__(self, room: str):
        self.coverage = coverage.Coverage(data_file=None, source=[str(ROOT / "bertjax" / room)])
        self.seconds: dict[str, float] = {}
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        started = _processor_seconds()
        self.coverage.switch_context(item.nodeid.partition("::")[0])
        result = yield
        self.seconds[item.nodeid] = _processor_seconds() - started
        return result

    def pytest_runtest_call(self, item: pytest.Item) -> None:
        self.coverage.switch_context(item.nodeid)

    def pytest_runtest_teardown(self, item: pytest.Item) -> None:
        self.coverage.switch_context(item.nodeid.partition("::")[0])

    def result(self) -> dict[str, Any]:
        """The JSON form of a `Baseline`."""
        self.coverage.stop()
        data = self.coverage.get_data()
        runs = {path: data.contexts_by_lineno(path) for path in data.measured_files()}
        return {"seconds": self.seconds, "runs": runs}


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def measure_baseline(room: str) -> Baseline:
    """Run all tests of a room, without a fault and in the way that mutants are run.

    Raises:
      SystemExit: a test fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        record, output = Path(folder) / "baseline.json", Path(folder) / "output"

        def tests() -> int:
            recorder = _Recorder(room)
            code = _pytest([f"tests/{room}"], recorder, traceback="short")
            record.write_text(json.dumps(recorder.result()))
            return code

        if os.waitstatus_to_exitcode(os.waitpid(_fork(tests, output), 0)[1]):
            raise SystemExit(f"the tests fail without any fault:\n{output.read_text()[-4000:]}")
        found = json.loads(record.read_text())
    in_file = collections.defaultdict(set)
    for test in found["seconds"]:
        in_file[test.partition("::")[0]].add(test)
    runs = {
        path: {
            int(line): set().union(*(in_file.get(context, {context}) for context in contexts))
            for line, contexts in by_line.items()
        }
        for path, by_line in found["runs"].items()
    }
    return Baseline(seconds=found["seconds"], runs=runs)


def _pytest(paths: list[str], plugin: object, *, traceback: str) -> int:
    without = [f"-pno:{name}" for name in ("cacheprovider", "unraisableexception", "threadexception")]
    return int(pytest.main(["-x", "-q", f"--tb={traceback}", *without, *paths], plugins=[plugin]))


def _fork(work: Callable[[], int], output: Path) -> int:
    """Run `work` in a process group of its own, which ends with what it returns; its process id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 99
    try:
        os.setsid()
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = work()
        sys.stdout.flush()
    finally:
        os._exit(code)


def survives(mutants: list[Mutant], baseline: Baseline) -> list[bool]:
    """Whether each mutant passes its tests, and print those that do; one that takes too long does not."""
    alive: list[bool] = [False] * len(mutants)
    waiting = list(enumerate(mutants))[::-1]
    running: dict[int, tuple[int, float]] = {}  # by process: the mutant's number and when it is stopped
    while waiting or running:
        while waiting and len(running) < PROCESSES:
            number, mutant = waiting.pop()
            print(f"\r{number + 1} of {len(mutants)}", end="", file=sys.stderr)
            tests = baseline.tests_of(mutant)
            if tests:
                seconds = GRACE + 5 * sum(map(baseline.seconds.__getitem__, tests))
                process = _fork(functools.partial(_try_mutant, mutant, tests, seconds), Path(os.devnull))
                running[process] = number, time.monotonic() + 6 * seconds
            else:
                alive[number] = True
                print(mutant, "  (no test runs it)")
        for process, (number, end) in list(running.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                alive[number] = status == 0
                del running[process]
                if alive[number]:
                    print(mutants[number], flush=True)
            if ended or time.monotonic() > end:
                _end_group(process)
        time.sleep(0.1)
    return alive


def _try_mutant(mutant: Mutant, tests: list[str], seconds: float) -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (BYTES, BYTES))
    sys.meta_path.insert(0, _Finder(mutant))
    return _pytest(sorted({test.partition("::")[0] for test in tests}), _Chosen(tests), traceback="no")


def _end_group(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--room", required=True, help="a folder of bertjax/ that tests/ mirrors")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--count", type=int, default=150, metavar="N", help="mutants to draw (default: 150)")
    args = parser.parse_args()
    started = time.monotonic()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory() as compiled:
        _get_ready(compiled)
        mutants = sample(args.room, args.seed, args.count)
        killed = len(mutants) - sum(survives(mutants, measure_baseline(args.room)))
    figures = {"room": args.room, "seed": args.seed, "mutants": len(mutants), "killed": killed}
    figures |= {"share": round(killed / len(mutants), 3), "seconds": round(time.monotonic() - started)}
    print(json.dumps(figures))


def _get_ready(compiled: str) -> None:
    """Import what the tests need, with the settings that are read at import, and keep it from garbage collection."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # no test of this repository needs one
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)  # a failure need not be made small
    hypothesis.settings.register_profile("mutants", derandomize=True, database=None, phases=phases)
    hypothesis.settings.load_profile("mutants")
    for name in LIBRARIES:
        if importlib.util.find_spec(name.partition(".")[0]):
            importlib.import_module(name)
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()
