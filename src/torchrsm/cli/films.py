"""How a film is read for a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchrsm.runs.settings import RUN_FILE, load_run_config
from torchrsm.streams.settings import VideoConfig, frame_shape
from torchrsm.systems import load


def reading(model: str) -> dict[str, Any]:
    """Return how a video is to be read for a model: as it was for the run, else at the size that the model reads."""
    folder = Path(model)
    if (folder / RUN_FILE).is_file():
        stream = load_run_config(folder).stream
        if isinstance(stream, VideoConfig):
            return stream.model_dump(include={"height", "width", "crop", "channels", "frames_per_second"})
        channels, height, width = frame_shape(stream)
        return {"channels": channels, "height": height, "width": width}
    config = getattr(load(model), "config", None)
    size = {"height": getattr(config, "height", None), "width": getattr(config, "width", None)}
    if model == "copy-last" or size["height"] is None:
        size = {"height": 64, "width": None}
    return {"channels": getattr(config, "channels", 1), **size}
