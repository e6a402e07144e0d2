import ast
import importlib.metadata
import importlib.resources
import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import torchrsm
from torchrsm.storage.shipped import models_folder

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "torchrsm"


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


def test_type_checkers_see_the_names_that_are_imported_when_used():
    """They are listed three times: for type checkers, for the import, and for all who ask what is public."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in checked.body for alias in node.names}
    homes = {name: "torchrsm.scoring" if name == "physics" else "torchrsm" for name in ("physics", "streams")}
    assert seen == {**homes, **{name: module for module, names in torchrsm._NAMES.items() for name in names}}
    assert sorted(seen) == sorted(torchrsm.__all__)


def test_every_name_can_be_imported_at_once_and_no_other():
    program = "from torchrsm import *; import torchrsm; assert set(torchrsm.__all__) <= set(dir()) & set(dir(torchrsm))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    with pytest.raises(AttributeError, match="module 'torchrsm' has no attribute 'Trainr'"):
        _ = torchrsm.Trainr


def test_it_runs_where_nothing_can_be_written(tmp_path):
    """From an installation that is read-only, for a user without a home, in a system without temporary files."""
    package = tmp_path / "installed" / "torchrsm"
    for file in SOURCE.rglob("*.py"):
        copy = package / file.relative_to(SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
        (copy.parent / "__pycache__").touch()  # a folder of this name cannot be made
    nowhere = dict.fromkeys(("HOME", "XDG_CACHE_HOME"), "/dev/null")
    program = (
        "import tempfile; tempfile.tempdir = '/dev/null'; import torchrsm, torchrsm.rsm.kernels; "
        "print(torchrsm.__file__, float(torchrsm.streams.bouncing_ball_sequences(range(1), seed=0).frames.sum()) > 0)"
    )
    environment = {**os.environ, **nowhere, "PYTHONPATH": str(package.parent)}
    environment.pop("NUMBA_CACHE_DIR", None)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == (f"{package / '__init__.py'} True\n", "")
