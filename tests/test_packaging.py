import ast
import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import torchrsm
from torchrsm.shipped import models_folder

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "torchrsm"

# The way that imports go: each part imports only from those before it.
ORDER = (
    ("config", "checkpoint", "functional", "predictor", "metrics", "muon", "shipped", "streams"),
    ("kernels", "physics", "model_folder", "learner"),
    ("layer", "rectifier", "evaluation", "media", "baselines"),
    ("stack", "video", "sources"),
    ("model",),
    ("learning", "systems"),
    ("online_learner", "sequence_learner"),
    ("runs",),
    ("training",),
    ("presets",),
    ("bench", "watching"),
    ("web",),
    ("cli",),
    ("__main__",),
)
RANK = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def part_of(module):
    return module.split(".")[1]


def modules():
    """Return each module's name, such as ``torchrsm.kernels.cpu``, and its file; the package itself is left out."""
    files = {
        ".".join(file.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__"): file
        for file in SOURCE.rglob("*.py")
    }
    del files["torchrsm"]
    return files


def imports(file):
    """Return the parts of the package that a module imports, wherever the import stands."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {part_of(name) for name in names if name.startswith("torchrsm.")}
    return found - {"__version__"}


def test_the_version_is_that_of_the_installed_package():
    assert torchrsm.__version__ == importlib.metadata.version("torchrsm")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in project["project"]["dynamic"]
    assert ROOT / project["tool"]["hatch"]["version"]["path"] == SOURCE / "__init__.py"


def test_the_changelog_and_the_citation_know_the_version():
    assert torchrsm.__version__ in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {torchrsm.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_package_ships_its_types():
    assert importlib.resources.files("torchrsm").joinpath("py.typed").is_file()


def test_a_wheel_holds_the_package_and_its_models_where_they_are_looked_for():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    # Not `force-include`, which would put copies into an editable install, where they grow old.
    assert set(wheel) == {"only-include", "sources", "dev-mode-dirs"}
    assert set(wheel["sources"]) == set(wheel["only-include"])
    places = {ROOT / source: Path("site-packages", place) for source, place in wheel["sources"].items()}
    package = places[SOURCE]
    assert package == Path("site-packages", "torchrsm")
    assert places[ROOT / "models"] == models_folder(package)
    assert (ROOT / "models" / "README.md").is_file()
    assert ROOT / wheel["dev-mode-dirs"][0] == SOURCE.parent


def test_a_source_archive_leaves_no_model_out():
    """It takes every file that git does not ignore, and a wheel is often made from it."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    assert set(build["targets"]) == {"wheel"}
    assert set(build) == {"targets"}
    ignored = (ROOT / ".gitignore").read_text().split()
    assert not [pattern for pattern in ignored if "models" in pattern or "safetensors" in pattern or ".json" in pattern]


def test_the_public_names_exist_once_and_in_order():
    assert all(hasattr(torchrsm, name) for name in torchrsm.__all__)
    assert len(set(torchrsm.__all__)) == len(torchrsm.__all__)


def test_imports_are_light():
    heavy = ["matplotlib.pyplot", "skimage", "tensorboard", "torch.utils.tensorboard", "torchvision", "lightning"]
    program = f"import sys, json, torchrsm.cli; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    assert done.stderr == ""


def test_every_part_has_its_place_in_the_order():
    assert {part_of(name) for name in modules()} == set(RANK)


@pytest.mark.parametrize("module", modules())
def test_imports_go_one_way(module):
    own = part_of(module)
    for other in imports(modules()[module]) - {own}:
        assert RANK[other] < RANK[own], f"{module} imports torchrsm.{other}"


@pytest.mark.parametrize("part", ["functional", "predictor", "metrics", "streams", "config", "checkpoint", "shipped"])
def test_what_stands_below_imports_nothing_else_of_the_package(part):
    found = [imports(file) for name, file in modules().items() if part_of(name) == part]
    assert found
    assert set().union(*found) <= {part}


def test_nobody_imports_the_command_line():
    others = [file for name, file in modules().items() if part_of(name) not in ("cli", "__main__")]
    assert [file.name for file in [*others, SOURCE / "__init__.py"] if "cli" in imports(file)] == []
    assert "torchrsm.cli" in modules()
