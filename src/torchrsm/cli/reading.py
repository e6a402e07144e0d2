"""Films, pictures and arrays as a model reads them: at which size, which part of the picture, which clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from torchrsm.baselines import SequenceModel
from torchrsm.baselines.copy_last import CopyLast
from torchrsm.model import VideoPredictor
from torchrsm.runs.settings import RUN_FILE, load_run_config
from torchrsm.streams.films import VideoReader
from torchrsm.streams.framing import Crop
from torchrsm.streams.paths import printable
from torchrsm.streams.pictures import AnimationReader
from torchrsm.streams.settings import VideoConfig, frame_shape
from torchrsm.streams.video_file import Reader, load_parts, open_clips

_SAME_SHAPE = 0.1
"""Two ratios of sides that differ by no more count as one: the picture is shrunk to its new size without a cut."""
_DEFAULT_HEIGHT = 64

MAX_WHOLE_BYTES = 2**31
"""Most memory that the frames of clips may take which are read as a whole."""


class FrameSize(NamedTuple):
    """How a model reads pictures.

    Attributes:
        channels: 1 or 3.
        height: pixels; None for as in the film.
        width: pixels; None for as the height asks.
        crop: what the run that trained the model cut out first.
        frames_per_second: of that run; None for those of the film.
        white: which value of a pixel of more than 8 bits is white; None for what the pictures tell.
    """

    channels: int
    height: int | None
    width: int | None
    crop: Crop = None
    frames_per_second: float | None = None
    white: float | None = None


class Clips(NamedTuple):
    """Clips to read one by one, each frame by frame.

    Attributes:
        readers: with their names; each iteration over a reader opens its film anew.
        description: how they are read, in one line.
    """

    readers: list[tuple[str, Reader]]
    description: str


def size_for(model: VideoPredictor | SequenceModel, name_or_folder: str, white: float | None = None) -> FrameSize:
    """Return how a model reads pictures: at the size of its weights, else as in its run, else 64 pixels high.

    Args:
        model: what reads.
        name_or_folder: the name it was loaded by.
        white: which value of a pixel is white; None for that of its run.
    """
    config = model.config
    own = (None, None) if isinstance(model, CopyLast) else (config.height, config.width)
    has_run = (Path(name_or_folder) / RUN_FILE).is_file()
    stream = load_run_config(name_or_folder).stream if has_run else None
    if isinstance(stream, VideoConfig):
        height, width = (stream.height, stream.width) if own[0] is None else own
        white = stream.white if white is None else white
        return FrameSize(config.channels, height, width, stream.crop, stream.frames_per_second, white)
    if own[0] is not None:
        return FrameSize(config.channels, *own, white=white)
    height = _DEFAULT_HEIGHT if stream is None else frame_shape(stream)[1]
    return FrameSize(config.channels, height, None, white=white)


def clips_for(size: FrameSize, path: Path | str, layout: str | None = None) -> Clips:
    """Open a film, a folder or an array for a model.

    Where the model asks for height and width, a picture of about that shape is shrunk to it; from any other the middle
    of that shape is cut out first, so that nothing is squeezed.

    Args:
        size: from `size_for`.
        path: of a film, a folder or an array.
        layout: of an array, where its shape does not tell what its axes are.

    Raises:
        ValueError: what is there is no film, no picture and no array, or has clips of unequal shapes.
        OSError: a file is missing or cannot be read.
    """
    readers: list[tuple[str, Reader]] = []
    cut: list[str] = []
    for source, crop in _crops(size, path, layout).items():
        if isinstance(crop, tuple):
            cut.append(f"the middle {crop[2]} x {crop[3]} of {printable(Path(source).name)}")
        readers += open_clips(
            source,
            height=size.height,
            width=size.width,
            crop=crop,
            channels=size.channels,
            frames_per_second=size.frames_per_second,
            layout=layout,
            white=size.white,
        )
    return Clips(readers, ", ".join([as_read(path, shape_of(readers)), *cut]))


def whole_clips(clips: Clips) -> Tensor:
    """Return clips as a whole, ``[clips, time, c, h, w]`` in 0..1; longer ones are cut to the length of the shortest.

    Args:
        clips: from `clips_for`.

    Raises:
        ValueError: clips are of unequal sizes, frames are missing within one, one has fewer than two frames, or all of
            it takes more memory than `MAX_WHOLE_BYTES`.
    """
    found = []
    stretches = load_parts(clips.readers, lambda count: (0, count), MAX_WHOLE_BYTES // 4, "the whole")
    for (name, _), of_clip in zip(clips.readers, stretches, strict=True):
        if len(of_clip) > 1:
            raise ValueError(f"{printable(name)} must have all its frames; it has {len(of_clip) - 1} gap(s)")
        (frames,) = of_clip
        if len(frames) < 2:
            raise ValueError(f"{printable(name)} must have 2 frames or more; got {len(frames)}")
        found.append(frames)
    shortest = min(map(len, found))
    return torch.from_numpy(np.stack([clip[:shortest] for clip in found])).float() / 255


def _crops(size: FrameSize, path: Path | str, layout: str | None) -> dict[Path | str, Crop]:
    """Return what is cut out of each film."""
    if size.crop is not None or size.height is None or size.width is None:
        return {path: size.crop}
    try:
        whole = open_clips(
            path,
            channels=size.channels,
            frames_per_second=size.frames_per_second,
            layout=layout,
            white=size.white,
        )
    except ValueError:  # pictures of several shapes: each is given the size alone
        return {path: None}
    crops: dict[Path | str, Crop] = {}
    for _, reader in whole:
        source = reader.path if isinstance(reader, VideoReader | AnimationReader) else path
        crops[source] = middle(reader.frame_shape[1:], (size.height, size.width))
    return crops


def middle(picture: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return the largest part in the middle of a picture that has another picture's ratio of sides.

    Args:
        picture: height and width, pixels.
        shape: height and width; their ratio counts.

    Returns:
        Top, left, height and width, pixels; None if the ratios are about the same.
    """
    (height, width), ratio = picture, shape[1] / shape[0]
    if abs(width / height / ratio - 1) <= _SAME_SHAPE:
        return None
    cut_height, cut_width = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    return ((height - cut_height) // 2, (width - cut_width) // 2, cut_height, cut_width)


def as_read(path: Path | str, shape: Sequence[object]) -> str:
    """Say how the frames at a path are read.

    Args:
        path: of a file or a folder.
        shape: clips, frames of each, channels, height and width.
    """
    axes = "[clips, frames, channels, height, width]"
    return f"{printable(path)} is read as {axes} = [{', '.join(str(size) for size in shape)}]"


def shape_of(readers: Sequence[tuple[str, Reader]]) -> list[object]:
    """Return how many clips there are, of how many frames, of what shape, as far as their headers tell."""
    counts = [reader.frame_count for _, reader in readers]
    known = sorted({count for count in counts if count is not None})
    frames = "?" if None in counts or not known else f"{known[0]}" + (f"..{known[-1]}" if len(known) > 1 else "")
    sizes = zip(*(reader.frame_shape for _, reader in readers), strict=True)
    return [len(readers), frames, *("/".join(str(size) for size in dict.fromkeys(one)) for one in sizes)]
