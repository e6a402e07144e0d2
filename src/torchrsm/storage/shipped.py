"""The models that come with the package, a folder each, found by their name and never fetched."""

from __future__ import annotations

import os
from pathlib import Path

CONFIG_FILE = "config.json"  # the file that makes a folder a model folder


def models_folder(package: Path) -> Path:
    """Return the folder of the shipped models, given that of the package; it need not exist.

    It is ``models/`` inside an installed package, and beside ``src/`` in a source checkout.
    """
    inside = package / "models"
    return package.parents[1] / "models" if package.parent.name == "src" and not inside.is_dir() else inside


MODELS_FOLDER = models_folder(Path(__file__).resolve().parents[1])


def shipped_models() -> list[str]:
    """Return the names that `torchrsm.load` knows without a folder, sorted."""
    return sorted(path.parent.name for path in MODELS_FOLDER.glob(f"*/{CONFIG_FILE}"))


def find_model(name_or_folder: Path | str) -> Path:
    """Return the folder of a model: a folder that exists is itself, else a bare name is that of a shipped model.

    Raises:
        FileNotFoundError: it is neither; the message lists the shipped names.
    """
    if os.path.isdir(name_or_folder):
        return Path(name_or_folder)
    names = shipped_models()
    if str(name_or_folder) in names:
        return MODELS_FOLDER / name_or_folder
    raise FileNotFoundError(f"no model folder {name_or_folder}; shipped by name: {', '.join(names) or 'none'}")
