"""The training loop: one update for each frame, with its record, its checkpoints and its exact resumption.

A run has two phases: the stack learns, then, where the model has a rectifier that learns, the rectifier on what the
stack, which no longer changes, predicts.

A run is a folder::

    run.json                 every setting of the run
    config.json              the model's settings: the folder is a model folder, too (`torchrsm.load`)
    model.safetensors        the model's weights at the last checkpoint
    checkpoint.safetensors   all that it takes to go on: weights, optimisers, states, position in the stream, randomness
    metrics.jsonl            errors, one line every `log_steps` steps; the same for the same seed and number of threads
    timing.jsonl             seconds of training at the same steps
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple, Self

import torch
import tyro
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from torchrsm import kernels
from torchrsm.checkpoint import flatten, load_tensors, make_folder, save_tensors, unflatten, write_atomically
from torchrsm.config import Config, first_error
from torchrsm.evaluation import TEST_SEED, VALIDATION_SEED
from torchrsm.layer import LayerState
from torchrsm.learning import RECTIFIER_LOSSES, LearningConfig, LocalLearning, RectifierLearning, RectifyingConfig
from torchrsm.metrics import frame_squared_error
from torchrsm.model import ModelConfig, Prediction, VideoPredictor, load, load_weights
from torchrsm.predictor import restart
from torchrsm.streams import BouncingBalls, Stream

CHECKPOINT_FILE = "checkpoint.safetensors"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.jsonl"
TIMING_FILE = "timing.jsonl"
_FORMAT = "torchrsm-run-1"


class BouncingBallsConfig(Config):
    """The world that a run learns from; see `torchrsm.streams.BouncingBalls`."""

    balls: int = Field(default=3, gt=0)
    radius: float = Field(default=1.2, gt=0, lt=5)
    resolution: int = Field(default=30, ge=4)
    sequence_length: int = Field(default=100, ge=2)


State = tuple[LayerState, ...]


class TrainingConfig(Config):
    """How long and on how much a run trains.

    Attributes:
        steps: updates of the whole run, both phases; repeats bit by bit.
        minutes: time of the whole run instead; the schedule then follows the clock.
        batch_size: streams in parallel.
        seed: of the weights, the dropout and the training sequences.
        threads: of the fused kernel; None for all cores at hand.
        log_steps: steps between two lines of the record.
        checkpoint_seconds: seconds between two checkpoints.
        stack_from: folder of a model whose stack is taken as it is; the whole budget then goes to the rectifier.
    """

    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, gt=0)
    log_steps: int = Field(default=100, gt=0)
    checkpoint_seconds: float = Field(default=30.0, ge=0)
    stack_from: str | None = None

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"exactly one of steps and minutes must be given; got {self.steps} and {self.minutes}")
        if self.seed in (TEST_SEED, VALIDATION_SEED):
            raise ValueError(
                f"seed must not be {TEST_SEED} (test) or {VALIDATION_SEED} (validation): "
                f"those sequences are never trained on; got {self.seed}"
            )
        return self


class RunConfig(Config):
    """One complete, named experiment.

    Attributes:
        name: of the preset.
        model: the predictor.
        learning: how its stack learns.
        rectifying: how its rectifier learns; None if and only if it has none, or one that does not learn.
        stream: what it learns from.
        training: for how long.
    """

    name: Annotated[str, tyro.conf.Suppress]
    model: ModelConfig
    learning: LearningConfig
    rectifying: RectifyingConfig | None = None
    stream: BouncingBallsConfig = BouncingBallsConfig()
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")]  # --steps, not --training.steps

    @model_validator(mode="after")
    def _rectifier_learns(self) -> Self:
        rectifier = self.model.rectifier
        learns = rectifier is not None and rectifier.kind != "sharpening"
        if learns != (self.rectifying is not None):
            kind = "none" if rectifier is None else rectifier.kind
            raise ValueError(
                f"rectifying must be given {'with this' if learns else 'only with a'} rectifier that learns; "
                f"got {'none' if self.rectifying is None else 'settings'} with the rectifier {kind!r}"
            )
        if self.training.stack_from is not None and not learns:
            raise ValueError(
                f"stack_from needs a rectifier that learns, nothing else would; got {self.training.stack_from!r}"
            )
        return self


class NonFiniteError(ArithmeticError):
    """An input, a loss or a weight is NaN or infinite; the run has stopped, its last checkpoint is good."""


Phase = Literal["stack", "rectifier"]


class Record(NamedTuple):
    """What a run reports every `log_steps` steps and at the end of a phase.

    Attributes:
        phase: what learns.
        step: updates done, of both phases.
        progress: share of the run that is done, in 0..1.
        frame_squared_error: mean over the frames since the last record, first frames left out, of the raw prediction
            while the stack learns, of the rectified one while the rectifier does.
        losses: over the same frames, the mean squared error of each layer, or the rectifier's losses
            (`learning.RECTIFIER_LOSSES`).
        seconds: of training, resumed parts included.
        frames_per_second: since the last record.
    """

    phase: Phase
    step: int
    progress: float
    frame_squared_error: float
    losses: tuple[float, ...]
    seconds: float
    frames_per_second: float


class Trainer:
    """Trains one model in one folder.

    Args:
        config: the whole experiment.
        folder: where the run lives; made if need be.
        resume: go on with the run that is in the folder.
        stream: frames to learn from; None for those that ``config`` names.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is false.
        FileNotFoundError: ``resume`` is true and the folder holds no run.
        ValueError: the run in the folder has other settings, or its checkpoint is truncated or foreign.
        OSError: the folder cannot be written.
    """

    def __init__(
        self, config: RunConfig, folder: Path | str, *, resume: bool = False, stream: Stream | None = None
    ) -> None:
        self.config = config
        self.folder = Path(folder)
        training = config.training
        saved = self.folder / RUN_FILE
        if resume:
            _check_same_run(saved, config)
        elif saved.exists():
            raise FileExistsError(f"{self.folder} holds a run; resume it or choose another folder")
        self.threads = training.threads or kernels.threads()
        kernels.set_threads(self.threads)
        torch.manual_seed(training.seed)
        self.model = VideoPredictor(config.model)
        self.learning = LocalLearning(self.model, config.learning)
        self.stream: Stream = stream or BouncingBalls(
            training.batch_size, seed=training.seed, **config.stream.model_dump()
        )
        self._fresh = self.model.initial_state((self.stream.batch_size, *self.stream.frame_shape))
        self.state = self._fresh
        self.alone = torch.zeros(self.stream.batch_size, dtype=torch.int64)  # steps each stream has heard itself
        self.step = 0
        self.seconds = 0.0
        self.rectifier_learning = (
            None
            if config.rectifying is None
            else RectifierLearning(self.model, config.rectifying, math.prod(self.stream.frame_shape))
        )
        self._sums = [0.0] * 2  # frames, their error, each loss
        self._offsets = {METRICS_FILE: 0, TIMING_FILE: 0}
        if resume and (self.folder / CHECKPOINT_FILE).exists():
            self._restore()
        else:
            if training.stack_from is not None:
                self._take_stack(training.stack_from)
            make_folder(self.folder)
            self.model.save(self.folder)
            write_atomically(saved, (config.model_dump_json(indent=2) + "\n").encode())

    @property
    def progress(self) -> float:
        """Share of the run that is done, in 0..1."""
        training = self.config.training
        done = self.step / training.steps if training.steps else self.seconds / (60 * (training.minutes or 1))
        return min(1.0, done)

    @property
    def phase(self) -> Phase:
        """What learns next."""
        return "rectifier" if self.progress >= self._stack_share else "stack"

    @property
    def _stack_share(self) -> float:
        if self.config.training.stack_from is not None:
            return 0.0
        return 1.0 if self.config.rectifying is None else 1.0 - self.config.rectifying.share

    def _take_stack(self, folder: str) -> None:
        given, wanted = load(folder), self.config.model
        for name in ("layers", "channels", "height", "width", "pad", "pad_value", "fresh_feedback"):
            if getattr(given.config, name) != getattr(wanted, name):
                raise ValueError(
                    f"stack_from must be a model of the same stack; {name} of {folder} is "
                    f"{getattr(given.config, name)}, that of the run {getattr(wanted, name)}"
                )
        self.model.stack.load_state_dict(given.stack.state_dict())

    def run(self, report: Callable[[Record], None] = lambda record: None) -> VideoPredictor:
        """Train to the end of the budget and return the model in evaluation mode.

        An interrupt (Ctrl-C) or a termination signal ends the run after the step under way, with a checkpoint.

        Args:
            report: called with each record.

        Raises:
            NonFiniteError: an input, a loss or a weight is NaN or infinite.
            ValueError: the stream gives frames outside of 0..1.
            KeyboardInterrupt: the run was interrupted; its checkpoint is saved.
        """
        threads = kernels.threads(), torch.get_num_threads()
        try:
            return self._run(report)
        finally:
            kernels.set_threads(*threads)

    def _run(self, report: Callable[[Record], None]) -> VideoPredictor:
        self._warm_up()
        with _signals() as stopping, self._logs() as logs:
            since = checked = time.monotonic()  # of the last record, of the last checkpoint
            started, last_step = since - self.seconds, self.step
            begun: Phase | None = None
            while self.progress < 1.0 and not stopping:
                phase, progress = self.phase, self.progress
                if phase != begun:
                    self._begin(phase)
                    begun = phase
                self._learn_one_frame(phase, progress)
                now = time.monotonic()
                self.seconds = now - started
                finished = self.progress >= 1.0
                if self.step % self.config.training.log_steps == 0 or finished or self.phase != phase:
                    speed = (self.step - last_step) * self.stream.batch_size / max(now - since, 1e-9)
                    report(self._log(logs, phase, speed))
                    since, last_step = now, self.step
                if now - checked >= self.config.training.checkpoint_seconds or finished:
                    self._save(logs)
                    checked = time.monotonic()
            if stopping:
                self._save(logs)
                raise KeyboardInterrupt(f"stopped at step {self.step}; the checkpoint is saved")
        return self.model.eval()

    def _begin(self, phase: Phase) -> None:
        """Give the cores to what does most of the work in a phase, and freeze the stack where it does not learn."""
        if phase == "stack":
            kernels.set_threads(self.threads)
            self.model.train()
        else:
            kernels.set_threads(1, torch_threads=self.threads)
            self.model.eval()

    def _warm_up(self) -> None:
        """Compile what is compiled on first use, so that no budget in minutes pays for it."""
        learn = torch.ones(self.stream.batch_size, dtype=torch.bool)
        with torch.random.fork_rng():
            prediction = self.model.predict_raw(self._fresh)
            for loss in self.model.losses(prediction, torch.zeros_like(prediction.raw), learn):
                loss.backward()
        self.model.zero_grad()

    def _learn_one_frame(self, phase: Phase, progress: float) -> None:
        frames, starts, _ = next(self.stream)
        self._check_frames(frames)
        state = restart(self.state, self._fresh, starts)
        teach = self._teach_stack if phase == "stack" else self._teach_rectifier
        awake = self.alone == 0  # a dream is not scored against the frames that came
        frame, heard, prediction, losses = teach(state, frames, ~starts, progress)
        self.state = self.model.observe(heard, prediction, state)
        error = frame_squared_error(frame, frames)[~starts & awake]
        terms = [1.0, float(error.mean()), *losses] if error.numel() else [0.0] * (2 + len(losses))
        self._sums += [0.0] * (len(terms) - len(self._sums))
        self._sums = [total + error.numel() * term for total, term in zip(self._sums, terms, strict=True)]
        self.step += 1

    def _teach_stack(
        self, state: State, frames: Tensor, learn: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Prediction, list[float]]:
        prediction = self.model.predict_raw(state)
        losses = self.model.losses(prediction, frames, learn)
        values = [float(loss.detach()) for loss in losses]
        for number, value in enumerate(values, 1):
            if not math.isfinite(value):
                raise self._non_finite(f"the loss of layer {number} is {value}")
        self.learning.step(losses, prediction, progress / self._stack_share)
        self._check_weights(self.model.stack)
        return prediction.raw, frames, prediction, values

    def _teach_rectifier(
        self, state: State, frames: Tensor, learn: Tensor, progress: float
    ) -> tuple[Tensor, Tensor, Prediction, list[float]]:
        assert self.rectifier_learning is not None
        with torch.no_grad():
            prediction = self.model.predict_raw(state)
        done = (progress - self._stack_share) / (1 - self._stack_share)
        last = self.model.last_frame(state)
        rectified = self.rectifier_learning.step(prediction, frames, learn, done, last, self.alone)
        values = [float(loss) for loss in rectified.losses]
        for name, value in zip(RECTIFIER_LOSSES, values, strict=True):
            if not math.isfinite(value):
                raise self._non_finite(f"the rectifier's {name} is {value}")
        self._check_weights(self.model.rectifier)
        self._check_weights(self.rectifier_learning.discriminator)
        heard, self.alone = self.rectifier_learning.heard(frames, rectified.frame, learn, done, self.alone)
        return rectified.frame, heard, prediction, values

    def _check_frames(self, frames: Tensor) -> None:
        low, high = float(frames.min()), float(frames.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise self._non_finite("the stream gave a frame with NaN or infinity")
        if low < 0 or high > 1:
            raise ValueError(f"frames must be in 0..1; the stream gave {low:.6g}..{high:.6g} at step {self.step + 1}")

    def _check_weights(self, part: nn.Module | None) -> None:
        assert part is not None
        # A sum is not finite if a term is not; one pass without a mask.
        for name, weight in part.named_parameters():
            if not math.isfinite(float(weight.detach().sum())):
                raise self._non_finite(f"the weights {name} are not finite")

    def _non_finite(self, what: str) -> NonFiniteError:
        good = self.folder / CHECKPOINT_FILE
        kept = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
        return NonFiniteError(f"{what} at step {self.step + 1}; {kept}")

    def _log(self, logs: Mapping[str, IO[str]], phase: Phase, frames_per_second: float) -> Record:
        frames, error, *losses = self._sums
        frames = max(frames, 1.0)
        record = Record(
            phase,
            self.step,
            self.progress,
            error / frames,
            tuple(loss / frames for loss in losses),
            self.seconds,
            frames_per_second,
        )
        self._sums = [0.0] * 2
        line = {
            "phase": phase,
            "step": record.step,
            "frame_squared_error": record.frame_squared_error,
            "losses": record.losses,
        }
        print(json.dumps(line), file=logs[METRICS_FILE])
        print(json.dumps({"step": record.step, "seconds": record.seconds}), file=logs[TIMING_FILE])
        return record

    @contextmanager
    def _logs(self) -> Iterator[dict[str, IO[str]]]:
        """Open the record's files; what was written after the last checkpoint is cut off, it will be written again."""
        files: dict[str, IO[str]] = {}
        try:
            for name, offset in self._offsets.items():
                file: IO[str] = open(self.folder / name, "a+")  # noqa: SIM115
                files[name] = file
                file.truncate(offset)
            yield files
        finally:
            for file in files.values():
                file.close()

    @property
    def _optimisers(self) -> list[torch.optim.Optimizer]:
        rectifying = [] if self.rectifier_learning is None else self.rectifier_learning.optimisers
        return [*self.learning.optimisers, *rectifying]

    def _save(self, logs: Mapping[str, IO[str]]) -> None:
        for name, file in logs.items():
            file.flush()
            self._offsets[name] = os.fstat(file.fileno()).st_size
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.rectifier_learning is not None:
            discriminator = self.rectifier_learning.discriminator
            tensors |= {f"discriminator.{name}": tensor for name, tensor in discriminator.state_dict().items()}
        for i, optimiser in enumerate(self._optimisers):
            for j, entry in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{j}.{key}": value for key, value in entry.items()}
        tensors |= flatten("state", self.state)
        tensors["alone"] = self.alone
        tensors["random"] = torch.get_rng_state()
        header = {
            "format": _FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "sums": self._sums,
            "offsets": self._offsets,
            "stream": self.stream.state_dict(),
            "threads": self.threads,
        }
        save_tensors(self.folder / CHECKPOINT_FILE, tensors, header)
        self.model.save_weights(self.folder)

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        tensors, header = _load_checkpoint(path)
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        load_weights(self.model, weights, str(path))
        if self.rectifier_learning is not None:
            prefix = "discriminator."
            weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            load_weights(self.rectifier_learning.discriminator, weights, str(path))
        for i, optimiser in enumerate(self._optimisers):
            whole = optimiser.state_dict()
            whole["state"] = _optimiser_state(f"optimiser.{i}.", tensors)
            optimiser.load_state_dict(whole)
            _lay_out_as_weights(optimiser)
        self.state = unflatten("state", self._fresh, tensors)
        self.alone = unflatten("alone", self.alone, tensors)
        torch.set_rng_state(tensors["random"])
        self.threads = header["threads"]  # sums over the batch are taken in as many parts as before
        self.step, self.seconds = header["step"], header["seconds"]
        self._sums, self._offsets = header["sums"], header["offsets"]
        self.stream.load_state_dict(header["stream"])


def load_run_config(folder: Path | str) -> RunConfig:
    """Read the settings of the run in a folder.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its settings are not readable.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: it has no {RUN_FILE}")
    try:
        return RunConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{path}: {first_error(error)}") from error


def training_summary(folder: Path | str) -> dict[str, str | int | float] | None:
    """Say how the model in a folder was trained: preset, seed, threads, steps, frames and minutes; None if unknown."""
    path = Path(folder) / CHECKPOINT_FILE
    if not path.is_file():
        return None
    run, header = load_run_config(folder), _load_checkpoint(path)[1]
    return {
        "preset": run.name,
        "seed": run.training.seed,
        "threads": header["threads"],
        "steps": header["step"],
        "frames": header["step"] * run.training.batch_size,
        "minutes": round(header["seconds"] / 60, 2),
    }


def _load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, header = load_tensors(path)
    if header.get("format") != _FORMAT:
        raise ValueError(f"{path} must have the format {_FORMAT}; got {header.get('format')}")
    return tensors, header


def _check_same_run(saved: Path, config: RunConfig) -> None:
    before = flatten_settings(load_run_config(saved.parent).model_dump(mode="json"))
    now = flatten_settings(config.model_dump(mode="json"))
    for name in sorted(before.keys() | now.keys(), key=lambda name: (name != "name", name)):
        if before.get(name) != now.get(name):
            raise ValueError(
                f"{saved.parent} was begun with {name} = {before.get(name)}; it cannot go on with {now.get(name)}"
            )


def flatten_settings(settings: Any, name: str = "") -> dict[str, Any]:
    """Name each single setting by its path, such as ``model.layers.0.groups``."""
    if isinstance(settings, dict | list):
        parts = settings.items() if isinstance(settings, dict) else enumerate(settings)
        return {k: v for key, part in parts for k, v in flatten_settings(part, f"{name}.{key}".strip(".")).items()}
    return {name: settings}


def _optimiser_state(prefix: str, tensors: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            parameter, key = name.removeprefix(prefix).split(".")
            state.setdefault(int(parameter), {})[key] = tensor
    return state


def _lay_out_as_weights(optimiser: torch.optim.Optimizer) -> None:
    """Give what an optimiser remembers of a weight the memory layout of that weight.

    Files know none, and a fused step goes through the memory of both side by side.
    """
    for weight, entry in optimiser.state.items():
        for key, value in entry.items():
            if value.shape == weight.shape:
                entry[key] = torch.empty_like(weight, requires_grad=False).copy_(value)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn the first interrupt or termination signal into an entry of the list; a second interrupt takes effect."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread: signals belong to somebody else
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
