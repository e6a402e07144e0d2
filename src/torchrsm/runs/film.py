"""Where the film of a run is: a run knows it by its absolute path, and finds it again when both were moved together."""

from __future__ import annotations

import os
from pathlib import Path

from torchrsm.runs.settings import AnyRunConfig
from torchrsm.streams.settings import StreamConfig, VideoConfig


def with_absolute_path(run: AnyRunConfig) -> AnyRunConfig:
    """Return the settings of a run with the absolute path of its film, if it learns from one."""
    if not isinstance(run.stream, VideoConfig):
        return run
    stream = run.stream.replace(path=os.path.abspath(run.stream.path))
    return run.replace(stream=stream)


def found(stream: StreamConfig, folder: Path | str) -> StreamConfig:
    """Return what a run learns from, with the path at which its film is now.

    Args:
        stream: from the settings of the run.
        folder: of the run. Where nothing is at the path of the film, one of its name is looked for in this folder, then
            beside it; if there is none, the path stays as it is.
    """
    if not isinstance(stream, VideoConfig) or os.path.exists(stream.path):
        return stream
    name, folder = Path(stream.path).name, Path(folder).absolute()
    for path in (folder / name, folder.parent / name):
        if path.exists():
            return stream.replace(path=str(path))
    return stream
