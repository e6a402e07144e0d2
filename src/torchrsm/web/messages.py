"""The messages between the page and the server on the socket.

The page sends JSON, one of the requests below, at most `MAX_REQUEST_BYTES` long. The server answers each with `Reply`
(which repeats the request's ``id``), and sends `SessionState` whenever anything in it has changed, as JSON. Frames come
as binary messages: four bytes, the length of a header, little-endian; the header, JSON, a `Shown`; then the arrays that
it lists, one after another, row by row.

Coordinates are those of the box, 0..10 from left to right and from top to bottom; velocities in the same unit a frame.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from torchrsm.config import Config, first_error

MAX_REQUEST_BYTES = 4096
MAX_PANES = 2
MAX_RATE = 60.0  # frames per second
MAX_BALLS = 6
MAX_MINUTES = 10.0  # of training at the page

Name = Annotated[str, Field(min_length=1, max_length=64)]
Mode = Literal["predict", "dream"]
Disturbance = Literal["none", "noise", "flicker", "bar", "blank"]


class _Request(Config):
    """The field that every request has.

    Attributes:
        id: repeated in the reply.
    """

    id: int = Field(default=0, ge=0, lt=2**53)


class BallsSource(Config):
    """Bouncing balls, simulated as long as the page watches."""

    kind: Literal["balls"] = "balls"
    balls: int = Field(default=3, ge=1, le=MAX_BALLS)


class DigitsSource(Config):
    """Moving MNIST: two digits that move in straight lines and bounce."""

    kind: Literal["digits"] = "digits"


class VideoSource(Config):
    """An uploaded video.

    Attributes:
        video: what the upload returned as its ``id``.
    """

    kind: Literal["video"] = "video"
    video: Name


Source = Annotated[BallsSource | DigitsSource | VideoSource, Field(discriminator="kind")]


class Configure(_Request):
    """Watch this source with these models, from the beginning; ends a training.

    Attributes:
        source: what is watched.
        models: names that the server has listed, one for each pane.
    """

    type: Literal["configure"] = "configure"
    source: Source = BallsSource()
    models: tuple[Name, ...] = Field(min_length=1, max_length=MAX_PANES)


class Play(_Request):
    """Go on by itself."""

    type: Literal["play"] = "play"


class Pause(_Request):
    """Stop after the frame under way."""

    type: Literal["pause"] = "pause"


class Advance(_Request):
    """Show one more frame and stay paused."""

    type: Literal["step"] = "step"


class Dream(_Request):
    """Let the models see their own predictions alone from now on."""

    type: Literal["dream"] = "dream"


class Redraw(_Request):
    """Dream again from the moment at which the dream began, by other draws; of models that draw what may come."""

    type: Literal["redraw"] = "redraw"


class Disturb(_Request):
    """Disturb what the models see from now on. Where they are shown nothing they hear their own predictions.

    Attributes:
        by: ``noise`` on each pixel, ``flicker`` hides half of the frames, ``bar`` a third of the columns, ``blank``
            everything; ``none`` shows all again.
    """

    type: Literal["disturb"] = "disturb"
    by: Disturbance


class Wake(_Request):
    """Let the models see the true frames again from now on."""

    type: Literal["wake"] = "wake"


class Speed(_Request):
    """Set the largest number of frames that are shown in a second."""

    type: Literal["speed"] = "speed"
    frames_per_second: float = Field(gt=0, le=MAX_RATE)


class Place(_Request):
    """Put a ball somewhere and let it go; of bouncing balls only.

    While the models dream the ball is painted into what they see, too, for a few frames, so that they can imagine how
    it goes on.

    Attributes:
        ball: which one is moved, from 0; None for the nearest.
        x, y: where to.
        vx, vy: its velocity, units a frame.
    """

    type: Literal["place"] = "place"
    ball: int | None = Field(default=None, ge=0, lt=MAX_BALLS)
    x: float = Field(ge=0, le=10)
    y: float = Field(ge=0, le=10)
    vx: float = Field(default=0.0, ge=-2, le=2)
    vy: float = Field(default=0.0, ge=-2, le=2)


class Train(_Request):
    """Forget the first model and learn a new one from nothing, from the source that is watched; it goes on playing.

    Attributes:
        minutes: after which learning ends.
    """

    type: Literal["train"] = "train"
    minutes: float = Field(default=2.0, ge=0.1, le=MAX_MINUTES)


class Stop(_Request):
    """End a training early; the model keeps what it has learned."""

    type: Literal["stop"] = "stop"


class Clip(_Request):
    """Ask for a film of what was shown last; the reply is a binary message of its own, see `Shown`."""

    type: Literal["clip"] = "clip"


Request = Configure | Play | Pause | Advance | Dream | Redraw | Disturb | Wake | Speed | Place | Train | Stop | Clip
_REQUESTS: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="type")])


def parse_request(text: str | bytes) -> Request:
    """Return the request that a message holds.

    Raises:
        ValueError: it is too long, no JSON, none of the requests, or a value is out of its range.
    """
    size = len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else len(text)
    if size > MAX_REQUEST_BYTES:
        raise ValueError(f"a message must have at most {MAX_REQUEST_BYTES} bytes; got {size}")
    try:
        return _REQUESTS.validate_json(text)
    except ValidationError as error:
        raise ValueError(first_error(error)) from None


class _Message(BaseModel):
    model_config = ConfigDict(frozen=True)


class Reply(_Message):
    """The answer to a request: it was done if ``error`` is None."""

    type: Literal["reply"] = "reply"
    id: int
    error: str | None = None


class ModelEntry(_Message):
    """A model that can be watched.

    Attributes:
        name: to be used in `Configure`.
        title: for people.
        kind: ``rsm`` or ``baseline``.
        channels, height, width: of the frames that it reads; None where any will do.
    """

    name: str
    title: str
    kind: Literal["rsm", "baseline"]
    channels: int
    height: int | None
    width: int | None


class Hello(_Message):
    """The first message on a socket."""

    type: Literal["hello"] = "hello"
    version: str
    models: tuple[ModelEntry, ...]
    sources: tuple[str, ...]
    max_balls: int = MAX_BALLS
    max_rate: float = MAX_RATE
    max_minutes: float = MAX_MINUTES
    max_upload_bytes: int


class LayerShape(_Message):
    """The winner map of a layer: ``cells`` at each of height x width places, ``winners`` of which are on."""

    height: int
    width: int
    cells: int
    winners: int


class Pane(_Message):
    """One model that is watched.

    Attributes:
        model: its name; ``learning`` for one that is trained at the page.
        layers: of RSM; empty for a baseline.
        weights: how many.
        stages: of its rectifier, where there are several, of which all but the last make a frame of their own; else 0.
        unseen: a line that says in what the source lies outside of what the model learned from; None where it does not,
            or where that is not known.
    """

    model: str
    layers: tuple[LayerShape, ...]
    weights: int
    stages: int = 0
    unseen: str | None = None


class TrainingState(_Message):
    """A training at the page.

    Attributes:
        minutes: planned.
        progress: 0..1; 1 when it has ended.
        running: false once it has ended, by itself or stopped.
        queued: how many others are served first; 0 when it runs.
    """

    minutes: float
    progress: float
    running: bool
    queued: int


class SessionState(_Message):
    """All that the page shows of its session, but for the frames.

    Attributes:
        source: what is watched.
        panes: the models.
        playing: whether it goes on by itself.
        mode: ``predict`` or ``dream``.
        frames_per_second: at most so many.
        step: frames shown so far.
        dream_from: the first step that was dreamt; None while awake.
        future: which of the futures that may come is dreamt, from 1; None while awake, or where no model draws.
        disturbed: by what the models' view is disturbed.
        draws: whether a model draws what may come in a dream, so that there are several futures.
        channels, height, width: of the frames.
        training: None where none was begun.
    """

    type: Literal["session"] = "session"
    source: Source
    panes: tuple[Pane, ...]
    playing: bool
    mode: Mode
    frames_per_second: float
    step: int
    dream_from: int | None
    future: int | None
    disturbed: Disturbance
    draws: bool
    channels: int
    height: int
    width: int
    training: TrainingState | None


class ArrayEntry(_Message):
    """One array of a binary message.

    Attributes:
        name: ``truth``; where the models' view is disturbed ``shown``, what they are shown, and ``hidden``, 255 where
            that is nothing, else 0; for each pane p from 0 ``prediction:p``, for each layer l from 0 ``winners:p:l``,
            the number of each winner at each place, the first the strongest, 65535 for none, and for each stage s of
            the rectifier but the last ``stage:p:s``, the frame that it makes; ``film`` for a clip, MP4.
        dtype: ``uint8`` or ``uint16``, little-endian.
        shape: ``[channels, height, width]`` of frames, ``[1, height, width]`` of ``hidden``, ``[height, width,
            winners]`` of winners.
    """

    name: str
    dtype: Literal["uint8", "uint16"]
    shape: tuple[int, ...]


class Shown(_Message):
    """The header of a binary message: one frame (``type`` "frame"), or a film of the last ones ("clip").

    Attributes:
        step: its number, from 1.
        mode: whether the models saw the true frames before it.
        errors: squared error per frame of each pane; None for the first frame after a start, of which nothing could be
            known.
        copy_error: the same of the frame before, for comparison.
        energies: kinetic energy per ball, pixels² a frame², of the truth and of each pane, as far as balls are found;
            empty of other sources.
        progress: of the training, 0..1; None where none runs.
        arrays: what follows the header.
    """

    type: Literal["frame", "clip"]
    step: int
    mode: Mode
    errors: tuple[float | None, ...] = ()
    copy_error: float | None = None
    energies: tuple[float | None, ...] = ()
    progress: float | None = None
    arrays: tuple[ArrayEntry, ...]
