"""What a run learns from, as settings, and the stream that they name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from urllib.parse import unquote_to_bytes

import torch
import tyro
from pydantic import BeforeValidator, Field, PlainSerializer, SerializeAsAny, field_validator, model_validator

from torchrsm.config import Config
from torchrsm.registry import chosen_from
from torchrsm.streams.bouncing_balls import MAX_SPEED, BouncingBalls
from torchrsm.streams.bouncing_balls_on_device import BouncingBallsOnDevice
from torchrsm.streams.chance_balls import KickedBalls, TwoWayBalls
from torchrsm.streams.clips import ClipStream
from torchrsm.streams.disturbed import DisturbanceConfig, Disturbed
from torchrsm.streams.film_store import Clip
from torchrsm.streams.grammar import named_grammar
from torchrsm.streams.handwriting import DigitSplit
from torchrsm.streams.layouts import require_layout
from torchrsm.streams.moving_mnist import MovingMNIST
from torchrsm.streams.paths import printable
from torchrsm.streams.stream import Stream
from torchrsm.streams.symbols import Pictures, SymbolStream
from torchrsm.streams.turns import Turns
from torchrsm.streams.varied_balls import VariedBalls, check_ranges
from torchrsm.streams.video_file import Reader, open_clips, store_parts
from torchrsm.streams.words import CodedText, WordStream, coded_text

_OF_BALLS = ("balls", "radius", "resolution", "speed")  # settings of their world, by the names of a single one

_MAX_BYTES_IN_MEMORY = 2**26  # of frames of videos; more of them are kept on disk


class StreamConfig(Config):
    """Base of the settings of all streams; its own class adds ``kind``, its name, and the rest.

    Attributes:
        kind: the name.
        disturbance: what disturbs the frames.
    """

    kind: str
    disturbance: DisturbanceConfig = DisturbanceConfig()

    def arguments(self, *others: str) -> dict[str, Any]:
        """Return the settings that the stream itself takes, without ``others``."""
        return self.model_dump(exclude={"kind", "disturbance", *others})

    subject: ClassVar[str] = "other frames"
    """What the frames show, for people."""

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return what the look of the frames follows from: of each setting the smallest and the largest, or a name.

        Nothing, where that is not known.
        """
        return {}

    def symbols(self) -> tuple[str, ...]:
        """Return the names of the symbols that the frames show, in the order of their numbers; none for pictures."""
        return ()


class BallWorldConfig(StreamConfig):
    """Base of the settings of worlds of balls that are the same in each sequence."""

    balls: int = Field(default=3, gt=0)
    radius: float = Field(default=1.2, gt=0, lt=5)
    resolution: int = Field(default=30, ge=4)
    sequence_length: int = Field(default=100, ge=2)
    speed: float = Field(default=1.0, gt=0, le=MAX_SPEED)

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return each setting of the world."""
        return {name: (getattr(self, name),) * 2 for name in _OF_BALLS}


class BouncingBallsConfig(BallWorldConfig):
    """Bouncing balls; see `torchrsm.streams.BouncingBalls`."""

    subject = "bouncing balls"
    kind: Annotated[Literal["balls"], tyro.conf.Suppress] = "balls"


class KickedBallsConfig(BallWorldConfig):
    """Bouncing balls that are kicked at random; see `torchrsm.streams.KickedBalls`."""

    subject = "balls that are kicked"
    kind: Annotated[Literal["kicked-balls"], tyro.conf.Suppress] = "kicked-balls"
    kick_rate: float = Field(default=0.05, ge=0, le=1)
    kick_size: float = Field(default=1.0, gt=0)

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return each setting of the world."""
        return super().span() | {name: (getattr(self, name),) * 2 for name in ("kick_rate", "kick_size")}


class TwoWayBallsConfig(BallWorldConfig):
    """A ball that turns left or right at a mark; see `torchrsm.streams.TwoWayBalls`."""

    subject = "balls that turn at a mark"
    kind: Annotated[Literal["two-way-balls"], tyro.conf.Suppress] = "two-way-balls"
    balls: int = Field(default=1, gt=0)
    left_share: float = Field(default=0.5, ge=0, le=1)

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return each setting of the world."""
        return super().span() | {"left_share": (self.left_share,) * 2}


PUBLISHED_BALLS = BouncingBallsConfig()
"""The world that scores are quoted on."""


class VariedBallsConfig(StreamConfig):
    """Bouncing balls, each sequence of a world of its own; see `torchrsm.streams.VariedBalls`.

    Attributes:
        balls: fewest and most of a sequence.
        radius: smallest and largest, world units.
        speed: slowest and fastest, times the speed of the published world.
        resolutions: heights and widths of frames, pixels, which take turns: one batch of each after the other
            (`torchrsm.streams.Turns`).
        sequence_length: frames in a sequence.
    """

    subject = "bouncing balls"
    kind: Annotated[Literal["varied-balls"], tyro.conf.Suppress] = "varied-balls"
    balls: tuple[int, int] = (2, 6)
    radius: tuple[float, float] = (0.7, 1.5)
    speed: tuple[float, float] = (0.5, 2.0)
    resolutions: tuple[Annotated[int, Field(ge=4)], ...] = Field(default=(24, 30, 36, 48, 64), min_length=1)
    sequence_length: int = Field(default=100, ge=2)

    @model_validator(mode="after")
    def _has_worlds(self) -> Self:
        check_ranges(self.balls, self.radius, self.speed)
        if len(set(self.resolutions)) < len(self.resolutions):
            raise ValueError(f"resolutions must be different from each other; got {self.resolutions}")
        return self

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return the range of each setting of the worlds."""
        sizes = (min(self.resolutions), max(self.resolutions))
        ranges = {"balls": self.balls, "radius": self.radius, "resolution": sizes, "speed": self.speed}
        return {name: ranges[name] for name in _OF_BALLS}


OfBalls = BouncingBallsConfig | VariedBallsConfig
"""Streams of bouncing balls, whose models are scored on the published world."""


class MovingMNISTConfig(StreamConfig):
    """Moving digits; see `torchrsm.streams.MovingMNIST`.

    Attributes:
        digits: in each sequence.
        resolution: height and width of a frame, pixels.
        sequence_length: frames in a sequence.
        deterministic: a digit bounces off a wall as light does; else in a direction that is drawn at random.
    """

    subject = "moving digits"
    kind: Annotated[Literal["digits"], tyro.conf.Suppress] = "digits"
    digits: int = Field(default=2, gt=0)
    resolution: int = Field(default=64, ge=16)
    sequence_length: int = Field(default=20, ge=2)
    deterministic: bool = True

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return how many digits there are, and on how many pixels."""
        return {name: (getattr(self, name),) * 2 for name in ("digits", "resolution")}


class GrammarConfig(StreamConfig):
    """Symbols in the order of a grammar; see `torchrsm.streams.SymbolStream`.

    Attributes:
        grammar: one of `torchrsm.streams.grammar.GRAMMARS`, or a file for `torchrsm.streams.grammar.read_grammar`.
        pictures: how symbols are shown: ``one-hot`` in a channel each; digits also as ``handwritten`` examples drawn at
            random, or each by a ``fixed`` one.
        restarts: memory is cleared where a string begins; else strings follow each other without any mark.
        shift: pixels, up to which handwritten examples are moved at random while a run learns.
    """

    subject = "symbols"
    kind: Annotated[Literal["grammar"], tyro.conf.Suppress] = "grammar"
    grammar: str = "reber"
    pictures: Pictures = "one-hot"
    restarts: bool = True
    shift: int = Field(default=0, ge=0, le=8)

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the shift of what is no handwritten example."""
        if self.pictures != "handwritten":
            yield "shift", f"pictures is {self.pictures}"

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return the name of the grammar, and how it is shown."""
        return {"grammar": self.grammar, "pictures": self.pictures}

    def symbols(self) -> tuple[str, ...]:
        """Return the symbols of the grammar."""
        return named_grammar(self.grammar).symbols


class WordsConfig(StreamConfig):
    """The words of a text; see `torchrsm.streams.words`.

    Attributes:
        path: a folder with ``train.txt``, ``valid.txt`` and ``test.txt``, a sentence a line, or a single file.
        vocabulary: most words; any other is unknown.
        numbers: of the code that shows a word.
        window: words on each side from which codes are learned.
        codes: a file with a code for each word in place of learned ones: a word and its numbers a line.
    """

    subject = "words"
    kind: Annotated[Literal["words"], tyro.conf.Suppress] = "words"
    path: str
    vocabulary: int = Field(default=10_000, ge=2)
    numbers: int = Field(default=100, gt=0)
    window: int = Field(default=5, gt=0)
    codes: str | None = None

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the settings of learned codes where codes are given."""
        if self.codes is not None:
            for name in ("numbers", "window"):
                yield name, "codes are given"

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return the name of the text."""
        return {"text": Path(self.path).name}

    def coded(self) -> CodedText:
        """Return the text with the codes of its words."""
        return coded_text(self.path, self.vocabulary, self.numbers, self.window, self.codes)

    def symbols(self) -> tuple[str, ...]:
        """Return the words of the vocabulary."""
        return self.coded().text.words


OfSymbols = GrammarConfig | WordsConfig
"""Streams of symbols, whose models name the next one."""


def _plain_path(given: Any) -> Any:
    """Take a path in the forms that Python has for it, and in that of `_utf8_path`."""
    if isinstance(given, bytes | os.PathLike):
        return os.fsdecode(given)
    if isinstance(given, str) and given.startswith("file:///"):
        return os.fsdecode(unquote_to_bytes(given.removeprefix("file://")))
    return given


def _utf8_path(path: str) -> str:
    """Return a path that JSON can hold: as it is, or as a ``file:`` address where its name is no UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return Path(os.path.abspath(path)).as_uri()
    return path


class VideoConfig(StreamConfig):
    """A video, or several; see `torchrsm.streams.open_clips`.

    Attributes:
        path: text or a `pathlib.Path`, of a film, a folder of films or of pictures, or a .npz or .npy of frames.
        height, width: of the frames; None for as the other one asks, both None for those of the film.
        crop: ``square`` cuts the middle out first.
        channels: 1 for grey, 3 for colour.
        frames_per_second: None for those of the film.
        mirror: half of the passages through a clip, drawn at random, are learned from mirrored, left to right.
        held_out: share of each clip, its end, that is never learned from. Its first half is for validation (every
            choice of a setting), its second half for the test (figures to publish).
        layout: what the axes of an array are, as `torchrsm.streams.load_frames` explains it; None for films and
            pictures, and where the shape tells.
        white: which value of a pixel is white, for pictures of more than 8 bits; None for what they tell.
    """

    subject = "a video"
    kind: Annotated[Literal["video"], tyro.conf.Suppress] = "video"
    path: Annotated[str, BeforeValidator(_plain_path), PlainSerializer(_utf8_path, when_used="json")]
    height: int | None = Field(default=64, ge=4, le=1024)
    width: int | None = Field(default=None, ge=4, le=1024)
    crop: Literal["square"] | None = None
    channels: Literal[1, 3] = 1
    frames_per_second: float | None = Field(default=None, gt=0, le=1000)
    mirror: bool = True
    held_out: float = Field(default=0.2, ge=0, lt=1)
    layout: str | None = None
    white: float | None = Field(default=None, gt=0)

    @field_validator("layout")
    @classmethod
    def _layout_has_known_axes(cls, layout: str | None) -> str | None:
        return None if layout is None else require_layout(layout)

    def span(self) -> dict[str, tuple[float, float] | str]:
        """Return the name of the file or folder."""
        return {"video": Path(_plain_path(self.path)).name}


_SEQUENCES_OF_A_SIZE = 2**40  # numbers that are set aside for each size of frames, so that none is played twice

LEAST_FRAMES = 3
"""Fewest frames of a clip to learn from: the first is never predicted, and one prediction teaches nothing."""


def _balls(make: type[BouncingBalls]) -> Callable[[Any, int, int], Stream]:
    """Return what makes streams of balls of this class from settings."""
    return lambda config, batch_size, seed: make(batch_size, seed=seed, **config.arguments())


def _balls_on_device(config: BouncingBallsConfig, batch_size: int, seed: int, device: torch.device) -> Stream:
    return BouncingBallsOnDevice(batch_size, seed=seed, device=device, **config.arguments())


def _varied_balls(config: VariedBallsConfig, batch_size: int, seed: int) -> Stream:
    worlds = config.arguments("resolutions")
    streams = [
        VariedBalls(batch_size, seed=seed, resolution=resolution, first_sequence=turn * _SEQUENCES_OF_A_SIZE, **worlds)
        for turn, resolution in enumerate(config.resolutions)
    ]
    return streams[0] if len(streams) == 1 else Turns(streams)


def _digits(config: MovingMNISTConfig, batch_size: int, seed: int) -> Stream:
    return MovingMNIST(batch_size, seed=seed, split="train", **config.arguments())


def _symbols(config: GrammarConfig, batch_size: int, seed: int) -> Stream:
    return symbol_stream(config, batch_size, seed)


def _words(config: WordsConfig, batch_size: int, seed: int) -> Stream:
    return WordStream(config.coded(), batch_size)


def symbol_stream(
    config: GrammarConfig, batch_size: int, seed: int, split: DigitSplit = "train", dephased: bool = True
) -> SymbolStream:
    """Return the stream of a grammar.

    Args:
        config: its settings.
        batch_size: strings side by side.
        seed: of the strings.
        split: of the handwritten digits that show them.
        dephased: whether the elements begin at different places of their first strings.

    Raises:
        ValueError: the file holds no grammar, or a symbol that is to be shown as a digit is none.
        OSError: it cannot be read.
    """
    shift = config.shift if split == "train" else 0  # what a model is scored on stays as it was written
    settings: dict[str, Any] = {"pictures": config.pictures, "restarts": config.restarts, "shift": shift}
    return SymbolStream(
        named_grammar(config.grammar), batch_size, seed=seed, split=split, dephased=dephased, **settings
    )


def _video(config: VideoConfig, batch_size: int, seed: int) -> Stream:
    return ClipStream(_learned_clips(config), batch_size, mirror=config.mirror, seed=seed)


STREAMS: dict[str, tuple[type[StreamConfig], Callable[[Any, int, int], Stream]]] = {
    "balls": (BouncingBallsConfig, _balls(BouncingBalls)),
    "varied-balls": (VariedBallsConfig, _varied_balls),
    "kicked-balls": (KickedBallsConfig, _balls(KickedBalls)),
    "two-way-balls": (TwoWayBallsConfig, _balls(TwoWayBalls)),
    "digits": (MovingMNISTConfig, _digits),
    "grammar": (GrammarConfig, _symbols),
    "words": (WordsConfig, _words),
    "video": (VideoConfig, _video),
}
"""Settings by ``kind``, and what makes the stream from them, a batch size and a seed: a file and a line here add one.

To score on a stream of a new kind, a line in `torchrsm.streams.splits.HELD_OUT` says what is held out of it.
"""

ON_DEVICE: dict[str, Callable[[Any, int, int, torch.device], Stream]] = {"balls": _balls_on_device}
"""What makes the streams of a ``kind`` on another device than the CPU, where there is such a stream."""


def _with_kind(given: Any) -> Any:
    """Read settings from before there were other sources than balls, which name no kind."""
    return {"kind": "balls", **given} if isinstance(given, dict) else given


AnyStreamConfig = Annotated[SerializeAsAny[StreamConfig], chosen_from("stream", STREAMS), BeforeValidator(_with_kind)]
"""The settings of any stream; ``kind`` says which."""


def make_stream(config: StreamConfig, batch_size: int, seed: int, device: torch.device | str = "cpu") -> Stream:
    """Return the stream that settings name.

    The batches of a stream in `ON_DEVICE` are made on the device. Those of any other are made on the CPU, and what
    learns from them moves them. A position that one saves is a position of the other.

    Args:
        config: what is learned from.
        batch_size: streams in parallel.
        seed: of the sequences; of a video, of what is mirrored.
        device: where the frames are learned from.

    Raises:
        ValueError: a video cannot be read, or has too few frames to learn from.
        OSError: there is none, or the disk is full.
    """
    place = torch.device(device)
    disturbs = config.disturbance.disturbs
    if place.type != "cpu" and config.kind in ON_DEVICE and not disturbs:
        return ON_DEVICE[config.kind](config, batch_size, seed, place)
    stream = STREAMS[config.kind][1](config, batch_size, seed)
    return Disturbed(stream, config.disturbance, seed) if disturbs else stream


def frame_shape(config: StreamConfig) -> tuple[int, int, int]:
    """Return channels, height and width of the frames; of a video, of its first frame, which alone is decoded.

    Where frames of several sizes take turns, those of the first.
    """
    if isinstance(config, VideoConfig):
        return open_videos(config)[0][1].frame_shape
    return make_stream(config, 1, 0).frame_shape


def open_videos(config: VideoConfig) -> list[tuple[str, Reader]]:
    """Return the clips that settings name, to be read: a name and a reader each, as `torchrsm.streams.open_clips`."""
    return open_clips(
        config.path,
        height=config.height,
        width=config.width,
        crop=config.crop,
        channels=config.channels,
        frames_per_second=config.frames_per_second,
        layout=config.layout,
        white=config.white,
    )


def learned_frames(config: VideoConfig, frames: int) -> int:
    """Return how many frames of a clip of some length, from its beginning, are learned from."""
    return frames - round(config.held_out * frames)


def _learned_clips(config: VideoConfig) -> list[Clip]:
    setting = f"held_out = {config.held_out:g}"
    clips = store_parts(
        open_videos(config), lambda frames: (0, learned_frames(config, frames)), _MAX_BYTES_IN_MEMORY, setting
    )
    if all(len(clip) < LEAST_FRAMES for clip in clips):
        raise ValueError(
            f"{printable(config.path)} must leave {LEAST_FRAMES} frames in a row or more to learn from; got "
            f"{max(len(clip) for clip in clips)} with {setting}"
        )
    return clips


def outside(trained: StreamConfig, now: StreamConfig) -> list[str]:
    """Return in what a world lies outside of those that a model learned from, a reason each; none if in nothing.

    A reason is what is here and, in brackets, what was learned from, such as ``radius 0.8 (learned from 1.2)``. Sizes
    between two that were learned from count as learned.

    Args:
        trained: what the model learned from.
        now: what it looks at.
    """
    learned, here = trained.span(), now.span()
    if learned.keys() != here.keys():
        return [f"{now.subject} (learned from {trained.subject})"]
    return [
        f"{name} {_said(here[name])} (learned from {_said(known)})"
        for name, known in learned.items()
        if not _within(here[name], known)
    ]


def unseen(trained: StreamConfig, now: StreamConfig) -> str | None:
    """Return one line that says that a world is `outside` of those that a model learned from, and why; None if not."""
    reasons = outside(trained, now)
    return f"a world that the model has not seen: {', '.join(reasons)}" if reasons else None


def _within(value: tuple[float, float] | str, known: tuple[float, float] | str) -> bool:
    if isinstance(value, str) or isinstance(known, str):
        return value == known
    return known[0] <= value[0] and value[1] <= known[1]


def _said(value: tuple[float, float] | str) -> str:
    if isinstance(value, str):
        return printable(value)
    low, high = value
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
