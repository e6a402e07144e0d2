"""What a command writes to, checked before its work begins: it can be written, and nothing that is read is lost."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from torchrsm.runs.checkpoint import CHECKPOINT_FILE
from torchrsm.runs.record import METRICS_FILE, TIMING_FILE
from torchrsm.runs.settings import RUN_FILE
from torchrsm.storage.folders import WEIGHTS_FILE
from torchrsm.storage.shipped import CONFIG_FILE, find_model
from torchrsm.storage.tensors import make_folder

RUNS = Path("runs")
"""Where results go that are given no other place."""

_MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE, RUN_FILE, CHECKPOINT_FILE, METRICS_FILE, TIMING_FILE)


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path | str | None] = ()) -> None:
    """Refuse files that cannot be written, and those that would take the place of something else.

    Paths are compared as files, whatever their names: through links, and from whatever folder they are counted.

    Args:
        outputs: the files to write, by the names of their options; None for one that was not asked for.
        inputs: what is read: files, folders of films or of pictures, folders or names of models; None and what is not
            there are left out.

    Raises:
        OSError: a file cannot be written: it has no folder, is itself no plain file, or its folder cannot be written.
        ValueError: a file is one that is read, lies in a folder whose files are read, or is two outputs at once.
    """
    given = {name: path for name, path in outputs.items() if path is not None}
    read = [_place(path) for path in inputs if path is not None and os.path.exists(_place(path))]
    for name, path in given.items():
        _check_writable(path)
        for source in read:
            _check_not_read(name, path, source)
    names = list(given)
    for number, name in enumerate(names):
        for other in names[:number]:
            if same_place(given[name], given[other]):
                raise ValueError(f"{other} and {name} must be two files; got {str(given[name])!r} for both")


def with_output(arguments: list[str], stem: str, suffix: str = "") -> list[str]:
    """Return arguments with an ``--out`` that is free, in `RUNS`, where they name none and ask for no help.

    Args:
        arguments: of a command.
        stem: what is written is called; a number is added where that is there already.
        suffix: of a file, for which `RUNS` is made; none for a folder, which its command makes.
    """
    if any(argument in ("-h", "--help", "--out") or argument.startswith("--out=") for argument in arguments):
        return arguments
    name = re.sub(r"[^\w.+-]+", "-", Path(stem).name).strip("-.") or "out"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    place = next(path for path in (RUNS / f"{one}{suffix}" for one in names) if not path.exists())
    if suffix:
        make_folder(RUNS)
    return [*arguments, "--out", str(place)]


def check_output_folder(folder: Path, inputs: Iterable[Path | str | None]) -> None:
    """Refuse a folder to write a run or a bench to that is itself read.

    Args:
        folder: need not exist.
        inputs: as of `check_outputs`.

    Raises:
        ValueError: the folder is one that is read, or it is a file that is read.
    """
    for source in inputs:
        if source is not None and same_place(folder, Path(source)):
            raise ValueError(f"out must not be what is read; got {str(folder)!r}, which is {str(source)!r}")


def same_place(one: Path, other: Path) -> bool:
    """Say whether two paths lead to the same file or folder, whether or not it is there."""
    if os.path.exists(one) and os.path.exists(other):
        return os.path.samefile(one, other)
    return os.path.realpath(one) == os.path.realpath(other)


def _place(source: Path | str) -> Path:
    """Return the path of what is read; a name that is no path is that of a shipped model."""
    with contextlib.suppress(FileNotFoundError):
        return find_model(source)
    return Path(source)


def _check_writable(target: Path) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: there is no folder {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    if os.path.exists(target) and not target.is_file():  # a device, a pipe: it would be replaced by a file
        raise OSError(f"cannot write {target}: it is no plain file")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {target}: the folder {target.parent} is not writable")


def _check_not_read(name: str, target: Path, source: Path) -> None:
    if not source.is_dir():
        if same_place(target, source):
            raise ValueError(f"{name} must not be a file that is read; got {str(target)!r}, which is {str(source)!r}")
        return
    if (source / CONFIG_FILE).is_file():  # a model's folder may take more files, such as scores
        for file in _MODEL_FILES:
            if (source / file).is_file() and same_place(target, source / file):
                raise ValueError(f"{name} must not be a file of the model; got {str(target)!r}")
        return
    inside = os.path.realpath(target)
    if same_place(Path(inside).parent, source) or same_place(target.parent, source):
        raise ValueError(f"{name} must not be in a folder that is read; got {str(target)!r} in {str(source)!r}")
    if os.path.exists(target) and any(same_place(target, file) for file in source.iterdir()):
        raise ValueError(f"{name} must not be a file that is read; got {str(target)!r}, which is in {str(source)!r}")
