"""One viewer's session: what is watched, by which models, and what was shown last. It knows nothing of the socket."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchrsm.learning.contract import NonFiniteError, require_finite_losses
from torchrsm.learning.online import OnlineLearner
from torchrsm.media.films import Comparison, encode_mp4
from torchrsm.model import VideoPredictor
from torchrsm.predictor import Predictor, restart
from torchrsm.runs.fitting import fit
from torchrsm.runs.presets import preset
from torchrsm.runs.settings import RunConfig
from torchrsm.scoring import physics
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.streams import ClipStream, DisturbanceConfig, Stream
from torchrsm.streams import Shown as ShownFrame
from torchrsm.streams.disturbed import show_frame
from torchrsm.streams.settings import BouncingBallsConfig, MovingMNISTConfig, StreamConfig, VideoConfig, make_stream
from torchrsm.web.library import Library
from torchrsm.web.messages import (
    Advance,
    ArrayEntry,
    BallsSource,
    Clip,
    Configure,
    DigitsSource,
    Disturb,
    Disturbance,
    Dream,
    LayerShape,
    Mode,
    Pane,
    Pause,
    Place,
    Play,
    Redraw,
    Request,
    SessionState,
    Shown,
    Source,
    Speed,
    Stop,
    Train,
    TrainingState,
    VideoSource,
    Wake,
)
from torchrsm.web.worlds import RADIUS, RESOLUTION, BallsWorld, ClipWorld, DigitsWorld, World, in_grey

LEARNING = "learning"
LEARNS = "balls-window-1l"
"""The preset that the page trains."""
CLIP_FRAMES = 300
_TRAINING_STREAMS = 8
_PAINTED_FRAMES = 3  # in which a ball that is placed in a dream is painted into it
_NO_WINNER = 65535
_NOISE, _FLICKER = 0.2, 0.5  # deviation of a pixel; share of the frames that are hidden
_GEOMETRY = {balls: physics.WorldGeometry(balls=balls) for balls in range(1, 7)}


class Message(NamedTuple):
    """A header and the arrays that follow it.

    Attributes:
        header: says what they are.
        arrays: in the order of ``header.arrays``.
    """

    header: Shown
    arrays: tuple[NDArray[Any], ...]

    def encode(self) -> bytes:
        """Return the binary message."""
        header = self.header.model_dump_json().encode()
        parts = [len(header).to_bytes(4, "little"), header]
        return b"".join([*parts, *(array.tobytes() for array in self.arrays)])


@dataclass
class _Watcher:
    """A pane: a model, what it remembers, what of its world it has not learned, and the frame that it expected last.

    That frame is on the CPU.
    """

    name: str
    model: Predictor[Any, Any]
    fresh: Any
    state: Any
    unseen: str | None = None
    last: Tensor | None = None
    chance: torch.Generator | None = None

    @property
    def draws(self) -> bool:
        return isinstance(self.model, VideoPredictor) and self.model.draws_futures

    @property
    def stages(self) -> int:
        """How many stages the rectifier has, where there are several; else 0."""
        rectifier = self.model.rectifier if isinstance(self.model, VideoPredictor) else None
        return 0 if rectifier is None or len(rectifier.stage_names) == 1 else len(rectifier.stage_names)

    def predict(self) -> tuple[Any, tuple[Tensor, ...]]:
        """Return what the model expects, and the frames of the stages before the last, where there are several.

        While there is a generator, it is one of the futures that may come.
        """
        model = self.model
        if not isinstance(model, VideoPredictor) or not (self.chance or self.stages):
            return model.predict(self.state), ()
        prediction = model.predict_raw(self.state)
        noise = None if self.chance is None else model.noise(prediction, self.chance)
        *before, frame = model.stages(prediction, noise)
        return prediction._replace(frame=frame), tuple(before)

    def observe(self, frame: Tensor, prediction: Any, seen: Tensor | None) -> Any:
        """Return what the model remembers after a frame of which it saw what ``seen`` says; None for all of it."""
        model: Any = self.model
        if seen is None:
            return model.observe(frame, prediction, self.state)
        return model.observe(frame, prediction, self.state, seen)

    @classmethod
    def of(
        cls, name: str, model: Predictor[Any, Any], shape: tuple[int, int, int], unseen: str | None = None
    ) -> _Watcher:
        fresh = model.initial_state((1, *shape))
        return cls(name, model, fresh, fresh, unseen)

    def describe(self) -> Pane:
        layers: tuple[LayerShape, ...] = ()
        if isinstance(self.model, VideoPredictor):
            with torch.no_grad():
                cells = [layer.cells for layer in self.model.predict_raw(self.fresh).layers]
            layers = tuple(
                LayerShape(height=c.index.shape[1], width=c.index.shape[2], cells=s.cells, winners=c.index.shape[3])
                for c, s in zip(cells, self.model.config.layers, strict=True)
            )
        weights = sum(p.numel() for p in self.model.parameters()) if isinstance(self.model, torch.nn.Module) else 0
        return Pane(model=self.name, layers=layers, weights=weights, stages=self.stages, unseen=self.unseen)


@dataclass
class _Training:
    """A model that learns from nothing."""

    learner: OnlineLearner
    stream: Stream
    minutes: float
    seconds: float = 0.0
    running: bool = True
    phase: str = ""

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / (60 * self.minutes))

    def teach(self, until: float) -> None:
        """Learn until a time of `time.perf_counter`, one step at least.

        Raises:
            NonFiniteError: a loss is NaN or infinite.
        """
        while self.running:
            begun = time.perf_counter()
            phase = self.learner.phase(self.progress)
            if phase != self.phase:
                self.learner.model.train(phase != "rectifier")
                self.phase = phase
            taught = self.learner.teach([next(self.stream)], self.progress)
            require_finite_losses(self.learner.loss_names(phase), taught.losses)
            now = time.perf_counter()
            self.seconds += now - begun
            self.running = self.progress < 1
            if now >= until:
                break
        if not self.running:
            self.learner.model.eval()


class _Moment(NamedTuple):
    """Where a dream began.

    Attributes:
        world: as it was.
        before: its last frame.
        states: what each model had seen.
        lasts: what each had expected last.
    """

    world: World
    before: Tensor | None
    states: tuple[Any, ...]
    lasts: tuple[Tensor | None, ...]


class _Remembered(NamedTuple):
    truth: NDArray[np.uint8]
    predictions: tuple[NDArray[np.uint8], ...]
    errors: tuple[float | None, ...]
    dreamt: bool


@dataclass
class Session:
    """What one viewer watches.

    Args:
        library: the models and videos that there are.
        seed: of the worlds and of what is learned.

    Nothing here is locked: `apply` and `advance` must not run at the same time.
    """

    library: Library
    seed: int
    source: Source = field(default_factory=BallsSource)
    playing: bool = False
    mode: Mode = "predict"
    frames_per_second: float = 20.0
    step: int = 0
    dream_from: int | None = None
    future: int | None = None
    disturbed: Disturbance = "none"
    _moment: _Moment | None = None
    _world: World | None = None
    _watchers: list[_Watcher] = field(default_factory=list)
    _training: _Training | None = None
    _before: Tensor | None = None
    _painted: tuple[int, int] | None = None  # ball, frames to go
    _shown: deque[_Remembered] = field(default_factory=lambda: deque(maxlen=CLIP_FRAMES))

    @property
    def configured(self) -> bool:
        """Whether there is something to show."""
        return self._world is not None

    @property
    def trains(self) -> bool:
        """Whether something is being learned."""
        return self._training is not None and self._training.running

    def state(self, queued: int = 0) -> SessionState:
        """Describe the session; ``queued`` trainings of others come first."""
        training = None
        if self._training is not None:
            t = self._training
            training = TrainingState(minutes=t.minutes, progress=t.progress, running=t.running, queued=queued)
        assert self._world is not None
        channels, height, width = self._world.frame_shape
        return SessionState(
            source=self.source,
            panes=tuple(watcher.describe() for watcher in self._watchers),
            playing=self.playing,
            mode=self.mode,
            frames_per_second=self.frames_per_second,
            step=self.step,
            dream_from=self.dream_from,
            future=self.future,
            disturbed=self.disturbed,
            draws=any(watcher.draws for watcher in self._watchers),
            channels=channels,
            height=height,
            width=width,
            training=training,
        )

    def apply(self, request: Request) -> None:
        """Do what a request says, except for `Advance` and `Clip`, which the caller does.

        Raises:
            ValueError: it cannot be done; nothing has changed.
        """
        if isinstance(request, Configure):
            self._configure(request)
            return
        if not self.configured:
            raise ValueError(f"configure must be the first request; got {request.type}")
        actions: Mapping[type, Callable[[Any], None]] = {
            Play: lambda _: self._play(True),
            Pause: lambda _: self._play(False),
            Advance: lambda _: self._play(False),
            Dream: lambda _: self._switch("dream"),
            Redraw: lambda _: self._redraw(),
            Disturb: self._disturb,
            Wake: lambda _: self._switch("predict"),
            Speed: self._speed,
            Place: self._place,
            Train: self._train,
            Stop: lambda _: self._stop(),
            Clip: lambda _: self._require_shown(),
        }
        actions[type(request)](request)

    def advance(self, share: float = 0.5) -> Message:
        """Show one frame and, during a training, learn for a share of the time until the next frame is due."""
        assert self._world is not None
        begun = time.perf_counter()
        seen = self._world.next()
        dreams = self.mode == "dream"
        start = torch.tensor([seen.start], device=self.library.device)
        shown = None if dreams else self._shown_of(seen.frame)
        mask = None if shown is None or shown.seen is None else shown.seen.to(self.library.device)
        came = (seen.frame if shown is None else shown.frames).to(self.library.device)
        with torch.no_grad():
            frames, cells, stages = [], [], []
            for watcher in self._watchers:
                if not dreams:
                    watcher.state = restart(watcher.state, watcher.fresh, start)
                prediction, before = watcher.predict()
                frames.append(prediction.frame.cpu())
                stages.append([frame.cpu() for frame in before])
                cells.append([c.cells for c in prediction.layers] if hasattr(prediction, "layers") else [])
                heard = self._paint(prediction.frame) if dreams else came
                watcher.state = watcher.observe(heard, prediction, mask)
        self.step += 1
        errors: list[float | None] = [_finite(frame_squared_error(frame, seen.frame)) for frame in frames]
        copied = None if self._before is None else _finite(frame_squared_error(self._before, seen.frame))
        if seen.start and not dreams:
            errors, copied = [None] * len(frames), None
        energies = self._energies(seen.frame, frames, copied is not None)
        self._before = seen.frame
        for watcher, frame in zip(self._watchers, frames, strict=True):
            watcher.last = frame
        self._count_painted()
        if self._training is not None and self._training.running and share > 0:
            self._learn(begun + share / self.frames_per_second)
        return self._message(seen.frame, shown, frames, cells, stages, errors, copied, energies)

    def clip(self) -> Message:
        """Return a film of what was shown last: truth, prediction and overlay of each pane, with the error."""
        self._require_shown()
        shown = list(self._shown)
        _, height, width = shown[-1].truth.shape
        film = Comparison((height, width), [watcher.name for watcher in self._watchers])
        pictures = (
            film.picture(
                torch.from_numpy(one.truth).float() / 255,
                [torch.from_numpy(frame).float() / 255 for frame in one.predictions],
                one.errors,
                dreamt=one.dreamt,
            )
            for one in shown
        )
        content = np.frombuffer(encode_mp4(pictures, min(30.0, self.frames_per_second)), np.uint8)
        entry = ArrayEntry(name="film", dtype="uint8", shape=content.shape)
        return Message(Shown(type="clip", step=self.step, mode=self.mode, arrays=(entry,)), (content,))

    def _configure(self, request: Configure) -> None:
        world = self._open(request.source, request.models)
        shape, shows = world.frame_shape, self._world_of(request.source, world.frame_shape)
        watchers = [
            _Watcher.of(name, self.library.model(name), shape, self.library.unseen(name, shows))
            for name in request.models
        ]
        self.source, self._world, self._watchers = request.source, world, watchers
        self._training, self._before, self._painted = None, None, None
        self._awake()
        self.step = 0
        self._shown.clear()

    def _open(self, source: Source, models: Sequence[str]) -> World:
        if isinstance(source, BallsSource):
            return BallsWorld(source.balls, self.seed)
        if isinstance(source, DigitsSource):
            return DigitsWorld(self.seed)
        frames = self.library.video(source.video)
        return ClipWorld(frames if self.library.see_colour(models) else in_grey(frames))

    def _play(self, playing: bool) -> None:
        self.playing = playing

    def _switch(self, mode: Mode) -> None:
        if mode == self.mode:
            return
        if mode == "dream" and self.step == 0:
            raise ValueError("dream needs a frame that was seen before; no frame was seen yet")
        self.mode = mode
        if mode == "dream":
            assert self._world is not None
            states, lasts = zip(*((watcher.state, watcher.last) for watcher in self._watchers), strict=True)
            self._moment = _Moment(self._world.copy(), self._before, states, lasts)
            self._dream(1)
        else:
            self._awake()

    def _dream(self, future: int) -> None:
        """Begin to dream one of the futures that may come."""
        self.dream_from = self.step + 1
        self.future = future if any(watcher.draws for watcher in self._watchers) else None
        for watcher in self._watchers:
            if watcher.draws:
                watcher.chance = torch.Generator(self.library.device).manual_seed((self.seed << 16) + future)

    def _awake(self) -> None:
        self.mode, self.dream_from, self.future, self._moment = "predict", None, None, None
        for watcher in self._watchers:
            watcher.chance = None

    def _redraw(self) -> None:
        if self._moment is None or self.future is None:
            awake = "no model dreams" if self.mode == "predict" else "no model that dreams can"
            raise ValueError(f"redraw needs a dream of a model that draws what may come; {awake}")
        self._world, self._before = self._moment.world.copy(), self._moment.before
        for watcher, state, last in zip(self._watchers, self._moment.states, self._moment.lasts, strict=True):
            watcher.state, watcher.last = state, last
        self._painted = None
        self._dream(self.future + 1)

    def _disturb(self, request: Disturb) -> None:
        self.disturbed = request.by

    def _shown_of(self, frame: Tensor) -> ShownFrame | None:
        """Return what the models are shown of a frame ``[1, c, h, w]``; None for all of it."""
        if self.disturbed == "none":
            return None
        if self.disturbed == "blank":
            return ShownFrame(torch.zeros_like(frame), torch.zeros_like(frame[:, :1], dtype=torch.bool))
        settings: dict[str, Any] = {
            "noise": {"noise": (_NOISE,)},
            "flicker": {"flicker": (_FLICKER,)},
            "bar": {"bar": (max(1, frame.shape[-1] // 3),)},
        }
        shown = show_frame(frame[0], 0, self.step, DisturbanceConfig(**settings[self.disturbed]), self.seed)
        return ShownFrame(shown.frames[None], None if shown.seen is None else shown.seen[None])

    def _speed(self, request: Speed) -> None:
        self.frames_per_second = request.frames_per_second

    def _place(self, request: Place) -> None:
        if not isinstance(self._world, BallsWorld):
            raise ValueError(f"place is for bouncing balls; got a source of kind {self.source.kind!r}")
        ball = self._world.place(request.ball, request.x, request.y, request.vx, request.vy)
        if self.mode == "dream":
            self._painted = (ball, _PAINTED_FRAMES)

    def _paint(self, frame: Tensor) -> Tensor:
        """Paint a ball that was placed into the frames that a model sees."""
        if self._painted is None or not isinstance(self._world, BallsWorld):
            return frame
        return torch.maximum(frame, self._world.draw(self._painted[0]).to(frame.device))

    def _count_painted(self) -> None:
        if self._painted is not None:
            ball, left = self._painted
            self._painted = (ball, left - 1) if left > 1 else None

    def _train(self, request: Train) -> None:
        assert self._world is not None
        shape = self._world.frame_shape
        learned = self._world_of(self.source, shape)
        run = fit(preset(LEARNS), shape, learned)
        assert isinstance(run, RunConfig)
        stream = self._stream(learned)
        frames = (stream.batch_size, *stream.frame_shape)
        learner = OnlineLearner(run.model, run.learning, run.rectifying, True, frames, self.library.device)
        self._training = _Training(learner, stream, request.minutes)
        self._watchers = [_Watcher.of(LEARNING, learner.model, shape), *self._watchers[1:]]
        self._awake()
        self.playing = True
        self._before = None

    def _world_of(self, source: Source, shape: tuple[int, int, int]) -> StreamConfig:
        """Return the settings of a stream that shows what a source shows."""
        if isinstance(source, BallsSource):
            return BouncingBallsConfig(balls=source.balls, radius=RADIUS, resolution=RESOLUTION)
        if isinstance(source, DigitsSource):
            return MovingMNISTConfig(resolution=shape[1])
        return VideoConfig(path=self.library.video_name(source.video))

    def _stream(self, config: StreamConfig) -> Stream:
        if isinstance(self.source, VideoSource):
            frames = self.library.video(self.source.video)
            assert self._world is not None
            return ClipStream([frames if self._world.frame_shape[0] > 1 else in_grey(frames)], _TRAINING_STREAMS)
        return make_stream(config, _TRAINING_STREAMS, self.seed, self.library.device)

    def _learn(self, until: float) -> None:
        assert self._training is not None
        try:
            self._training.teach(until)
        except NonFiniteError:
            self._training.running = False
            raise

    def _stop(self) -> None:
        if not self.trains:
            raise ValueError("stop needs a training that runs; none runs")
        assert self._training is not None
        self._training.running = False
        self._training.learner.model.eval()

    def _require_shown(self) -> None:
        if not self._shown:
            raise ValueError("a clip needs frames that were shown; no frame was shown yet")

    def _energies(self, truth: Tensor, frames: list[Tensor], known: bool) -> tuple[float | None, ...]:
        """Return the kinetic energies of the truth and of each pane, from the frame before to this one."""
        if not isinstance(self.source, BallsSource):
            return ()
        befores = [self._before, *(watcher.last for watcher in self._watchers)]
        return tuple(
            _energy(before, after, self.source.balls) if known and before is not None else None
            for before, after in zip(befores, [truth, *frames], strict=True)
        )

    def _message(
        self,
        truth: Tensor,
        shown: ShownFrame | None,
        frames: list[Tensor],
        cells: list[list[Any]],
        stages: list[list[Tensor]],
        errors: list[float | None],
        copied: float | None,
        energies: tuple[float | None, ...],
    ) -> Message:
        true, predicted = _levels(truth), tuple(_levels(frame) for frame in frames)
        arrays: list[tuple[str, NDArray[Any]]] = [("truth", true)]
        if shown is not None:
            seen = torch.ones_like(truth[:, :1], dtype=torch.bool) if shown.seen is None else shown.seen
            arrays += [("shown", _levels(shown.frames)), ("hidden", _levels((~seen).float()))]
        arrays += [(f"prediction:{pane}", frame) for pane, frame in enumerate(predicted)]
        arrays += [
            (f"winners:{pane}:{layer}", _strongest_first(c.index, c.value))
            for pane, layers in enumerate(cells)
            for layer, c in enumerate(layers)
        ]
        arrays += [
            (f"stage:{pane}:{stage}", _levels(frame))
            for pane, made in enumerate(stages)
            for stage, frame in enumerate(made)
        ]
        self._shown.append(_Remembered(true, predicted, tuple(errors), self.mode == "dream"))
        header = Shown(
            type="frame",
            step=self.step,
            mode=self.mode,
            errors=tuple(errors),
            copy_error=copied,
            energies=energies,
            progress=self._training.progress if self._training is not None and self._training.running else None,
            arrays=tuple(
                ArrayEntry(name=name, dtype="uint16" if array.dtype == np.uint16 else "uint8", shape=array.shape)
                for name, array in arrays
            ),
        )
        return Message(header, tuple(array for _, array in arrays))


def _levels(frame: Tensor) -> NDArray[np.uint8]:
    return (frame[0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _strongest_first(index: Tensor, value: Tensor) -> NDArray[np.uint16]:
    """Return the winners ``[h, w, k]`` of one stream."""
    order = value[0].abs().argsort(-1, descending=True)
    sorted_index = index[0].long().gather(-1, order)
    return sorted_index.masked_fill(sorted_index < 0, _NO_WINNER).cpu().numpy().astype("<u2")


def _finite(error: Tensor) -> float | None:
    value = float(error)
    return value if np.isfinite(value) else None


def _energy(before: Tensor, after: Tensor, balls: int) -> float | None:
    geometry = _GEOMETRY[balls]
    found = physics.detect_balls(torch.stack((before, after), 1).clamp(0, 1), geometry)
    value = float(physics.kinetic_energy(physics.match_balls(found, geometry))[0, -1])
    return value if np.isfinite(value) else None
