"""A private folder of the user below that for temporary files: for what other packages keep between two runs."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def private_folder() -> Path:
    """Return a folder that only this user can read and write; it is made if there is none.

    What lies in it may be run, so a folder that another user could have made or can write to is not taken.

    Raises:
        OSError: there is no such folder.
    """
    folder = Path(tempfile.gettempdir()) / f"torchrsm-{_user()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or (
        hasattr(os, "getuid") and (found.st_uid != os.getuid() or found.st_mode & 0o077)
    ):
        raise PermissionError(f"{folder} must be a folder of this user alone")
    return folder


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
