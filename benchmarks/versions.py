"""Installs the wheel with the oldest and the newest versions that pyproject.toml allows, and tries it there.

    python benchmarks/versions.py [--python 3.11 /opt/python3.12/bin/python3.12 ...] [--versions oldest newest]
                                  [--torch 2.14.1] [-- options of uv, such as --torch-backend cpu]

For each Python that pyproject.toml names it makes two environments in a temporary folder: one with the lowest versions
that pyproject.toml allows, one with the newest. The lowest versions are worked out from pyproject.toml in each run; on
the first Python named there they must be the bounds themselves, so that no bound is stated which was never tried. (A
later Python may have no wheel of a version that old; the table then shows the lowest that there is.)

In each environment the installation is read-only and there is no home. The commands are tried without the extras, then
with them, then a part of the test suite is run. The table says which versions were tried and how it went. The exit
code is 1 where an installation or a check failed, or nothing could be tried. A Python that cannot be had is named below
the table and does not count as a failure.

Needs a network, about 15 minutes an environment on two cores, and up to 8 GB of disk where torch comes with CUDA.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = [match[1] for name in PROJECT["classifiers"] if (match := re.search(r"Python :: (3\.\d+)$", name))]
TESTS = [  # what depends on other packages, and is quick
    "tests/cli/test_main.py",
    "tests/golden",
    "tests/media/test_pictures.py",
    "tests/rsm/test_oracle.py",
    "tests/rsm/test_engines.py",
    "tests/runs/test_settings.py",
    "tests/storage",
    "tests/streams/test_array.py",
    "tests/streams/test_films.py",
    "tests/streams/test_pictures.py",
    "tests/test_compiling.py",
    "tests/test_config.py",
    "tests/test_exporting.py",
    "tests/test_state.py",
    "tests/web/test_server.py",
]
SECONDS = 1800  # for one command; the slowest is the installation


class CheckError(Exception):
    """A check did not give what it should."""


class AbsentError(Exception):
    """A Python or a version cannot be had here."""


class Environment(NamedTuple):
    """A virtual environment, and the folder in which its commands run."""

    folder: Path
    work: Path

    @property
    def packages(self) -> Path:
        """The folder into which packages are installed."""
        return next(self.folder.glob("lib/python*/site-packages"))

    def run(self, *command: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment, whose installation is read-only and whose user has no home."""
        program, *arguments = map(str, command)
        path = self.folder / "bin" / program
        return run(*_as_plain_user(), path, *arguments, code=code, folder=self.work, env=self.variables)

    @property
    def variables(self) -> dict[str, str]:
        """The variables of its commands: no home, and a place for temporary files that goes with the rest."""
        return {"PATH": os.environ["PATH"], "TMPDIR": str(self.work), "HOME": os.devnull, "PYTHONNOUSERSITE": "1"}

    def read_only(self, read_only: bool) -> None:
        """Take the right to write to the folders of the installation away, or give it back."""
        for folder in [self.packages, *(path for path in self.packages.rglob("*") if path.is_dir())]:
            folder.chmod(0o555 if read_only else 0o755)


def run(
    *command: str | Path, code: int = 0, folder: Path = ROOT, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command, and raise `CheckError` with the end of what it said if its exit code is another."""
    try:
        done = subprocess.run(
            [str(part) for part in command], cwd=folder, env=env, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as error:
        raise CheckError(f"{Path(command[0]).name} {command[1]} took more than {SECONDS} s") from error
    if done.returncode != code:
        said, line = (done.stdout + done.stderr)[-3000:], " ".join(map(str, command))
        raise CheckError(f"exit code {done.returncode} instead of {code}: {line}\n{said}")
    return done


def _as_plain_user() -> list[str]:
    """Return what makes root obey the rights of files, as any other user does."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        raise AbsentError("setpriv, to try a read-only installation as root")
    return ["setpriv", "--inh-caps=-all", "--bounding-set=-all"]


def demand(condition: bool, message: str) -> None:
    if not condition:
        raise CheckError(message)


def starts(environment: Environment) -> None:
    """It is imported from the wheel, without a warning; its version and all helps are shown."""
    script = "import torchrsm; print(torchrsm.__file__, torchrsm.__version__)"
    place, version = environment.run("python", "-W", "error", "-c", script).stdout.split()
    demand(Path(place).is_relative_to(environment.packages), f"torchrsm was imported from {place}")
    demand(environment.run("torchrsm", "--version").stdout == f"{version}\n", "--version differs from __version__")
    demand("usage: torchrsm" in environment.run("torchrsm", "--help").stdout, "--help shows no usage")
    for command in ("train balls", "predict", "watch", "serve", "evaluate", "bench", "dream", "info"):
        environment.run("torchrsm", *command.split(), "--help")


def scores(environment: Environment) -> None:
    """The shipped model has the scores that it has everywhere."""
    environment.run("torchrsm", "evaluate", "balls", "--sequences", "4", "--json", "scores.json")
    found = json.loads((environment.work / "scores.json").read_text())["frame_squared_error"]["all_predictable"]["mean"]
    demand(abs(found - 0.252) < 0.001, f"squared error {found} instead of 0.252")


def films(environment: Environment) -> None:
    """A dream is written as a film, a model learns from it and predicts it; plots and pictures are drawn."""
    environment.run("torchrsm", "dream", "balls", "--out", "clip.mp4")
    environment.run("torchrsm", "dream", "balls", "--steps", "20", "--out", "dream.png")
    environment.run("torchrsm", "train", "video", "clip.mp4", "--out", "film", "--steps", "20")
    environment.run("torchrsm", "predict", "film", "clip.mp4", "--frames", "20", "--out", "prediction.mp4")
    options = ["--rollout-steps", "20", "--plot", "plot.png"]
    said = environment.run("torchrsm", "evaluate", "balls", "--sequences", "2", *options).stderr
    demand(not said, f"evaluate said on stderr: {said}")
    for name in ("clip.mp4", "dream.png", "prediction.mp4", "plot.png"):
        demand((environment.work / name).stat().st_size > 1000, f"{name} is empty")
    demand(not (environment.work / "~").exists(), "a folder named ~ was made in the working folder")


def training(environment: Environment) -> None:
    """A model is trained, the run goes on for longer, and its folder is read."""
    environment.run("torchrsm", "train", "balls", "--out", "run", "--steps", "20")
    said = environment.run("torchrsm", "train", "--resume", "--out", "run", "--steps", "30").stdout
    demand("30 steps" in said, f"the run did not go on to 30 steps: {said[-300:]}")
    environment.run("torchrsm", "info", "run")


def without_extras(environment: Environment) -> None:
    """A command that needs an extra says so in one line."""
    for extra, command in {
        "web": ["serve"],
        "digits": ["train", "digits", "--out", "digits", "--steps", "2"],
        "tensorboard": ["train", "balls", "--out", "board", "--steps", "2", "--tensorboard"],
    }.items():
        said = environment.run("torchrsm", *command, code=2).stderr
        demand(said.count("\n") == 1 and f"torchrsm[{extra}]" in said, f"without {extra}, {command} said: {said}")


def with_extras(environment: Environment) -> None:
    """The page is served, digits and TensorBoard's record can be had."""
    environment.run("torchrsm", "train", "digits", "--out", "digits", "--steps", "2")
    environment.run("torchrsm", "train", "balls", "--out", "board", "--steps", "2", "--tensorboard")
    demand(any((environment.work / "board").rglob("events.*")), "no record for TensorBoard was written")
    command = [*_as_plain_user(), str(environment.folder / "bin" / "torchrsm"), "serve", "--port", "0"]
    with subprocess.Popen(
        command, cwd=environment.work, env=environment.variables, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            line = server.stdout.readline()
            address = re.search(r"http://\S+", line)
            demand(address is not None, f"serve said {line!r}")
            with urllib.request.urlopen(address[0], timeout=60) as answer:
                demand(b"<html" in answer.read().lower(), "the page is no HTML")
        finally:
            server.terminate()


def tests(environment: Environment) -> None:
    """A part of the test suite, which the source archive holds, passes on the installed wheel."""
    (archive,) = environment.folder.parents[1].glob("dist/*.tar.gz")
    shutil.unpack_archive(archive, environment.work / "source", filter="data")
    (tree,) = (environment.work / "source").iterdir()
    python = environment.folder / "bin" / "python"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run(python, "-m", "pytest", "-q", "-x", *TESTS, folder=tree, env=env)


BARE: list[Callable[[Environment], None]] = [starts, scores, films, training, without_extras]
FULL: list[Callable[[Environment], None]] = [with_extras, tests]


class Column(NamedTuple):
    """One environment in the table: the versions in it, and how each check went there."""

    name: str
    versions: dict[str, str]
    outcomes: dict[str, str]


class Bench:
    """Builds the wheel once and tries it in one environment after another."""

    def __init__(self, folder: Path, torch: str | None, options: list[str]) -> None:
        self.folder, self.options = folder, options
        run(sys.executable, "-m", "venv", folder / "tools")
        run(folder / "tools" / "bin" / "python", "-m", "pip", "install", "-q", "uv")
        self.uv = folder / "tools" / "bin" / "uv"
        run(self.uv, "build", "-q", "--out-dir", folder / "dist", ROOT)  # the source archive, and from it the wheel
        (self.wheel,) = (folder / "dist").glob("*.whl")
        self.newest = folder / "newest.txt"
        self.newest.write_text(f"torch<={torch}\n" if torch else "")

    def try_out(self, python: Path, number: str, side: str) -> Column:
        """Make one environment, run the checks in it, and delete it."""
        column = Column(f"{number} {side}", {}, {})
        print(f"\n{column.name}", flush=True)
        with tempfile.TemporaryDirectory(dir=self.folder, prefix=f"{number}-{side}-") as name:
            environment = Environment(Path(name) / "environment", Path(name) / "work")
            environment.work.mkdir()
            try:
                constraints = self._constraints(side, number)
                run(self.uv, "venv", "-q", "--python", python, environment.folder)
                self._install(environment, str(self.wheel), constraints)
                self._check(environment, BARE, column)
                self._install(environment, f"{self.wheel}[dev]", constraints)
            except CheckError as error:
                print(error)
                column.outcomes["install"] = "FAILED"
                return column
            column.versions.update(self._versions(environment))
            if side == "oldest" and number == PYTHONS[0]:
                lowest = bounds()
                wrong = [
                    f"{name} {had}" for name, had in column.versions.items() if _plain(lowest[name]) != _plain(had)
                ]
                column.outcomes["bounds"] = f"FAILED: {', '.join(wrong)}" if wrong else "ok"
            self._check(environment, FULL, column)
        return column

    def _constraints(self, side: str, number: str) -> Path:
        if side == "newest":
            return self.newest
        file = self.folder / f"oldest-{number}.txt"
        options = ["--resolution", "lowest-direct", "--only-binary", ":all:", "--all-extras", "--no-annotate"]
        source = ROOT / "pyproject.toml"
        run(self.uv, "pip", "compile", "-q", *options, "--python-version", number, source, "-o", file, *self.options)
        return file

    def _install(self, environment: Environment, what: str, constraints: Path) -> None:
        python = environment.folder / "bin" / "python"
        run(self.uv, "pip", "install", "-q", "--python", python, "-c", constraints, *self.options, what)

    def _versions(self, environment: Environment) -> dict[str, str]:
        names = list(bounds())
        script = "import sys, json, importlib.metadata as m; print(json.dumps([m.version(n) for n in sys.argv[1:]]))"
        found = json.loads(environment.run("python", "-c", script, *names).stdout)
        return {name: version.partition("+")[0] for name, version in zip(names, found, strict=True)}

    def _check(self, environment: Environment, checks: list[Callable[[Environment], None]], column: Column) -> None:
        environment.read_only(True)
        for check in checks:
            try:
                check(environment)
                outcome = "ok"
            except Exception as error:  # whatever it is, the other checks go on
                outcome = "FAILED"
                print(f"{type(error).__name__}: {error}")
            column.outcomes[check.__name__] = outcome
            print(f"  {check.__name__}: {outcome}", flush=True)
        environment.read_only(False)


def bounds() -> dict[str, str]:
    """Return the lowest version of each package that pyproject.toml states."""
    stated = PROJECT["dependencies"] + [line for extra in PROJECT["optional-dependencies"].values() for line in extra]
    return dict(sorted(line.split(">=") for line in stated))


def _plain(version: str) -> str:
    """Return a version without zeros at its end, as 17.1 is 17.1.0."""
    return re.sub(r"(\.0)+$", "", version)


def interpreter(name: str) -> tuple[Path, str]:
    """Return a Python and its version, such as 3.12, from a path, a command or a version."""
    command = f"python{name}" if re.fullmatch(r"3\.\d+", name) else name
    path = shutil.which(command)
    script = "import sys; print(sys.executable, '%d.%d' % sys.version_info[:2])"
    done = subprocess.run([path, "-c", script], capture_output=True, text=True) if path else None
    if done is None or done.returncode != 0:
        raise AbsentError(f"Python {name} cannot be had: {command} {'does not run' if path else 'is not found'}")
    executable, number = done.stdout.split()
    return Path(executable), number


def table(columns: list[Column]) -> str:
    """Show the environments side by side: their versions, then the outcomes."""
    rows = [["", *(column.name for column in columns)]]
    for part in ("versions", "outcomes"):
        names = dict.fromkeys(name for column in columns for name in getattr(column, part))
        rows += [[name, *(getattr(column, part).get(name, "-") for column in columns)] for name in names]
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


def main() -> int:
    arguments = sys.argv[1:]
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=PYTHONS, help="versions, commands or paths")
    parser.add_argument("--versions", nargs="+", choices=["oldest", "newest"], default=["oldest", "newest"])
    parser.add_argument("--torch", help="the newest torch to try; without it the newest that there is")
    chosen = parser.parse_args(arguments[:cut])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the environments are deleted then, too
    columns, absent = [], []
    with tempfile.TemporaryDirectory(prefix="torchrsm-versions-") as folder:
        bench = Bench(Path(folder), chosen.torch, arguments[cut + 1 :])
        for name in chosen.python:
            try:
                python, number = interpreter(name)
            except AbsentError as error:
                absent.append(str(error))
                continue
            columns += [bench.try_out(python, number, side) for side in chosen.versions]
    print(f"\n{table(columns)}\n", *absent, sep="\n")
    failed = [name for column in columns for name, outcome in column.outcomes.items() if outcome != "ok"]
    return 1 if failed or not columns else 0


if __name__ == "__main__":
    sys.exit(main())
