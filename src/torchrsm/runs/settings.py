"""The settings of a run: the system, how it learns, from what and for how long; one JSON file of its folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import torch
import tyro
from pydantic import BeforeValidator, Field, model_validator

from torchrsm.baselines import WITHOUT_WEIGHTS, AnyBaselineConfig, make_baseline
from torchrsm.config import Config
from torchrsm.devices import DEVICE_FORMS, DeviceName
from torchrsm.learning.local import LearningConfig
from torchrsm.learning.online import OnlineLearner
from torchrsm.learning.ranks import Ranks
from torchrsm.learning.rectifying import RectifyingConfig
from torchrsm.learning.windows import SequenceLearner, SequenceLearningConfig
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.precision import Precision
from torchrsm.storage.shipped import find_model
from torchrsm.streams.settings import AnyStreamConfig, BouncingBallsConfig, StreamConfig
from torchrsm.streams.splits import TEST_SEED, VALIDATION_SEED
from torchrsm.streams.turns import FrameShape

RUN_FILE = "run.json"

DeviceFlag = Annotated[
    DeviceName,
    tyro.conf.arg(
        metavar=DEVICE_FORMS,
        help="where the model computes; cuda is the first such device, auto that one if there is one, else the CPU.",
    ),
]
"""The name of a device, as all commands take it."""

_ALONE = Ranks()


class TrainingConfig(Config):
    """How long and on how much a run trains.

    Attributes:
        steps: updates of the whole run, all its phases; repeats bit by bit.
        minutes: time of the whole run instead; the schedule then follows the clock.
        clock: what a minute is of: ``wall`` time, or ``processor`` time, from which other programs on the machine take
            nothing; the latter with one thread on the CPU alone.
        batch_size: streams in parallel.
        seed: of the weights, the dropout and the training sequences.
        threads: of the fused kernel; None for all cores at hand.
        device: where the model learns: ``cpu``, ``cuda`` (the first one), ``cuda:N`` or ``mps``; ``auto`` for the
             first CUDA device if there is one, else the CPU.
        precision: of products while it learns: ``float32``, ``bfloat16`` (factors rounded to 8 binary digits, sums in
            float32), ``tf32`` (on CUDA) or ``auto``, the fastest that the device has instructions for.
        log_steps: steps between two lines of the record.
        checkpoint_seconds: seconds between two checkpoints.
    """

    steps: int | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    clock: Literal["wall", "processor"] = "wall"
    batch_size: int = Field(default=16, gt=0)
    seed: int = Field(default=0, ge=0, lt=2**63)
    threads: int | None = Field(default=None, gt=0)
    device: DeviceFlag = "cpu"
    precision: Precision = "auto"
    log_steps: int = Field(default=100, gt=0)
    checkpoint_seconds: float = Field(default=30.0, ge=0)

    @model_validator(mode="after")
    def _one_budget(self) -> Self:
        if (self.steps is None) == (self.minutes is None):
            how = "" if self.steps is None else "; set the other one to None, such as training.steps=None"
            raise ValueError(
                f"exactly one of steps and minutes must be given; got {self.steps} and {self.minutes}{how}"
            )
        if self.clock == "processor" and (self.threads, self.device) != (1, "cpu"):
            raise ValueError(
                f"clock must be wall unless threads is 1 and device is cpu; got {self.clock} with threads "
                f"{self.threads} and device {self.device}"
            )
        if self.seed in (TEST_SEED, VALIDATION_SEED):
            raise ValueError(
                f"seed must not be {TEST_SEED} (test) or {VALIDATION_SEED} (validation): "
                f"those sequences are never trained on; got {self.seed}"
            )
        return self


def equal_time(minutes: float, threads: int, seed: int, device: str = "cpu") -> dict[str, Any]:
    """Return the settings of a training that is compared with others: as many minutes, of one thread's own time.

    With several threads, and on other devices, the minutes are of wall time, and nothing else should run meanwhile.

    Args:
        minutes: of training.
        threads: of training.
        seed: of training.
        device: by its name.
    """
    clock = "processor" if threads == 1 and device == "cpu" else "wall"
    return {"steps": None, "minutes": minutes, "clock": clock, "threads": threads, "seed": seed, "device": device}


FORMER_NAMES = {
    name.replace("-", "_"): name
    for name in ("balls-1l", "balls-compact", "paper-rectifier", "paper-1l", "paper-fast", "paper-fast-1l")
}
"""The names of today's presets by those that they have in runs from before they had hyphens."""


def _renamed(name: Any) -> Any:
    return FORMER_NAMES.get(name, name) if isinstance(name, str) else name


_Name = Annotated[str, BeforeValidator(_renamed), tyro.conf.Suppress]
_Training = Annotated[TrainingConfig, tyro.conf.arg(name="")]  # --steps, not --training.steps


class RunConfig(Config):
    """One complete, named experiment with RSM.

    Attributes:
        name: of the preset.
        model: the predictor.
        learning: how its stack learns.
        rectifying: how its rectifier learns; None if and only if it has none, or one that does not learn.
        stack_from: folder of a model whose stack is taken as it is; the whole budget then goes to the rectifier.
        stream: what it learns from.
        training: for how long.
    """

    name: _Name
    model: ModelConfig
    learning: LearningConfig
    rectifying: RectifyingConfig | None = None
    stack_from: str | None = None
    stream: AnyStreamConfig = BouncingBallsConfig()
    training: _Training

    @property
    def frames_in_a_step(self) -> int:
        """Frames of each stream that one update takes."""
        return 1

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List the settings of a stack that does not learn, of a rectifier without time, of dreams without a stream."""
        if self.model.head is None:
            yield "learning.head_learning_rate", "the model has no head"
        if self.rectifying is None:
            return
        if self.stack_from is not None:
            names = [f"learning.{name}" for name in LearningConfig.model_fields]
            for name in (*names, "rectifying.share", "rectifying.stack_share"):
                yield name, "stack_from is given and the stack does not learn"
        elif self.rectifying.share == 0:
            for name in RectifyingConfig.model_fields:
                if name not in ("share", "stack_share"):
                    yield f"rectifying.{name}", "rectifying.share is 0"
        batch = self.training.batch_size
        if round(self.rectifying.loop_share * batch) == 0:
            yield (
                "rectifying.loop_share",
                f"only a share above 0.5 / training.batch_size = {0.5 / batch:.3g} lets a stream dream",
            )

    def make_learner(
        self,
        shape: tuple[int, int, int, int],
        device: torch.device,
        begins: bool,
        ranks: Ranks = _ALONE,
        others: Sequence[FrameShape] = (),
    ) -> OnlineLearner:
        """Return what learns in this run, as it is before the first update.

        Args:
            shape: batch (of this process), channels, height and width of the frames to come.
            device: where it learns.
            begins: whether the run begins; else a checkpoint gives the weights, and ``stack_from`` is not needed.
            ranks: the processes that train together.
            others: channels, height and width of frames that take turns with those.

        Raises:
            ValueError: the model cannot read such frames, names other symbols than they show, or ``stack_from`` is
                another kind of stack.
            FileNotFoundError: there is no ``stack_from``.
        """
        if self.model.head is not None:
            _check_symbols("model.head.symbols", self.model.head.symbols, self.stream)
        stack_learns = self.stack_from is None
        learner = OnlineLearner(
            self.model, self.learning, self.rectifying, stack_learns, shape, device, ranks, others=others
        )
        if begins and self.stack_from is not None:
            learner.take_stack(VideoPredictor.from_pretrained(self.stack_from))
        return learner

    @model_validator(mode="after")
    def _rectifier_learns(self) -> Self:
        rectifier = self.model.rectifier
        learns = rectifier is not None and rectifier.learns
        if learns != (self.rectifying is not None):
            kind = "none" if rectifier is None else rectifier.kind
            raise ValueError(
                f"rectifying must be given {'with this' if learns else 'only with a'} rectifier that learns; "
                f"got {'none' if self.rectifying is None else 'settings'} with the rectifier {kind!r}"
            )
        noise = getattr(rectifier, "noise_channels", 0)
        if self.rectifying is not None and (noise > 0) != (self.rectifying.loss == "energy_score"):
            raise ValueError(
                "rectifying.loss must be energy_score if and only if model.rectifier.noise_channels is above 0; "
                f"got {self.rectifying.loss} and {noise}"
            )
        if self.stack_from is not None and not learns:
            raise ValueError(f"stack_from needs a rectifier that learns, nothing else would; got {self.stack_from!r}")
        return self


def _check_symbols(name: str, named: int, stream: StreamConfig) -> None:
    """Refuse a model that names other symbols than the stream shows, with a ValueError."""
    shown = len(stream.symbols())
    if named != shown:
        raise ValueError(f"{name} must be {shown}, as many as the stream of {stream.kind} shows; got {named}")


class BaselineRunConfig(Config):
    """One complete, named experiment with a baseline.

    Attributes:
        name: of the preset.
        model: the baseline.
        learning: how it learns.
        stream: what it learns from.
        training: for how long.
    """

    name: _Name
    model: AnyBaselineConfig
    learning: SequenceLearningConfig = SequenceLearningConfig()
    stream: AnyStreamConfig = BouncingBallsConfig()
    training: _Training

    @property
    def frames_in_a_step(self) -> int:
        """Frames of each stream that one update takes."""
        return self.learning.window

    def without_effect(self) -> Iterator[tuple[str, str]]:
        """List how a system without weights would learn. Its run ends at once, whatever the budget."""
        if self.model.kind in WITHOUT_WEIGHTS:
            for name in SequenceLearningConfig.model_fields:
                yield f"learning.{name}", f"{self.model.kind} has nothing to learn"

    def make_learner(
        self,
        shape: tuple[int, int, int, int],
        device: torch.device,
        begins: bool,
        ranks: Ranks = _ALONE,
        others: Sequence[FrameShape] = (),
    ) -> SequenceLearner:
        """Return what learns in this run, as it is before the first update; the arguments are `RunConfig`'s.

        Raises:
            ValueError: the model cannot read such frames, names other symbols than they show, or frames of several
                sizes take turns.
        """
        if others:
            sizes = ", ".join(f"{height} x {width}" for _, height, width in (shape[1:], *others))
            raise ValueError(f"the frames of a baseline must have one size; got {sizes}")
        named = getattr(self.model, "symbols", None)
        if named is not None:
            _check_symbols("model.symbols", named, self.stream)
        return SequenceLearner(make_baseline(self.model), self.learning, shape, device, ranks)


AnyRunConfig = RunConfig | BaselineRunConfig


def save_run_config(config: AnyRunConfig) -> bytes:
    """Return what `load_run_config` reads."""
    return (config.model_dump_json(indent=2) + "\n").encode()


def load_run_config(folder: Path | str) -> AnyRunConfig:
    """Read the settings of the run in a folder, whichever version saved them; see `Config.from_json`.

    Raises:
        FileNotFoundError: the folder holds no run.
        ValueError: its settings are not readable.
    """
    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no run: it has no {RUN_FILE}")
    text = path.read_bytes()
    try:
        model = json.loads(text).get("model", {})
        kind: type[AnyRunConfig] = BaselineRunConfig if "kind" in model else RunConfig
    except (ValueError, AttributeError, TypeError, RecursionError):
        kind = RunConfig  # its error says what is wrong
    try:
        return kind.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def learned_from(name_or_folder: Path | str) -> StreamConfig | None:
    """Return what a model learned from; None where its folder has no run that says so, and for what is no folder.

    Args:
        name_or_folder: of the model, as `torchrsm.load` takes it.

    Raises:
        ValueError: the settings of the run are not readable.
    """
    try:
        return load_run_config(find_model(name_or_folder)).stream
    except FileNotFoundError:
        return None


def first_difference(before: AnyRunConfig, now: AnyRunConfig) -> tuple[str, Any, Any] | None:
    """Return the path and the two values of the first setting in which runs differ, None if they are the same."""
    a, b = (flatten_settings(config.model_dump(mode="json")) for config in (before, now))
    for name in sorted(a.keys() | b.keys(), key=lambda name: (name != "name", name)):
        if a.get(name) != b.get(name):
            return name, a.get(name), b.get(name)
    return None


def flatten_settings(settings: Any, name: str = "") -> dict[str, Any]:
    """Name each single setting by its path, such as ``model.layers.0.groups``."""
    if isinstance(settings, dict | list):
        parts = settings.items() if isinstance(settings, dict) else enumerate(settings)
        return {k: v for key, part in parts for k, v in flatten_settings(part, f"{name}.{key}".strip(".")).items()}
    return {name: settings}
