"""The training loop: one update for each frame, with its record, its checkpoints and its exact resumption.

A run is a folder::

    run.json                 every setting of the run
    config.json              the model's settings: the folder is a model folder, too (`torchrsm.load`)
    weights.safetensors      the model's weights at the last checkpoint
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
from typing import IO, Annotated, Any, NamedTuple, Self

import torch
import tyro
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from torchrsm import kernels
from torchrsm.checkpoint import flatten, load_tensors, make_folder, save_tensors, unflatten, write_atomically
from torchrsm.config import Config, first_error
from torchrsm.evaluation import TEST_SEED, VALIDATION_SEED
from torchrsm.learning import LearningConfig, LocalLearning
from torchrsm.metrics import frame_squared_error
from torchrsm.model import ModelConfig, VideoPredictor, load_weights
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


class TrainingConfig(Config):
    """How long and on how much a run trains.

    Attributes:
        steps: updates of the whole run; repeats bit by bit.
        minutes: time of the whole run instead; the schedule then follows the clock.
        batch_size: streams in parallel.
        seed: of the weights, the dropout and the training sequences.
        threads: of the fused kernel; None for all cores at hand.
        log_steps: steps between two lines of the record.
        checkpoint_seconds: seconds between two checkpoints.
    """

    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=16, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, gt=0)
    log_steps: int = Field(default=100, gt=0)
    checkpoint_seconds: float = Field(default=30.0, ge=0)

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
    """One complete, named experiment."""

    name: Annotated[str, tyro.conf.Suppress]
    model: ModelConfig
    learning: LearningConfig
    stream: BouncingBallsConfig = BouncingBallsConfig()
    training: Annotated[TrainingConfig, tyro.conf.arg(name="")]  # --steps, not --training.steps


class NonFiniteError(ArithmeticError):
    """An input, a loss or a weight is NaN or infinite; the run has stopped, its last checkpoint is good."""


class Record(NamedTuple):
    """What a run reports every `log_steps` steps.

    Attributes:
        step: updates done.
        progress: share of the run that is done, in 0..1.
        frame_squared_error: mean of the raw prediction over the frames since the last record, first frames left out.
        losses: mean squared error of each layer over the same frames.
        seconds: of training, resumed parts included.
        frames_per_second: since the last record.
    """

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
        kernels.set_threads(training.threads or kernels.threads())
        torch.manual_seed(training.seed)
        self.model = VideoPredictor(config.model)
        self.learning = LocalLearning(self.model, config.learning)
        self.stream: Stream = stream or BouncingBalls(
            training.batch_size, seed=training.seed, **config.stream.model_dump()
        )
        self._fresh = self.model.initial_state((self.stream.batch_size, *self.stream.frame_shape))
        self.state = self._fresh
        self.step = 0
        self.seconds = 0.0
        self._sums = [0.0] * (2 + len(self.learning.optimisers))  # frames, their error, the loss of each layer
        self._offsets = {METRICS_FILE: 0, TIMING_FILE: 0}
        if resume and (self.folder / CHECKPOINT_FILE).exists():
            self._restore()
        else:
            make_folder(self.folder)
            self.model.save(self.folder)
            write_atomically(saved, (config.model_dump_json(indent=2) + "\n").encode())

    @property
    def progress(self) -> float:
        """Share of the run that is done, in 0..1."""
        training = self.config.training
        done = self.step / training.steps if training.steps else self.seconds / (60 * (training.minutes or 1))
        return min(1.0, done)

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
        self.model.train()
        with _signals() as stopping, self._logs() as logs:
            since = checked = time.monotonic()  # of the last record, of the last checkpoint
            started, last_step = since - self.seconds, self.step
            while self.progress < 1.0 and not stopping:
                self._learn_one_frame()
                now = time.monotonic()
                self.seconds = now - started
                finished = self.progress >= 1.0
                if self.step % self.config.training.log_steps == 0 or finished:
                    speed = (self.step - last_step) * self.stream.batch_size / max(now - since, 1e-9)
                    report(self._log(logs, speed))
                    since, last_step = now, self.step
                if now - checked >= self.config.training.checkpoint_seconds or finished:
                    self._save(logs)
                    checked = time.monotonic()
            if stopping:
                self._save(logs)
                raise KeyboardInterrupt(f"stopped at step {self.step}; the checkpoint is saved")
        return self.model.eval()

    def _learn_one_frame(self) -> None:
        frames, starts, _ = next(self.stream)
        self._check_frames(frames)
        state = restart(self.state, self._fresh, starts)
        prediction = self.model.predict(state)
        losses = self.model.losses(prediction, frames, ~starts)
        values = [float(loss.detach()) for loss in losses]
        for number, value in enumerate(values, 1):
            if not math.isfinite(value):
                raise self._non_finite(f"the loss of layer {number} is {value}")
        self.learning.step(losses, prediction, self.progress)
        self._check_weights()
        self.state = self.model.observe(frames, prediction, state)
        error = frame_squared_error(prediction.raw, frames)[~starts]
        self._sums[0] += error.numel()
        self._sums[1] += float(error.sum())
        for i, value in enumerate(values):
            self._sums[2 + i] += value * error.numel()
        self.step += 1

    def _check_frames(self, frames: Tensor) -> None:
        low, high = float(frames.min()), float(frames.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise self._non_finite("the stream gave a frame with NaN or infinity")
        if low < 0 or high > 1:
            raise ValueError(f"frames must be in 0..1; the stream gave {low:.6g}..{high:.6g} at step {self.step + 1}")

    def _check_weights(self) -> None:
        # A sum is not finite if a term is not; one pass without a mask.
        for name, weight in self.model.named_parameters():
            if not math.isfinite(float(weight.detach().sum())):
                raise self._non_finite(f"the weights {name} are not finite")

    def _non_finite(self, what: str) -> NonFiniteError:
        good = self.folder / CHECKPOINT_FILE
        kept = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
        return NonFiniteError(f"{what} at step {self.step + 1}; {kept}")

    def _log(self, logs: Mapping[str, IO[str]], frames_per_second: float) -> Record:
        frames, error, *losses = self._sums
        frames = max(frames, 1.0)
        record = Record(
            self.step, self.progress, error / frames, tuple(x / frames for x in losses), self.seconds, frames_per_second
        )
        self._sums = [0.0] * len(self._sums)
        line = {"step": record.step, "frame_squared_error": record.frame_squared_error, "losses": record.losses}
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

    def _save(self, logs: Mapping[str, IO[str]]) -> None:
        for name, file in logs.items():
            file.flush()
            self._offsets[name] = os.fstat(file.fileno()).st_size
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for i, optimiser in enumerate(self.learning.optimisers):
            for j, entry in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{j}.{key}": value for key, value in entry.items()}
        tensors |= flatten("state", self.state)
        tensors["random"] = torch.get_rng_state()
        header = {
            "format": _FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "sums": self._sums,
            "offsets": self._offsets,
            "stream": self.stream.state_dict(),
            "threads": kernels.threads(),
        }
        save_tensors(self.folder / CHECKPOINT_FILE, tensors, header)
        self.model.save_weights(self.folder)

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        tensors, header = _load_checkpoint(path)
        weights = {n.removeprefix("model."): t for n, t in tensors.items() if n.startswith("model.")}
        load_weights(self.model, weights, str(path))
        for i, optimiser in enumerate(self.learning.optimisers):
            whole = optimiser.state_dict()
            whole["state"] = _optimiser_state(f"optimiser.{i}.", tensors)
            optimiser.load_state_dict(whole)
        self.state = unflatten("state", self._fresh, tensors)
        torch.set_rng_state(tensors["random"])
        kernels.set_threads(header["threads"])  # sums over the batch are taken in as many parts as before
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
