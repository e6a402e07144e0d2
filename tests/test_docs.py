"""The documentation: its pages build without a warning, name all that is public, link well, and its code runs."""

import html.parser
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import torchrsm
from torchrsm import baselines, physics, streams
from torchrsm.baselines import BASELINES
from torchrsm.rectifiers import RECTIFIERS
from torchrsm.rsm import kernels
from torchrsm.runs.presets import PRESETS
from torchrsm.streams.settings import STREAMS
from torchrsm.streams.splits import HELD_OUT

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.md"))
REGISTRIES = (BASELINES, HELD_OUT, PRESETS, RECTIFIERS, STREAMS)


class Page(html.parser.HTMLParser):
    """The anchors of a page, and where it links to."""

    def __init__(self, file):
        super().__init__()
        self.anchors, self.targets = set(), []
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.anchors |= {attributes[name] for name in ("id", "name") if attributes.get(name)}
        self.targets += [attributes[name] for name in ("href", "src") if attributes.get(name)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    environment = {"NO_MKDOCS_2_WARNING": "1", "PATH": "", "HOME": str(folder)}
    made = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert (made.returncode, made.stdout, made.stderr) == (0, "", "")
    return {file.relative_to(folder): Page(file) for file in folder.rglob("*.html")}, folder


def test_every_public_name_is_in_the_reference(site):
    pages, _ = site
    anchors = set().union(*(page.anchors for page in pages.values()))
    public = ((torchrsm, "torchrsm"), (streams, "torchrsm.streams"), (baselines, "torchrsm.baselines"))
    names = defaultdict(set)  # of each object, which may have several
    for module, place in (*public, (physics, "torchrsm.scoring.physics")):
        for name in module.__all__:
            names[id(getattr(module, name))].add(f"{place}.{name}")
    missing = [sorted(of_one) for of_one in names.values() if not of_one & anchors]
    assert missing == [["torchrsm.physics"], ["torchrsm.streams"]]  # modules, of which each name is there
    assert len(names) > 150


def test_every_link_of_the_site_leads_somewhere(site):
    pages, folder = site
    checked = 0
    for name, page in pages.items():
        for target in page.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc or target.startswith("data:") or name.name == "404.html":
                continue
            path = (folder / name.parent / unquote(parts.path)).resolve() if parts.path else folder / name
            path = path / "index.html" if path.is_dir() else path
            assert path.is_file(), f"{name}: {target}"
            linked = pages.get(path.relative_to(folder))
            if parts.fragment and linked:
                assert parts.fragment in linked.anchors, f"{name}: {target}"
            checked += 1
    assert checked > 1000


def test_nothing_of_the_site_is_fetched_from_elsewhere(site):
    """So that it can be read without a network."""
    _, folder = site
    fetched = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="?(https?://[^\s">]+)')
    for file in folder.rglob("*.html"):
        assert not fetched.findall(file.read_text()), file


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Work in an empty folder; what a page adds to the registries is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    before = [dict(registry) for registry in REGISTRIES]
    yield tmp_path
    for registry, entries in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(entries)
    kernels.set_threads(1)


@pytest.mark.no_cover
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_code_of_a_tutorial_runs(page, in_a_folder, capfd):
    names = {}
    for block in re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        exec(compile(block, str(page), "exec"), names)
    said = capfd.readouterr().out
    numbers = [float(number) for number in re.findall(r"^(\d+\.\d+)(?: ± .*)?$", said, re.MULTILINE)]
    better = {"own-video": numbers[:2], "own-stream": numbers[:2], "own-system": numbers[:2]}
    if page.stem in better:  # what learned, then the system that repeats the last frame
        learned, copied = better[page.stem]
        assert learned < copied
    expected = {
        "dreams": "frames with three balls: 1.0",
        "many-cores": "True",
        "own-rectifier": "rectified",
        "watch": "frame 90 surprise ",
    }
    assert expected.get(page.stem, "") in said
