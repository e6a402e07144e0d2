"""Files and folders to read from: they must exist on this computer; folders are read in natural order."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def require_local(path: str | Path) -> Path:
    """Return a path, or raise a ValueError if it is the address of something on a network."""
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", str(path)):
        raise ValueError(f"the path of a file on this computer is needed, received the address {str(path)!r}")
    if "\0" in str(path):
        raise ValueError(f"a path must not hold a zero byte, received {str(path)!r}")
    return Path(path)


def require_file(path: str | Path) -> Path:
    """Return the path of an existing file, or raise a FileNotFoundError, an IsADirectoryError or a ValueError."""
    path = require_local(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file, received a folder")
    if not path.exists():
        raise FileNotFoundError(f"{path} must be an existing file, received nothing at that path")
    if not path.is_file():
        raise ValueError(f"{path} must be a file, received a device or a pipe")
    return path


def require_folder(path: str | Path) -> Path:
    """Return the path of an existing folder, or raise a FileNotFoundError or a NotADirectoryError."""
    path = require_local(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} must be an existing folder, received nothing at that path")
    if not path.is_dir():
        raise NotADirectoryError(f"{path} must be a folder, received a file")
    return path


def files_with_suffix(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Return the files of a folder with one of the suffixes, not hidden, in the natural order of their names."""
    chosen = tuple(suffixes)
    found = [
        path
        for path in folder.iterdir()
        if path.suffix.lower() in chosen and not path.name.startswith(".") and path.is_file()
    ]
    return sorted(found, key=lambda path: (_natural(path.name), path.name))


def _natural(name: str) -> list[str | int]:
    """Return a key that sorts numbers in names by their value."""
    return [int(part) if number % 2 else part for number, part in enumerate(re.split("([0-9]+)", name.casefold()))]
