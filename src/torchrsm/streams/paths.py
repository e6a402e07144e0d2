"""Files and folders to read from: they must exist on this computer; folders are read in natural order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def printable(path: str | Path) -> str:
    r"""Return a path as one line of text that every terminal and file can hold.

    Bytes that are no UTF-8 and control characters are shown by their escapes: ``caf\udce9.png``, ``two\nlines.png``.
    """
    text = str(path).encode("utf-8", "backslashreplace").decode("utf-8")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode("ascii") for sign in text)


def require_local(path: str | Path) -> Path:
    """Return a path, or raise a ValueError if it is the address of something on a network."""
    if not isinstance(path, str | Path):
        raise ValueError(f"a path must be a str or a Path; got {type(path).__name__}")
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(path)):
        raise ValueError(f"the path of a file on this computer is needed; got the address {printable(path)!r}")
    if "\0" in str(path):
        raise ValueError(f"a path must not hold a zero byte; got {str(path)!r}")
    return Path(path)


def require_file(path: str | Path) -> Path:
    """Return the path of an existing file, or raise a FileNotFoundError, an IsADirectoryError or a ValueError."""
    path = require_local(path)
    if path.is_dir():
        raise IsADirectoryError(f"{printable(path)} must be a file; got a folder")
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)} must be an existing file; got {_nothing(path)}")
    if not path.is_file():
        raise ValueError(f"{printable(path)} must be a file; got a device or a pipe")
    return path


def require_folder(path: str | Path) -> Path:
    """Return the path of an existing folder, or raise a FileNotFoundError or a NotADirectoryError."""
    path = require_local(path)
    if not path.exists():
        raise FileNotFoundError(f"{printable(path)} must be an existing folder; got {_nothing(path)}")
    if not path.is_dir():
        raise NotADirectoryError(f"{printable(path)} must be a folder; got a file")
    return path


def files_with_suffix(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files of a folder with one of the suffixes, not hidden, in the natural order of their names.

    Upper and lower case count the same. Folders, pipes and devices are left out.

    Raises:
        FileNotFoundError: a name with the suffix is a link to nothing, so a file of the series is missing.
    """
    chosen = tuple(suffixes)
    found = []
    for path in folder.iterdir():
        if path.name.startswith(".") or path.suffix.lower() not in chosen:
            continue
        if path.is_symlink() and not path.exists():
            raise FileNotFoundError(f"{printable(path)} must be an existing file; got {_nothing(path)}")
        if path.is_file():
            found.append(path)
    return in_natural_order(found)


def files_without_suffix(folder: Path) -> list[Path]:
    """Return the files of a folder whose names tell no kind, as ``frame7`` or ``frame.07``; not hidden, in order."""
    return in_natural_order(
        path
        for path in folder.iterdir()
        if not path.name.startswith(".") and re.fullmatch(r"(\.[0-9]*)?", path.suffix) and path.is_file()
    )


def in_natural_order(paths: Iterable[Path]) -> list[Path]:
    """Return paths sorted by name, with numbers in names by their value: ``frame2`` before ``frame10``."""
    return sorted(paths, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[str | int]:
    """Return a key that sorts numbers in names by their value."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split("([0-9]+)", name.casefold()))]


def _nothing(path: Path) -> str:
    return "a link to nothing" if path.is_symlink() else "nothing at that path"
