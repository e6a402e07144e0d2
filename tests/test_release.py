"""What a release needs: workflows that name what is there, a version in one place, notes."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from torchrsm import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github").rglob("*.yml"))


@pytest.mark.parametrize("file", [*WORKFLOWS, ROOT / ".pre-commit-config.yaml"], ids=lambda file: file.name)
def test_files_for_the_host_can_be_read_and_name_what_exists(file):
    text = file.read_text()
    assert yaml.safe_load(text)
    for name in re.findall(r"(?:benchmarks|src|tests)/[\w/]+\.py", text):
        assert (ROOT / name).is_file(), name
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"run: make (\w+)", text)) <= targets


def test_the_workflow_tries_each_python_that_is_named():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {match[1] for name in project["classifiers"] if (match := re.search(r"Python :: (3\.\d+)$", name))}
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    assert set(jobs["linux"]["strategy"]["matrix"]["python"]) == named
    assert {"macos-latest", "windows-latest"} == set(jobs["other-systems"]["strategy"]["matrix"]["system"])


def test_the_version_is_the_same_everywhere():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == __version__
    assert re.search(
        rf"^## \[(?:{re.escape(__version__)}|Unreleased)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_every_extra_is_named_where_it_is_missing():
    """Packages of extras are named in `torchrsm.cli.main`, so that one line says what to install."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    from torchrsm.cli.main import _EXTRAS

    assert set(_EXTRAS.values()) == set(extras) - {"dev", "docs", "gym"}
