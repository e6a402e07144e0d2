"""Changes one place of the core modules at a time and asks whether the tests notice.

Each change (a mutant) is made in a copy of the tree, where the tests of its module run until the first one fails. A
mutant that none of them kills is a survivor: a test is missing, or the change makes no difference. Those that make no
difference are argued, one sentence each, in ``mutation_argued.toml`` beside this file. The mutants are drawn with a
seed, one from each module in turn.

python benchmarks/mutation.py [--modules ...] [--mutants 100] [--seed 0] [--json benchmarks/results/mutation.json]
"""

# ruff: noqa: D102

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
ARGUED = Path(__file__).with_name("mutation_argued.toml")
# What the package and its tests import; loaded once, before the process is forked for each mutant.
PRELOADED = ["torch", "numba", "scipy.ndimage", "scipy.optimize", "pydantic", "safetensors.torch", "pytest"]

_METHOD = ["invariants/test_laws.py", "golden/test_golden.py"]
_ENGINES = ["rsm/test_functional.py", "rsm/test_engines.py", "rsm/test_layer.py", "rsm/test_oracle.py", *_METHOD]
_LEARNING = ["learning/test_learning.py", "runs/test_presets.py", "golden/test_golden.py", "golden/test_recipe.py"]
_RECTIFIERS = ["rectifiers/test_rectifiers.py", "learning/test_learning.py", "golden/test_recipe.py"]
_PHYSICS = ["scoring/test_physics.py"]
_STREAMS = ["streams/test_stream.py", "streams/test_bouncing_balls.py", "streams/test_clips.py"]

Reasons = dict[tuple[str, str, str], str]  # by module, line and changed line

# The tests that are run for each module, the quickest to notice first.
TESTS = {
    "state.py": ["test_state.py", "storage/test_tensors.py", "rsm/test_layer.py"],
    "predictor.py": ["test_predictor.py", "test_model.py", "invariants/test_guards.py"],
    "model.py": ["test_model.py", "test_predictor.py", *_METHOD],
    "watching.py": ["test_watching.py"],
    "rsm/functional.py": _ENGINES,
    "rsm/layer.py": [
        "rsm/test_layer.py",
        "rsm/test_dropout.py",
        "rsm/test_stack.py",
        "rsm/test_oracle.py",
        "test_model.py",
        *_METHOD,
    ],
    "rsm/stack.py": ["rsm/test_stack.py", "test_model.py", *_METHOD],
    "rsm/kernels/compiled.py": _ENGINES,
    "rsm/kernels/cpu.py": _ENGINES,
    "rsm/kernels/reference.py": _ENGINES,
    "rsm/kernels/step.py": _ENGINES,
    "learning/local.py": _LEARNING,
    "learning/schedules.py": _LEARNING,
    "learning/muon.py": ["learning/test_muon.py", *_LEARNING],
    "learning/windows.py": ["learning/test_windows.py", "baselines/test_predrnn.py"],
    "learning/rectifying.py": ["learning/test_online.py", *_LEARNING],
    "learning/online.py": ["learning/test_online.py", *_LEARNING],
    "rectifiers/compact.py": _RECTIFIERS,
    "rectifiers/contract.py": [*_RECTIFIERS, "test_model.py"],
    "rectifiers/discriminator.py": _RECTIFIERS,
    "rectifiers/paper.py": _RECTIFIERS,
    "rectifiers/parts.py": _RECTIFIERS,
    "rectifiers/sharpening.py": _RECTIFIERS,
    "rectifiers/unet.py": _RECTIFIERS,
    "scoring/metrics.py": ["scoring/test_metrics.py"],
    "scoring/physics/detection.py": _PHYSICS,
    "scoring/physics/motion.py": _PHYSICS,
    "scoring/physics/summary.py": _PHYSICS,
    "streams/bouncing_balls.py": ["streams/test_bouncing_balls.py", *_STREAMS],
    "streams/clips.py": ["streams/test_clips.py", *_STREAMS, "streams/test_moving_mnist.py"],
    "streams/stream.py": [*_STREAMS, "streams/test_transforms.py"],
    "streams/splits.py": ["streams/test_settings.py", *_STREAMS, "scoring/test_evaluation.py"],
    "runs/trainer.py": ["runs/test_trainer.py"],
}


# What an operator or a function is changed into.
_COMPARED = {
    ast.Lt: ["<=", ">="],
    ast.LtE: ["<", ">"],
    ast.Gt: [">=", "<="],
    ast.GtE: [">", "<"],
    ast.Eq: ["!="],
    ast.NotEq: ["=="],
    ast.Is: ["is not"],
    ast.IsNot: ["is"],
    ast.In: ["not in"],
    ast.NotIn: ["in"],
}
_COMPUTED = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*", ast.Pow: "*"}
_TURNED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "amin": "amax", "amax": "amin"}


class Mutant(NamedTuple):
    """One change: the characters from ``start`` to ``end`` of a file are replaced.

    Attributes:
        module: the file, below the package.
        line: the first line of what is changed, as it is, and ``number`` its number.
        becomes: the same line after the change.
    """

    module: str
    operator: str
    number: int
    line: str
    becomes: str
    start: int
    end: int
    text: str

    def applied(self, source: str) -> str:
        """Return the source of the module with this change."""
        return source[: self.start] + self.text + source[self.end :]


class Outcome(NamedTuple):
    """What the tests made of a mutant: ``killed`` by a test or by the time limit, ``argued`` or ``survived``."""

    mutant: Mutant
    verdict: str
    by: str | None
    seconds: float


class Places(ast.NodeVisitor):
    """Walks a module and collects ``(operator, node, replacement)`` for each change that could be made.

    Annotations, decorators, imports and the words of messages are left alone.
    """

    def __init__(self) -> None:
        self.found: list[tuple[str, ast.expr | ast.stmt, str]] = []
        self._constant = "constant"

    def add(self, operator: str, node: ast.expr | ast.stmt, replacement: str) -> None:
        self.found.append((operator, node, replacement))

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        with self._constants_are("default"):
            for default in [*node.args.defaults, *node.args.kw_defaults]:
                if default is not None:
                    self.visit(default)
        for statement in node.body:
            self.visit(statement)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for statement in node.body:
            self.visit(statement)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit_Import(self, node: ast.Import) -> None:
        pass

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        pass

    def visit_Assert(self, node: ast.Assert) -> None:
        pass

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        pass

    def visit_Raise(self, node: ast.Raise) -> None:
        self.add("statement", node, "pass")

    def visit_Continue(self, node: ast.Continue) -> None:
        self.add("statement", node, "pass")

    def visit_Break(self, node: ast.Break) -> None:
        self.add("statement", node, "pass")

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):
            self.add("statement", node, "pass")
            self.visit(node.value)

    def visit_Assign(self, node: ast.Assign) -> None:
        if any(isinstance(part, ast.Attribute | ast.Subscript) for part in ast.walk(node.targets[0])):
            self.add("statement", node, "pass")  # without a local name, almost any test would fail
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self.add("statement", node, "pass")
        other = _COMPUTED.get(type(node.op))
        if other is not None:
            self.add("arithmetic", node, f"{ast.unparse(node.target)} {other}= {ast.unparse(node.value)}")
        self.generic_visit(node)

    def visit_Return(self, node: ast.Return) -> None:
        if isinstance(node.value, ast.BinOp | ast.Call | ast.Name | ast.IfExp):
            self.add("return", node.value, f"-({ast.unparse(node.value)})")
        elif isinstance(node.value, ast.Compare | ast.BoolOp):
            self.add("return", node.value, f"not ({ast.unparse(node.value)})")
        elif node.value is not None and not isinstance(node.value, ast.Constant):
            self.add("return", node.value, "None")
        self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> None:
        if len(node.ops) == 1:
            for other in _COMPARED[type(node.ops[0])]:
                left, right = ast.unparse(node.left), ast.unparse(node.comparators[0])
                self.add("comparison", node, f"({left} {other} {right})")
        self.generic_visit(node)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        other = _COMPUTED.get(type(node.op))
        if other is not None:
            self.add("arithmetic", node, f"(({ast.unparse(node.left)}) {other} ({ast.unparse(node.right)}))")
        self.generic_visit(node)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        other = " or " if isinstance(node.op, ast.And) else " and "
        self.add("boolean", node, f"({other.join(f'({ast.unparse(value)})' for value in node.values)})")
        self.generic_visit(node)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        if isinstance(node.op, ast.Not | ast.USub):
            self.add("sign", node, f"({ast.unparse(node.operand)})")
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        if name in _TURNED:
            before = "" if isinstance(node.func, ast.Name) else f"{ast.unparse(node.func.value)}."  # type: ignore[attr-defined]
            self.add("extremum", node.func, before + _TURNED[name])
        self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        with self._constants_are("index"):
            self.visit(node.slice)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, bool):
            self.add(self._constant, node, str(not node.value))
        elif isinstance(node.value, int):
            self.add(self._constant, node, str(node.value + 1))
        elif isinstance(node.value, float):
            self.add(self._constant, node, repr(node.value / 2 if node.value else 1.0))

    @contextlib.contextmanager
    def _constants_are(self, kind: str) -> Iterator[None]:
        before, self._constant = self._constant, kind
        yield
        self._constant = before


def package(tree: Path) -> Path:
    """Return the package of a tree."""
    return tree / "src" / "torchrsm"


def mutants(tree: Path, module: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of the source."""
    source = (package(tree) / module).read_text()
    lines = source.splitlines(keepends=True)
    begins = [0]
    for line in lines:
        begins.append(begins[-1] + len(line))

    def place(number: int, column: int) -> int:  # the syntax tree counts columns in bytes
        return begins[number - 1] + len(lines[number - 1].encode()[:column].decode())

    places = Places()
    places.visit(ast.parse(source))
    found = []
    for operator, node, text in places.found:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start, end = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        changed = source[:start] + text + source[end:]
        becomes = changed.splitlines()[node.lineno - 1].strip()
        line = lines[node.lineno - 1].strip()
        found.append(Mutant(module, operator, node.lineno, line, becomes, start, end, text))
    return found


def drawn(tree: Path, modules: list[str], count: int, seed: int) -> list[Mutant]:
    """Draw one mutant of each module in turn, until there are enough or none is left.

    Within a module each operator has its turn, so that the many constants do not crowd out the rest. A mutant's place
    in the draw depends on its own line, so that an edit elsewhere changes little.
    """

    def place(mutant: Mutant) -> bytes:
        return hashlib.sha256(f"{seed} {mutant.module} {mutant.line} {mutant.becomes}".encode()).digest()

    waiting = {}
    for module in modules:
        turns: Counter[str] = Counter()
        ranked = []
        for mutant in sorted(mutants(tree, module), key=place):
            turns[mutant.operator] += 1
            ranked.append((turns[mutant.operator], place(mutant), mutant))
        waiting[module] = [mutant for _, _, mutant in sorted(ranked, key=lambda entry: entry[:2])]
    rounds = itertools.chain.from_iterable(itertools.zip_longest(*waiting.values()))
    return [mutant for mutant in rounds if mutant is not None][:count]


def argued(tree: Path) -> Reasons:
    """Return the reasons why changes make no difference, by module, line and changed line.

    Raises:
        ValueError: no such change can be made any more.
    """
    reasons: Reasons = {}
    for entry in tomllib.loads(ARGUED.read_text())["argued"] if ARGUED.exists() else []:
        key = entry["module"], entry["line"], entry["becomes"]
        if key not in {(m.module, m.line, m.becomes) for m in mutants(tree, entry["module"])}:
            raise ValueError(f"{ARGUED.name}: {key} is not a mutant (any more)")
        reasons[key] = entry["reason"]
    return reasons


class Recorder:
    """A plugin of pytest that writes down the first test that failed."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: Any) -> None:
        self._note(report)

    def pytest_collectreport(self, report: Any) -> None:
        self._note(report)

    def _note(self, report: Any) -> None:
        if report.failed and not self._file.exists():
            self._file.write_text(report.nodeid)


def run_tests(tree: Path, scratch: Path, tests: list[str]) -> None:
    """Run tests in this process, which was forked for them, and end it with pytest's exit status."""
    os.setsid()  # so that the time limit ends what the tests started, too
    os.chdir(tree)
    output = os.open(scratch / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    import numba
    import pytest

    settings: Any = numba.config
    settings.CACHE_DIR = os.environ["NUMBA_CACHE_DIR"] = str(scratch / "numba")
    os.environ["TMPDIR"] = str(scratch)
    os.environ["PYTHONPATH"] = str(tree / "src")
    sys.path[:0] = [str(tree / "src")]
    sys.dont_write_bytecode = True  # bytecode is known by its source's second and size, which mutants share
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--rootdir={tree}", f"--basetemp={scratch / 'pytest'}"]
    recorder = Recorder(scratch / "failed.txt")
    status = pytest.main([*options, *(f"tests/{test}" for test in dict.fromkeys(tests))], plugins=[recorder])
    loaded = sys.modules.get("torchrsm")
    assert loaded is None or str(loaded.__file__).startswith(str(tree))
    os._exit(int(status))


def try_tests(tree: Path, scratch: Path, tests: list[str], seconds: float) -> str | None:
    """Run tests in a process of their own; return what failed, None if all passed."""
    failed = scratch / "failed.txt"
    failed.unlink(missing_ok=True)
    process = multiprocessing.get_context("forkserver").Process(target=run_tests, args=(tree, scratch, tests))
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        assert process.pid is not None
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        return "time limit"
    if process.exitcode == 0:
        return None
    return failed.read_text() if failed.exists() else f"exit status {process.exitcode}"


def tried(
    mutant: Mutant, tree: Path, scratch: Path, seconds: float, reasons: dict[tuple[str, str, str], str]
) -> Outcome:
    """Make a change in the tree, run the tests of its module, take the change back."""
    file = package(tree) / mutant.module
    source, stamp = file.read_text(), file.stat()
    machine_code = scratch / "numba"
    compiles = "import compiled" in source  # its machine code would replace that of the module as it is
    if compiles:
        shutil.copytree(machine_code, scratch / "kept")
    began = time.monotonic()
    file.write_text(mutant.applied(source))
    try:
        by = try_tests(tree, scratch, TESTS[mutant.module], seconds)
    finally:
        file.write_text(source)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        if compiles:
            shutil.rmtree(machine_code)
            (scratch / "kept").rename(machine_code)
    reason = reasons.get((mutant.module, mutant.line, mutant.becomes))
    verdict = "killed" if by is not None else "survived" if reason is None else "argued"
    return Outcome(mutant, verdict, reason if verdict == "argued" else by, round(time.monotonic() - began, 1))


def table(outcomes: list[Outcome]) -> str:
    """Return a Markdown table: what became of the mutants of each module."""
    rows = ["| module | mutants | killed | survived | argued |", "|---|---|---|---|---|"]
    modules = [module for module in TESTS if any(outcome.mutant.module == module for outcome in outcomes)]
    for name in [*modules, "all"]:
        verdicts = [outcome.verdict for outcome in outcomes if name in (outcome.mutant.module, "all")]
        counts = [len(verdicts), *(verdicts.count(verdict) for verdict in ("killed", "survived", "argued"))]
        rows.append(f"| {name if name == 'all' else f'`{name}`'} | {' | '.join(map(str, counts))} |")
    return "\n".join(rows)


def copy_tree(target: Path) -> None:
    """Copy the working tree, without what Git ignores."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if (ROOT / name).is_file():  # a file that was removed is still listed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def measured(modules: list[str], count: int, seed: int, seconds: float) -> list[Outcome]:
    """Draw mutants and try them one after the other in a copy of the tree, whose tests must pass as they are.

    Raises:
        RuntimeError: a test fails without any change.
    """
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as folder:
        tree, scratch = Path(folder) / "tree", Path(folder) / "scratch"
        copy_tree(tree)
        (scratch / "numba").mkdir(parents=True)
        reasons, chosen = argued(tree), drawn(tree, modules, count, seed)
        failed = try_tests(tree, scratch, [test for module in modules for test in TESTS[module]], 10 * seconds)
        if failed is not None:
            print((scratch / "output.txt").read_text()[-4000:], file=sys.stderr)
            raise RuntimeError(f"without any change, a test fails: {failed}")
        for mutant in chosen:
            outcome = tried(mutant, tree, scratch, seconds, reasons)
            outcomes.append(outcome)
            print(f"{outcome.verdict:8} {outcome.seconds:5.0f} s  {mutant.module}:{mutant.number}  {outcome.by or ''}")
            if outcome.by is None:
                print(f"    - {mutant.line}\n    + {mutant.becomes}")
            sys.stdout.flush()
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", choices=list(TESTS), default=list(TESTS), metavar="MODULE")
    parser.add_argument("--mutants", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=300, help="time limit for the tests of one mutant")
    parser.add_argument("--json", type=Path, help="the outcome of each mutant goes here")
    arguments = parser.parse_args()
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    outcomes = measured(arguments.modules, arguments.mutants, arguments.seed, arguments.seconds)
    print(table(outcomes))
    if arguments.json is not None:
        rows = []
        for outcome in outcomes:
            row = {**outcome.mutant._asdict(), "verdict": outcome.verdict, "by": outcome.by, "seconds": outcome.seconds}
            rows.append({name: value for name, value in row.items() if name not in ("start", "end", "text")})
        result = {"seed": arguments.seed, "modules": arguments.modules, "mutants": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(any(outcome.verdict == "survived" for outcome in outcomes))


if __name__ == "__main__":
    main()
