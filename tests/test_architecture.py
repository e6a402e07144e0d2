import ast
import graphlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "torchrsm"
PAGE = (ROOT / "docs" / "science" / "architecture.md").read_text()

# Arrows go one way, from what is used to what uses it: a room imports from the rooms of the lines above it.
ORDER = (
    ("private_folder",),
    ("compiling", "config", "devices", "precision", "registry", "state"),
    ("predictor", "streams", "storage", "rsm"),
    ("rectifiers", "sampling", "scoring", "environments", "openstl"),
    ("model", "baselines", "media"),
    ("learning", "exporting", "interventions"),
    ("systems",),
    ("runs",),
    ("watching", "hub"),
    ("web",),
    ("cli",),
    ("__main__",),
)
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


def modules():
    """Return the file of each module by its name, such as ``torchrsm.rsm.layer``; the package itself is left out."""
    files = {
        ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in SOURCE.rglob("*.py")
    }
    del files["torchrsm"]
    return files


MODULES = modules()


def imported_names(file):
    """Return the full name of whatever a module imports from the package, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("torchrsm.")} - {"torchrsm.__version__"}


def room_of(name):
    return name.split(".")[1]


def imported_modules(name):
    """Return the modules that a module imports while it is itself imported."""
    tree = ast.parse(MODULES[name].read_text())
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("torchrsm"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in MODULES else node.module)
    return {module for module in found if module in MODULES} - {name}


def test_every_room_has_its_place_in_the_order():
    assert {room_of(name) for name in MODULES} == set(RANK)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_one_way(module):
    own = room_of(module)
    for other in {room_of(name) for name in imported_names(MODULES[module])} - {own}:
        assert RANK[other] < RANK[own], f"{module} imports torchrsm.{other}"


def test_no_module_imports_itself_through_others():
    assert list(graphlib.TopologicalSorter({name: imported_modules(name) for name in MODULES}).static_order())


@pytest.mark.parametrize("module", MODULES)
def test_what_is_private_stays_in_its_module(module):
    private = {name for name in imported_names(MODULES[module]) if name.rpartition(".")[2].startswith("_")}
    assert not private - {"torchrsm.__version__"}


def test_streams_know_nothing_of_models():
    rooms = {room_of(name) for room in MODULES if room_of(room) == "streams" for name in imported_names(MODULES[room])}
    assert rooms <= {"streams", "registry", "compiling", "config", "devices", "state", "storage"}


def test_there_is_no_drawer_for_leftovers():
    assert not {"utils", "util", "common", "helpers", "base", "misc"} & {name.rpartition(".")[2] for name in MODULES}


def defines_something(file):
    """Return whether a module defines a function or a class; one that only gathers names does not."""
    return any(isinstance(node, ast.FunctionDef | ast.ClassDef) for node in ast.parse(file.read_text()).body)


def test_the_page_shows_this_order():
    section = PAGE.split("\n## Which folder imports from which\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| \d+ \| ([^|]*) \|", section, re.MULTILINE)
    assert tuple(tuple(re.findall(r"`(\w+)`", row)) for row in rows) == ORDER


def defined_names(file):
    """Return the functions and classes of a module, methods as ``Class.method``."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


WALK = re.findall(r"^\| \d+ \| `([\w/]+\.py)` \| ([^|]*) \|", PAGE, re.MULTILINE)


def test_the_walk_is_short():
    assert 20 <= len(WALK) <= 25
    for section in PAGE.split("\n### From the stream")[1:]:
        files = re.findall(r"^\| \d+ \| `([\w/]+\.py)`", section, re.MULTILINE)
        assert len(files) == len(set(files)) <= 12, "each file stands in the way once"


@pytest.mark.parametrize(("name", "functions"), WALK)
def test_what_the_walk_names_is_there(name, functions):
    names = set(re.findall(r"`([\w.]+)`", functions))
    assert names
    assert names <= defined_names(SOURCE / name)


def test_the_page_lists_every_file_once():
    rows = re.findall(r"^\| ((?:`[\w/]+\.py`(?:, )?)+) \|", PAGE, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)]
    files = {str(file.relative_to(SOURCE)) for file in SOURCE.rglob("*.py") if defines_something(file)}
    assert sorted(listed) == sorted(files)


def test_functions_are_compiled_in_one_way():
    """Which needs no place on disk; see `torchrsm.compiling`. What `vectors` writes is a part of such functions."""
    using = {name for name, file in MODULES.items() if re.search(r"^\s*(from|import) numba", file.read_text(), re.M)}
    assert using == {"torchrsm.compiling", "torchrsm.rsm.kernels.vectors"}
