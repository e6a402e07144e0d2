import importlib
import json
import pkgutil
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from torchrsm import cli, preset
from torchrsm.cli import parsing
from torchrsm.cli.main import USAGE
from torchrsm.media.films import write_mp4
from torchrsm.rsm import kernels
from torchrsm.runs.settings import save_run_config

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "models").rglob("*.md"))]


def blocks(page, language):
    """Return the code blocks of a page that are in a language."""
    text = (ROOT / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


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


def run_example(page, number):
    """Execute a Python example of a page; return the names that it leaves."""
    names = {}
    exec(compile(blocks(page, "python")[number], page, "exec"), names)
    return names


@pytest.fixture
def clip(in_a_folder):
    """Write the film that the examples read: 60 frames of a picture that slides to the right."""
    picture = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    with open("clip.mp4", "wb") as file:
        write_mp4((np.roll(picture, 2 * step, axis=1) for step in range(60)), file, 20)


def test_every_python_example_is_run_below():
    """Those of tutorials are run in `test_docs`."""
    pages = [page for page in PAGES if page.parent.name != "tutorials"]
    counts = {str(page.relative_to(ROOT)): len(blocks(page, "python")) for page in pages}
    assert {page: count for page, count in counts.items() if count} == {
        "README.md": 2,
        "docs/guide/own-video.md": 1,
        "docs/guide/python.md": 3,
    }


def test_the_first_example_scores_and_dreams(in_a_folder, capsys):
    names = run_example("README.md", 0)
    table = capsys.readouterr().out
    (error,) = re.findall(r"squared error, all_predictable +2\.\.100 +(\d+\.\d+) ± \d+\.\d+\n", table)
    assert float(error) < 1
    assert names["prediction"].frame.shape == (4, 1, 30, 30)
    assert names["dream"].shape == (4, 150, 1, 30, 30)


def test_the_second_example_trains_on_a_film(clip, in_a_folder):
    names = run_example("README.md", 1)
    assert names["run"].training.minutes == 0.1
    assert (in_a_folder / "runs" / "film" / "model.safetensors").is_file()


def test_the_example_with_a_film_scores_and_watches(clip, capsys):
    run_example("docs/guide/own-video.md", 0)
    scores, *surprises = capsys.readouterr().out.splitlines()
    assert "all_predictable" in scores
    assert len(surprises) == 60
    assert all(float(surprise) >= 0 for surprise in surprises)


def test_the_examples_with_systems_and_settings_run(in_a_folder, capsys):
    run_example("docs/guide/python.md", 0)
    errors = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(errors["balls"]) < 1 < float(errors["copy-last"])
    names = run_example("docs/guide/python.md", 1)
    assert names["state"].frame.device == names["model"].like.device
    assert float(capsys.readouterr().out.split()[0]) > 1
    run = run_example("docs/guide/python.md", 2)["run"]
    assert (run.training.minutes, run.training.steps, run.training.batch_size) == (None, 10, 8)


def test_the_readme_is_short_and_shows_ten_lines_of_python():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    statements = [line for line in blocks("README.md", "python")[0].splitlines() if line.strip()]
    assert len(statements) <= 10


def test_the_page_of_commands_covers_every_command():
    (example,) = blocks("docs/guide/commands.md", "console")
    lines = [*example.splitlines(), *"".join(blocks("README.md", "console")).splitlines()]
    assert all(line.startswith("$ torchrsm ") for line in lines)
    assert {line.split()[2] for line in lines} == set(re.findall(r"^  (\w+) ", USAGE, re.MULTILINE))
    assert {" ".join(shlex.split(line)[2:]) for line in lines} <= set(commands())


class Understood(Exception):  # noqa: N818
    """A command line was parsed and would now do its work."""


@pytest.mark.parametrize("line", commands())
def test_every_command_line_is_understood(in_a_folder, monkeypatch, line):
    def parsed(*arguments, **settings):
        parsing.parse(*arguments, **settings)
        raise Understood

    for file in pkgutil.iter_modules(cli.__path__):
        module = importlib.import_module(f"torchrsm.cli.{file.name}") if file.name != "__main__" else parsing
        if module is not parsing and hasattr(module, "parse"):
            monkeypatch.setattr(module, "parse", parsed)
    Path("runs/balls").mkdir(parents=True)
    Path("runs/balls/run.json").write_bytes(save_run_config(preset("balls")))  # for those that resume it
    with pytest.raises(Understood):
        cli.main(shlex.split(line))


def test_the_commands_for_a_video_of_ones_own_work_one_after_another(in_a_folder, capsys):
    (example,) = [block for block in blocks("README.md", "console") if "train video" in block]
    shorter = {
        "dream balls": "dream balls --prime 20 --steps 20",
        "--minutes 5": "--steps 2",
        "torchrsm predict": "torchrsm predict --frames 5",
        "watch": "watch --frames 3",
    }
    for line in example.splitlines():
        for shown, run in shorter.items():
            line = line.replace(shown, run)
        assert cli.main(shlex.split(line)[2:]) == 0, capsys.readouterr().err
    assert Path("prediction.mp4").stat().st_size > 0
    said = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["frame"] for line in said[-3:]] == [0, 1, 2]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text()
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        linked = page.parent / target if target else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_make_targets_exist():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in re.findall(r"(?:^ {4}|`)make ([a-z]+)", page.read_text(), re.MULTILINE)}
    assert {"demo", "test", "install"} <= named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_that_a_page_names_exist(page):
    ours = re.compile(r"`((?:src/torchrsm|tests|benchmarks|docs|models|[a-z_]+)/[\w/]*(?:\.\w+)?)`")
    for name in ours.findall(page.read_text()):
        if name.split("/")[0] not in ("runs", "shared"):  # a run's folder is not part of the tree
            assert (ROOT / name).exists() or (ROOT / "src" / "torchrsm" / name).exists(), name


def test_the_pages_and_sections_that_the_code_names_exist():
    for file in [*(ROOT / "src").rglob("*.py"), *(ROOT / "tests" / "reference").rglob("*.py")]:
        text = " ".join(file.read_text().split())
        for name, section in re.findall(r'([\w/]+\.md)(?:, "([^"]+)")?', text):
            if name in ("table.md", "card.md"):  # written by a bench, and beside a model
                continue
            assert (ROOT / name).is_file(), f"{file} names {name}"
            headings = re.findall(r"^#+ (.*)$", (ROOT / name).read_text(), re.MULTILINE)
            assert not section or section in headings, f"{file} names a section {section!r} of {name}"
