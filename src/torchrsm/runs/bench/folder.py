"""The folder of a bench: what makes its numbers comparable is written down, and another bench is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchrsm.storage.tensors import make_folder, write_atomically

SETTINGS_FILE = "bench.json"


def take_folder(folder: Path, settings: dict[str, Any], parts: tuple[str, ...]) -> None:
    """Make the folder of a bench and its parts, or go on with one of the same settings.

    Args:
        folder: new, empty, or that of a bench.
        settings: that must be the same for all numbers, ready for JSON.
        parts: folders in it.

    Raises:
        FileExistsError: the folder holds something else.
        ValueError: it holds another bench.
        OSError: it cannot be made or written.
    """
    _check_folder(folder, settings)
    for part in ("", *parts):
        make_folder(folder / part)
    write_json(folder / SETTINGS_FILE, settings)


def write_json(file: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())


def _check_folder(folder: Path, settings: dict[str, Any]) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(f"out must be a folder; {folder} is a file")
    file = folder / SETTINGS_FILE
    if not file.exists():
        others = sorted(path.name for path in folder.iterdir())
        if others:
            raise FileExistsError(f"{folder} must be new, empty or of a bench; it holds {others[0]}")
        return
    try:
        before = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if isinstance(before, dict):
        before = {"device": "cpu", **before}  # which is what benches that name none were made on
    for name, now in settings.items():
        if not isinstance(before, dict) or before.get(name) != now:
            was = before.get(name) if isinstance(before, dict) else before
            raise ValueError(f"{folder} holds another bench, with {name} = {was}; it cannot go on with {now}")
