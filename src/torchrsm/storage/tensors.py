"""Tensors on disk: written whole or not at all, read back without running any code.

A file is a safetensors file whose header carries one JSON text. It is written beside its place and then renamed, so a
run that dies or a disk that fills in mid-save leaves the last file as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

_HEADER = "torchrsm"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it.

    Raises:
        OSError: it cannot be made; the message names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot make the folder {folder}: {error.strerror}") from error


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; the former content survives any failure.

    Raises:
        OSError: the folder is missing or unwritable, or the disk is full.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror}") from error


def save_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    """Save tensors, from any device, and a JSON-able header in one file, atomically."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        separate[name] = plain.clone() if plain.data_ptr() in seen else plain  # the format knows no shared memory
        seen.add(plain.data_ptr())
    metadata = {_HEADER: json.dumps(header), "format": "pt"}  # other loaders look for the latter
    write_atomically(path, to_bytes(separate, metadata))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated, or not one of ours.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or no safetensors file: {error}") from error
    if _HEADER not in metadata:
        raise ValueError(f"{path} is a safetensors file that torchrsm did not write: it has no '{_HEADER}' header")
    try:
        header = json.loads(metadata[_HEADER])
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: its '{_HEADER}' header is no JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError(f"{path}: its '{_HEADER}' header must be a JSON object; got {type(header).__name__}")
    return tensors, header
