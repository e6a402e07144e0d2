"""Any terminal, any reader of the output, any place to be installed in."""

import contextlib
import io
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from small_films import film, pictures
from tests.cli.tiny_run import train

from torchrsm.cli import main
from torchrsm.cli.console import prepared
from torchrsm.runs.settings import load_run_config

IMPORTED = "import sys, json; {}; print(json.dumps(sorted(m for m in sys.modules if '.' not in m)), file=sys.stderr)"
HEAVY = {"torch", "numba", "numpy", "matplotlib", "scipy", "skimage", "PIL", "av", "pydantic", "tyro", "rich"}


def imported(program):
    done = subprocess.run([sys.executable, "-c", IMPORTED.format(program)], capture_output=True, text=True, check=True)
    return set(json.loads(done.stderr))


@pytest.mark.parametrize(
    "program",
    [
        "import torchrsm",
        "import torchrsm.cli",
        "from torchrsm.cli import main; assert main(['--help']) == 0",
        "from torchrsm.cli import main; assert main(['--version']) == 0",
        "import torchrsm; torchrsm.shipped_models(); dir(torchrsm)",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(program):
    found = imported(program)
    assert "torchrsm" in found
    assert not found & HEAVY


class Terminal(io.TextIOWrapper):
    """A standard stream of some encoding, whose bytes are kept."""

    def __init__(self, encoding):
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    @property
    def shown(self):
        self.flush()
        return self.buffer.getvalue()


@contextlib.contextmanager
def terminal(encoding):
    """Let both standard streams be one of this encoding."""
    one = Terminal(encoding)
    with contextlib.redirect_stdout(one), contextlib.redirect_stderr(one):
        yield one


@pytest.mark.parametrize(
    ("arguments", "shows"),
    [
        (["--help"], b"usage: torchrsm COMMAND"),
        (["evaluate", "copy-last", "--sequences", "2"], b"mean +- sd over sequences"),
        (["evaluate", "copy-last", "--sequences", "2", "--rollout-steps", "2"], b"kinetic energy, px^2"),
        (["evaluate", "--help"], b"usage: torchrsm evaluate"),
        (["presets"], b"simvp"),
        (["info", "balls"], b"layer 2"),
    ],
)
def test_a_terminal_that_knows_ascii_only_shows_what_looks_alike(arguments, shows):
    with terminal("ascii") as one:
        assert main(arguments) == 0
        assert shows in one.shown
    assert one.errors == "strict"  # as it was


def test_bad_input_is_one_line_on_such_a_terminal():
    with terminal("ascii") as one:
        assert main(["info", "überall-\udcff…"]) == 2
        assert one.shown.startswith(b"torchrsm: no model folder \\xfcberall-\\xff...; shipped by name: balls")
        assert main(["train", "tiny", "--out", "x", "--sped", "1"]) == 2
        assert one.shown.count(b"\n") == 2


def test_a_byte_that_is_no_text_is_shown_in_utf_8_too():
    with terminal("utf-8") as one:
        assert main(["info", "über\udcff"]) == 2
        assert one.shown.startswith("torchrsm: no model folder über\\xff;".encode())


def test_a_stream_that_is_closed_shows_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--version"]) == 0
    assert train(tmp_path / "run", steps=1) == 0
    assert sys.stdout is None


def test_a_warning_is_one_line(capsys):
    with prepared():
        warnings.warn("frames 3 to 5\nare missing", UserWarning, stacklevel=1)
    assert capsys.readouterr().err == "torchrsm: frames 3 to 5 are missing\n"


@contextlib.contextmanager
def reader_that_left():
    """Make the standard output a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    before = sys.stdout
    sys.stdout = open(writing, "w", encoding="utf-8")  # noqa: SIM115
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.close()
        sys.stdout = before


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a film and an array."""
    monkeypatch.chdir(tmp_path)
    film(tmp_path / "clip.mp4", pictures(12))
    np.save("array.npy", np.zeros((1, 5, 30, 30), np.float32))
    return tmp_path


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["presets"],
        ["info", "balls"],
        ["train", "balls", "--help"],
        ["evaluate", "copy-last", "--frames", "array.npy"],
        ["predict", "copy-last", "clip.mp4", "--out", "film.mp4"],
        ["dream", "copy-last", "--frames", "array.npy", "--prime", "3", "--steps", "2", "--out", "dream.npz"],
        ["watch", "clip.mp4", "--height", "16"],
    ],
)
def test_a_reader_that_leaves_ends_a_command_quietly(folder, capsys, arguments):
    with reader_that_left():
        assert main(arguments) == 141
    assert not [line for line in capsys.readouterr().err.splitlines() if "is read as" not in line]
    assert not list(folder.glob(".*"))  # no half of a file


def test_what_a_training_learned_is_kept_when_the_reader_leaves(tmp_path, capsys):
    with reader_that_left():
        assert train(tmp_path / "run", steps=40) == 141
    assert capsys.readouterr().err == ""
    assert main(["train", "--resume", "--out", str(tmp_path / "run")]) == 0
    assert f"resuming {tmp_path / 'run'} at step 10\n" in capsys.readouterr().out
    assert load_run_config(tmp_path / "run").training.steps == 40


def test_python_does_not_complain_of_the_pipe_at_its_end():
    command = f"{sys.executable} -m torchrsm --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (141, "", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_an_output_that_is_full_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "torchrsm", "--help"], stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (2, b"torchrsm: No space left on device\n")
