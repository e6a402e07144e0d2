"""Files that a command writes: refused before the work where they cannot be written."""

from __future__ import annotations

import os
from pathlib import Path


def check_writable(target: Path) -> None:
    """Refuse a file that cannot be written before the work that it is for."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: there is no folder {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {target}: the folder {target.parent} is not writable")
