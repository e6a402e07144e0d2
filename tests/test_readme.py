import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from torchrsm import cli
from torchrsm.media.films import write_mp4
from torchrsm.rsm import kernels

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    """Return each `torchrsm` command line that a page or the Makefile shows, without its comment."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        found += re.findall(r"^(?:\$ | {4})torchrsm (.*)$", text, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    values = dict(re.findall(r"^(\w+) [?:]?= (.*)$", makefile, re.MULTILINE))
    for line in re.findall(r"^\t@?\$\(BIN\)/torchrsm (.*)$", makefile, re.MULTILINE):
        found.append(re.sub(r"\$\((\w+)\)", lambda name: values[name[1]], line))
    return [" ".join(shlex.split(line, comments=True)) for line in found]


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Work in an empty folder; the examples write to runs/. Later tests find the one thread they expect."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    kernels.set_threads(1)


def test_the_python_example_runs(in_a_folder, capsys):
    names = {}
    exec(compile(EXAMPLES[0], "README.md", "exec"), names)
    *table, lifetime = capsys.readouterr().out.splitlines()
    (error,) = re.findall(r"squared error, all_predictable +2\.\.100 +(\d+\.\d+) ± \d+\.\d+\n", "\n".join(table))
    assert float(error) < 1
    assert float(lifetime) > 20
    assert names["prediction"].frame.shape == (4, 1, 30, 30)
    assert names["dream"].shape == (4, 150, 1, 30, 30)


def test_the_python_example_with_a_film_runs(in_a_folder, capsys):
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with open("clip.mp4", "wb") as file:
        write_mp4((np.roll(picture, 2 * step, axis=1) for step in range(60)), file, 20)
    exec(compile(EXAMPLES[1], "README.md", "exec"), {})
    scores, *surprises = capsys.readouterr().out.splitlines()
    assert "all_predictable" in scores
    assert len(surprises) == 60
    assert all(float(surprise) >= 0 for surprise in surprises)


def test_the_console_example_covers_every_command():
    (example,) = re.findall(r"^```console\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    lines = example.splitlines()
    assert all(line.startswith("$ torchrsm ") for line in lines)
    assert {line.split()[2] for line in lines} == set(re.findall(r"^  (\w+) ", cli.USAGE, re.MULTILINE))
    assert {" ".join(shlex.split(line)[2:]) for line in lines} <= set(commands())


class Understood(Exception):  # noqa: N818
    """A command line was parsed and would now do its work."""


@pytest.mark.parametrize("line", commands())
def test_every_command_line_is_understood(in_a_folder, monkeypatch, line):
    def work(*arguments, **settings):
        raise Understood

    for name in ("Trainer", "Bench", "load", "find_model", "PRESETS", "VideoReader", "torchrsm.web.library.Library"):
        place = (name,) if "." in name else (cli, name)
        monkeypatch.setattr(*place, type("Work", (), {"__init__": work, "items": work}))
    monkeypatch.setattr(
        cli, "frame_shape", lambda stream: (stream.channels, 48, 64) if stream.kind == "video" else (1, 32, 32)
    )
    for folder in ("runs/demo", "runs/balls", "benchmarks/results", "docs"):
        (in_a_folder / folder).mkdir(parents=True)
    with pytest.raises(Understood):
        cli.main(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_reading_order_names_every_file_once():
    source = ROOT / "src" / "torchrsm"
    rows = re.findall(r"^\| ((?:`[\w/]+\.py`(?:, )?)+) \|", README, re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([\w/]+\.py)`", row)]
    files = {str(file.relative_to(source)) for file in source.rglob("*.py")}
    # What only gathers names is not listed.
    gathers = {"__init__.py", "streams/__init__.py", "baselines/__init__.py", "web/__init__.py"}
    assert sorted(listed) == sorted(files - gathers)


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^ {4}|`)make ([a-z]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "install"} <= named <= targets
