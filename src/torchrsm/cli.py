"""The command line: parses, calls, prints. ``torchrsm COMMAND --help`` lists the flags of each command.

The flags of ``train`` are the settings of `torchrsm.runs.settings.RunConfig`, nested ones by their path, such as
``--model.layers.0.groups``. Bad input ends with exit code 2 and one line on the standard error.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

import numpy as np
import torch
import tyro
from numpy.typing import NDArray
from pydantic import Field, ValidationError, field_validator, model_validator
from torch import Tensor

from torchrsm import __version__
from torchrsm.baselines import WITHOUT_WEIGHTS
from torchrsm.config import Config, first_error
from torchrsm.media.films import FILM_SUFFIXES, GIF_RATES, Comparison, dream_frames, save_video, write_film
from torchrsm.media.pictures import save_image, strip, two_row_picture
from torchrsm.media.plots import physics_panels, plot_by_step
from torchrsm.model import VideoPredictor
from torchrsm.predictor import Predictor
from torchrsm.progress import reporting
from torchrsm.rsm import kernels
from torchrsm.runs.bench import RESULTS_FILE, SYSTEMS, TABLE_FILE, Bench, BenchConfig, table
from torchrsm.runs.fitting import adapted, on_stack_of, sized
from torchrsm.runs.presets import PRESETS, preset
from torchrsm.runs.record import training_summary
from torchrsm.runs.settings import RUN_FILE, AnyRunConfig, BaselineRunConfig, RunConfig, load_run_config
from torchrsm.runs.trainer import Trainer
from torchrsm.scoring.evaluation import Evaluator
from torchrsm.scoring.metrics import SIMILARITY_WINDOW, frame_squared_error
from torchrsm.scoring.physics import check_world
from torchrsm.scoring.rollouts import RolloutScores, evaluate_rollouts, judge_dreams, simulator_tracked_error
from torchrsm.scoring.sequences import imagine, predict_sequences
from torchrsm.storage.folders import model_kind
from torchrsm.storage.shipped import find_model, shipped_models
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams import (
    ImageFolderReader,
    VideoReader,
    Webcam,
    bouncing_ball_sequences,
    load_clips,
    load_frames,
)
from torchrsm.streams.settings import AnyStreamConfig, BouncingBallsConfig, MovingMNISTConfig, VideoConfig, frame_shape
from torchrsm.streams.splits import FRAMES_IN_A_SEQUENCE, TEST_SEED, Split, held_out_frames
from torchrsm.systems import load
from torchrsm.watching import Watcher

_T = TypeVar("_T")

DREAM_SUFFIXES = (*FILM_SUFFIXES, ".png", ".npz")
FILM_SEQUENCES = 4

USAGE = """\
usage: torchrsm COMMAND ...

  train PRESET --out DIR [--minutes M | --steps N] [--seed S] [--resume] [settings]
                         train a model on bouncing balls; DIR is then a model folder
  train video FILE|FOLDER --out DIR [--system PRESET] [settings]
                         train one on your own video; the end of it is held out
  train digits --out DIR [--system PRESET] [settings]
                         train one on moving digits
  predict MODEL FILE --out FILM.mp4 [--frames N] [--json FILE]
                         predict each frame of a video from those before it: truth, prediction, overlay, error
  watch FILE|0 [--threshold 4] [--frames N]
                         learn from a video or a camera while it plays; a line of JSON for each frame
  serve [MODEL ...] [--host 127.0.0.1] [--port 8000]
                         a page to watch, play with and train models (extra: web)
  evaluate MODEL [--frames FILE] [--json FILE] [--strip PNG] [--rollout-steps N] [--plot PNG]
                         score next-frame predictions and dreams on frames that were never learned from: the test
                         sequences, the end of the run's own video, or a file
  dream MODEL --out FILE [--prime 50] [--steps 150] [--sequences N] [--prime-from VIDEO | --frames FILE | --seed S]
                         let a model imagine what comes next, as .mp4, .gif, .png or .npz
  bench balls --minutes M --out DIR [--systems all|NAME,NAME] [--seeds N] [--memory-from-length 10,50,200]
                         train systems for the same time and score them alike; one table
  presets                list the presets
  info MODEL             describe a model folder or a run

MODEL is a folder that `train` wrote, a shipped model ({shipped}) or a baseline ({baselines}).
`torchrsm COMMAND --help` lists every flag."""


class _TrainCommand(Config):
    """What every training run takes on the command line.

    Attributes:
        out: folder of the run.
        resume: go on with the run in the folder; give the same settings as before.
        tensorboard: also write the record for TensorBoard (needs the extra of that name).
    """

    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    resume: bool = False
    tensorboard: bool = False


class TrainCommand(_TrainCommand):
    """Train RSM on a stream of frames, and save it with its record."""

    run: Annotated[RunConfig, tyro.conf.arg(name="")]


class TrainBaselineCommand(_TrainCommand):
    """Train a baseline on a stream of frames, and save it with its record."""

    run: Annotated[BaselineRunConfig, tyro.conf.arg(name="")]


class EvaluateCommand(Config):
    """Score the next-frame predictions of a model: squared error per frame, PSNR and SSIM.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model or a baseline.
        frames: .npz or .npy of [sequences, time, (channels,) height, width] in 0..1; else the fixed test sequences.
        split: which fixed sequences; `validation` is for choosing between models.
        sequences: how many of the fixed sequences.
        json_file: write the scores here.
        strip: write a picture (.png) here: truth, prediction, and their overlay, of the first sequence.
        rollout_steps: steps of the dreams whose physics is judged too; 0 for none. Not with frames from a file, of
            whose world nothing is known.
        prime: true frames before a dream.
        plot: write the dreams' physics by step (.png) here.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    frames: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    split: Split = "test"
    sequences: Annotated[int, Field(ge=2)] = 200
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    strip: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None
    rollout_steps: Annotated[int, Field(ge=0)] = 0
    prime: Annotated[int, Field(ge=1, lt=FRAMES_IN_A_SEQUENCE)] = 50
    plot: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.frames is not None and (self.split, self.sequences) != ("test", 200):
            raise ValueError(
                f"split and sequences choose among the fixed sequences and cannot go with frames; "
                f"got {self.split} and {self.sequences} with {self.frames}"
            )
        for name, path in (("strip", self.strip), ("plot", self.plot)):
            if path is not None and path.suffix.lower() != ".png":
                raise ValueError(f"{name} must end in .png; got {str(path)!r}")
        if self.rollout_steps and self.frames is not None:
            raise ValueError(f"rollout_steps must be 0 with frames from a file; got {self.rollout_steps}")
        if self.plot is not None and not self.rollout_steps:
            raise ValueError(f"plot needs rollout_steps >= 1; got {self.rollout_steps}")
        return self


class DreamCommand(Config):
    """Show a model the beginning of some sequences, then let it imagine how they go on, on its own output alone.

    Attributes:
        model: folder of a model or a run, the name of a shipped model, or of a baseline.
        out: .mp4 or .gif for a film of up to four of the sequences (prediction red, truth blue, both magenta), .png for
            the two-row picture of the first (above: each frame predicted from the true ones before it; below: the
            dream), .npz for the numbers of all (arrays `frames`, the dream, `prime` and, as far as known, `truth`).
        prime: true frames that the model sees first.
        steps: frames to imagine.
        sequences: how many, the first ones; None for one, or for all of a file.
        frames: .npz or .npy of [sequences, time, (channels,) height, width] in 0..1 to prime on; else bouncing balls.
        prime_from: a video to prime on, read at the size that the model has learned from.
        seed: of the bouncing balls; else the fixed test sequences.
        json_file: write the physics of the dreams here; of 30 x 30 frames with three balls.
        frames_per_second: of the film; of a GIF 1 to 50.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    prime: Annotated[int, Field(ge=1)] = 50
    steps: Annotated[int, Field(ge=1)] = 150
    sequences: Annotated[int | None, Field(ge=1)] = None
    frames: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    prime_from: Annotated[Path | None, tyro.conf.arg(metavar="VIDEO")] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    frames_per_second: Annotated[float, Field(ge=0.001, le=240)] = 20.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.out.suffix.lower() not in DREAM_SUFFIXES:
            raise ValueError(f"out must end in {', '.join(DREAM_SUFFIXES)}; got {str(self.out)!r}")
        if self.frames is not None and self.prime_from is not None:
            raise ValueError(
                f"frames and prime_from cannot go together; got {str(self.frames)!r} and {str(self.prime_from)!r}"
            )
        given = self.frames or self.prime_from
        if given is not None and self.seed is not None:
            raise ValueError(f"seed is for bouncing balls, it cannot go with frames; got {self.seed} with {given}")
        slowest, fastest = GIF_RATES
        if self.out.suffix.lower() == ".gif" and not slowest <= self.frames_per_second <= fastest:
            raise ValueError(
                f"frames_per_second of a GIF must be in {slowest}..{fastest}; got {self.frames_per_second:g}"
            )
        if self.json_file == self.out:
            raise ValueError(f"out and json must be two files; got {str(self.out)!r} for both")
        return self


class PredictCommand(Config):
    """Predict each frame of a video from the true ones before it, and make a film of that.

    The video is read at the size that the model has learned from.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model or a baseline.
        video: a film, a folder of films or of pictures, or .npz or .npy of frames.
        out: the film, .mp4: truth, prediction and overlay side by side, and the error as it runs along.
        frames: at most so many; None for all.
        json_file: write the errors here.
        frames_per_second: of the film that is made.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    video: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILM")]
    frames: Annotated[int | None, Field(ge=2)] = None
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    frames_per_second: Annotated[float, Field(ge=0.001, le=240)] = 20.0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.out.suffix.lower() != ".mp4":
            raise ValueError(f"out must end in .mp4; got {str(self.out)!r}")
        if self.json_file == self.out:
            raise ValueError(f"out and json must be two files; got {str(self.out)!r} for both")
        return self


class WatchCommand(Config):
    """Learn from a video while it plays, and print how surprising each frame was, one line of JSON each.

    A line has `frame` (its number), `error` (squared error of the prediction), `copy_error` (of repeating the frame
    before), `surprise` (standard deviations of the logarithm of the error from what is usual) and `anomaly`.

    Attributes:
        video: a film, a folder of pictures, or the number of a camera.
        height, width: to which frames are reduced; None for as the other one asks.
        channels: 1 for grey, 3 for colour.
        threshold: surprise from which a frame is an anomaly.
        frames: stop after so many; None for the end of the video.
        seed: of the weights.
    """

    video: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE|0")]
    height: Annotated[int | None, Field(ge=8, le=512)] = 48
    width: Annotated[int | None, Field(ge=8, le=512)] = None
    channels: Literal[1, 3] = 1
    threshold: Annotated[float, Field(gt=0)] = 4.0
    frames: Annotated[int | None, Field(ge=2)] = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0


class ServeCommand(Config):
    """Serve the page: watch models live, play with them, train one.

    Attributes:
        models: folders of models to offer beside the shipped ones.
        host: address to listen on; the default is reached from this machine only.
        port: 0 for any that is free.
    """

    models: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")] = ()
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000


class BenchCommand(Config):
    """Train systems for the same time on the same cores, score them alike, and write one table.

    Attributes:
        world: what is learned and predicted.
        out: folder of the bench; one that was interrupted goes on, and systems can be added to it.
        systems: `all`, or names of presets, separated by commas.
        minutes: of training, each.
        seeds: training runs of each system, with the seeds 0, 1, ...
        memory_from_length: lengths of training sequences at which the peak memory is measured, separated by commas;
            empty for none.
        threads: of training; None for all cores at hand.
    """

    world: Annotated[Literal["balls"], tyro.conf.Positional] = "balls"
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    minutes: Annotated[float, Field(gt=0)]
    systems: str = "all"
    seeds: Annotated[int, Field(gt=0)] = 1
    memory_from_length: str = "10,50,200"
    threads: Annotated[int | None, Field(gt=0)] = None

    @field_validator("memory_from_length")
    @classmethod
    def _lengths(cls, text: str) -> str:
        if not re.fullmatch(r"(\d+(,\d+)*)?", text):
            raise ValueError(f"memory_from_length must be numbers separated by commas; got {text!r}")
        return text


class PresetsCommand(Config):
    """List the presets, the experiments that `train` knows by name."""


class InfoCommand(Config):
    """Describe a model: its layers, weights and training.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model.
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 stopped, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    command, rest = (given[0], given[1:]) if given else ("", [])
    try:
        if command in ("-h", "--help"):
            print(USAGE.format(baselines=", ".join(WITHOUT_WEIGHTS), shipped=", ".join(shipped_models()) or "none"))
            return 0
        if command == "--version":
            print(__version__)
            return 0
        if command not in _COMMANDS:
            raise ValueError(f"command must be one of {', '.join(_COMMANDS)}; got {command or 'none'}; see --help")
        kernels.set_threads(kernels.threads())
        _COMMANDS[command](rest)
    except ValidationError as error:
        return _fail(first_error(error), 2)
    except (ValueError, OSError) as error:
        return _fail(re.sub(r"^\[Errno \d+\] ", "", str(error)), 2)
    except ArithmeticError as error:
        return _fail(str(error), 1)
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        return _fail(f"not enough memory: {error}", 2)
    except KeyboardInterrupt as interrupt:
        return _fail(str(interrupt) or "interrupted", 130)
    return 0


def _fail(message: str, code: int) -> int:
    print(f"torchrsm: {' '.join(message.split())}", file=sys.stderr)
    return code


def _train(arguments: list[str]) -> None:
    if not arguments or arguments[0].startswith("-"):
        if arguments[:1] in (["-h"], ["--help"]):
            _parse_train(preset("balls"), ["--help"], "train PRESET")
        raise ValueError(
            f"train needs a preset first, one of {', '.join(PRESETS)}, or video or digits; "
            f"got {arguments[0] if arguments else 'none'}"
        )
    name, *rest = arguments
    if name in ("video", "digits"):
        command = _parse_world(name, rest)
    else:
        command = _parse_train(preset(name), rest, f"train {name}")
    writer_type = _summary_writer() if command.tensorboard else None
    trainer = Trainer(command.run, command.out, resume=command.resume)
    if command.resume:
        print(f"resuming {command.out} at step {trainer.step:,}")
    with reporting(name) as report, _tensorboard(writer_type, trainer) as write:
        trainer.run(lambda record: (report(record), write(record))[0])
    print(f"{command.out} is trained: {trainer.step:,} steps, {trainer.seconds / 60:.1f} minutes")


def _parse_world(world: str, arguments: list[str]) -> TrainCommand | TrainBaselineCommand:
    """Parse the flags of a run that learns from a video or from digits, its settings made to fit the frames."""
    rest, system = _taken(arguments, "--system", "balls")
    stream: AnyStreamConfig = MovingMNISTConfig()
    name = f"train {world}"
    if world == "video":
        if not rest or rest[0].startswith("-"):
            if rest[:1] not in (["-h"], ["--help"]):
                raise ValueError(f"train video needs a file or folder first; got {rest[0] if rest else 'none'}")
            stream = VideoConfig(path="-")
        else:
            path, *rest = rest
            stream, name = VideoConfig(path=path), f"train video {path}"
    run = preset(system)
    if run.model.channels != 1:
        raise ValueError(f"system must be a preset for one channel; got {system!r}")
    command = _parse_train(adapted(run, stream), rest, name)
    return command.replace(run=sized(command.run, frame_shape(command.run.stream)))


def _taken(arguments: list[str], flag: str, default: str) -> tuple[list[str], str]:
    """Return the arguments without one flag and its value, and the value."""
    rest, value = [], default
    given = iter(arguments)
    for argument in given:
        if argument == flag:
            value = next(given, "")
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
        else:
            rest.append(argument)
    return rest, value


def _reading(model: str) -> dict[str, Any]:
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


def _predict(arguments: list[str]) -> None:
    command = _parse(PredictCommand, arguments, "predict")
    for target in (command.out, command.json_file):
        if target is not None:
            _check_writable(target)
    predictor = load(command.model)
    first = load_clips(command.video, **_reading(command.model))[0][: command.frames]
    errors: list[float | None] = []
    copied: list[float | None] = []
    write_film(_compared(predictor, first, command.model, errors, copied), command.out, command.frames_per_second)
    known = [(a, b) for a, b in zip(errors, copied, strict=True) if a is not None and b is not None]
    mean, mean_copied = (sum(values) / max(len(values), 1) for values in zip(*known, strict=True)) if known else (0, 0)
    if command.json_file is not None:
        said = {"model": command.model, "video": str(command.video), "errors": errors, "copy_errors": copied}
        write_atomically(command.json_file, (json.dumps(said) + "\n").encode())
    print(f"{len(first)} frames of {command.video}: squared error {mean:.4g} a frame", end="")
    print(f", {mean_copied:.4g} for the frame before: {command.out}")


def _compared(
    predictor: Predictor[Any, Any],
    clip: NDArray[np.uint8],
    name: str,
    errors: list[float | None],
    copied: list[float | None],
) -> Iterator[NDArray[np.uint8]]:
    """Yield the pictures of the film, and note the errors on the way."""
    _, channels, height, width = clip.shape
    comparison = Comparison((height, width), ["prediction"], copy_last=True, title=name)
    state = predictor.initial_state((1, channels, height, width))
    before: Tensor | None = None
    for levels in clip:
        frame = torch.from_numpy(levels[None]).float() / 255
        with torch.no_grad():
            prediction = predictor.predict(state)
            state = predictor.observe(frame, prediction, state)
        errors.append(None if before is None else float(frame_squared_error(prediction.frame, frame)))
        copied.append(None if before is None else float(frame_squared_error(before, frame)))
        yield comparison.picture(frame[0], [prediction.frame[0]], (errors[-1], copied[-1]))
        before = frame


def _watch(arguments: list[str]) -> None:
    command = _parse(WatchCommand, arguments, "watch")
    kernels.set_threads(1)
    watcher: Watcher | None = None
    for levels in itertools.islice(_frames_to_watch(command), command.frames):
        frame = torch.from_numpy(levels).float() / 255
        watcher = watcher or Watcher((frame.shape[0], frame.shape[1], frame.shape[2]), command.seed)
        seen = watcher.see(frame)
        line = {
            "frame": seen.frame,
            "error": _rounded(seen.error),
            "copy_error": _rounded(seen.copy_error),
            "surprise": round(seen.surprise, 3),
            "anomaly": seen.surprise >= command.threshold,
        }
        try:
            print(json.dumps(line), flush=True)
        except BrokenPipeError:  # who reads has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _frames_to_watch(command: WatchCommand) -> Iterator[NDArray[np.uint8]]:
    size: dict[str, Any] = {"height": command.height, "width": command.width, "channels": command.channels}
    if command.video.isdigit():
        return (
            (frames[0] * 255).round().to(torch.uint8).numpy() for frames, _, _ in Webcam(int(command.video), **size)
        )
    if Path(command.video).is_dir():
        return iter(ImageFolderReader(command.video, **size))
    return iter(VideoReader(command.video, **size))


def _serve(arguments: list[str]) -> None:
    command = _parse(ServeCommand, arguments, "serve")
    try:
        from torchrsm.web.library import Library
        from torchrsm.web.server import serve
    except ImportError as error:
        raise ValueError("serve needs the extra: pip install 'torchrsm[web]'") from error
    library = Library([find_model(folder) for folder in command.models])
    serve(library, command.host, command.port, ready=lambda address: print(f"watch at {address} (end with Ctrl-C)"))


def _parse_train(run: AnyRunConfig, arguments: list[str], name: str) -> TrainCommand | TrainBaselineCommand:
    """Parse the flags, which start from a preset; a budget among them takes the place of the preset's."""
    kind: type[TrainCommand | TrainBaselineCommand] = (
        TrainCommand if isinstance(run, RunConfig) else TrainBaselineCommand
    )
    budgets = [a.split("=")[0].removeprefix("--") for a in arguments if re.match(r"--(steps|minutes)(=|$)", a)]
    if len(set(budgets)) == 1:
        other = {"minutes": None, "steps": 1} if budgets[0] == "steps" else {"steps": None, "minutes": 1.0}
        run = run.replace(training=run.training.replace(**other))
    _, stack = _taken(arguments, "--stack-from", "")
    if stack and isinstance(run, RunConfig):
        run = on_stack_of(run, stack)
    default = kind.model_construct(out=tyro.MISSING, resume=False, tensorboard=False, run=run)
    return _parse(kind, arguments, name, default=default)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("--tensorboard needs the extra: pip install 'torchrsm[tensorboard]'") from error
    return SummaryWriter


@contextlib.contextmanager
def _tensorboard(writer_type: Any, trainer: Trainer) -> Any:
    if writer_type is None:
        yield lambda record: None
        return
    # The step: a resumed run writes again what came after its checkpoint.
    with writer_type(str(trainer.folder / "tensorboard"), purge_step=trainer.step + 1) as writer:

        def write(record: Any) -> None:
            writer.add_scalar("frame_squared_error", record.frame_squared_error, record.step)
            writer.add_scalar("frames_per_second", record.frames_per_second, record.step)
            for name, loss in zip(record.loss_names, record.losses, strict=True):
                writer.add_scalar(name, loss, record.step)

        yield write


def _bench(arguments: list[str]) -> None:
    command = _parse(BenchCommand, arguments, "bench balls")
    config = BenchConfig(
        world=command.world,
        systems=SYSTEMS if command.systems == "all" else tuple(command.systems.split(",")),
        minutes=command.minutes,
        seeds=command.seeds,
        memory_from_length=tuple(int(length) for length in filter(None, command.memory_from_length.split(","))),
        threads=command.threads or kernels.threads(),
    )
    results = Bench(config, command.out).run(reporting)
    print(f"\n{table(results)}\n\nIn {command.out}: {TABLE_FILE}, {RESULTS_FILE}, error.png, memory.png")


def _evaluate(arguments: list[str]) -> None:
    command = _parse(EvaluateCommand, arguments, "evaluate")
    for target in (command.json_file, command.strip, command.plot):
        if target is not None:
            _check_writable(target)
    predictor = load(command.model)
    folder = Path(command.model)
    training = (
        None if command.model in WITHOUT_WEIGHTS and not folder.is_dir() else training_summary(find_model(folder))
    )
    frames = load_frames(command.frames) if command.frames is not None else _unseen_frames(command)
    similarity = min(frames.shape[-2:]) >= SIMILARITY_WINDOW
    scores = Evaluator(frames, similarity=similarity).evaluate(predictor, model=command.model)
    scores = scores.model_copy(update={"training": training, "rollout": _rollout(command, predictor, frames)})
    if command.json_file is not None:
        write_atomically(command.json_file, (scores.to_json() + "\n").encode())
    if command.strip is not None:
        first = frames[:1, :30]
        predicted = predict_sequences(predictor, first).frames
        save_image(strip(first[0], predicted[0], title=f"{command.model}: next-frame prediction"), command.strip)
    if command.plot is not None and scores.rollout is not None:
        plot_by_step(physics_panels(scores.rollout.physics), command.plot)
    print(scores.table())
    for name, target in (("scores", command.json_file), ("picture", command.strip), ("physics", command.plot)):
        if target is not None:
            print(f"{name}: {target}")


def _unseen_frames(command: EvaluateCommand) -> Tensor:
    """Return what the model never learned from: of its own run's stream, or else bouncing balls."""
    folder = Path(command.model)
    stream: AnyStreamConfig = BouncingBallsConfig()
    if (folder / RUN_FILE).is_file():
        stream = load_run_config(folder).stream
    if command.rollout_steps and not isinstance(stream, BouncingBallsConfig):
        raise ValueError(f"rollout_steps must be 0 for a model of {stream.kind}; got {command.rollout_steps}")
    return held_out_frames(stream, command.split, command.sequences)


def _rollout(command: EvaluateCommand, predictor: Predictor[Any, Any], frames: Tensor) -> RolloutScores | None:
    if not command.rollout_steps:
        return None
    simulator = simulator_tracked_error(command.split, command.sequences, prime=command.prime)
    return evaluate_rollouts(predictor, frames, prime=command.prime, steps=command.rollout_steps, simulator=simulator)


def _dream(arguments: list[str]) -> None:
    command = _parse(DreamCommand, arguments, "dream")
    for target in (command.out, command.json_file):
        if target is not None:
            _check_writable(target)
    predictor = load(command.model)
    frames, source = _frames_to_prime_on(command)
    if frames.shape[1] < command.prime:
        raise ValueError(f"prime must be <= {frames.shape[1]}, the frames of a sequence; got {command.prime}")
    if command.json_file is not None:
        check_world(frames)
    before, truth = frames[:, : command.prime], frames[:, command.prime : command.prime + command.steps]
    dream = imagine(predictor, before, command.steps)
    if command.out.suffix.lower() == ".npz":
        arrays = {"prime": before, "frames": dream, **({"truth": truth} if truth.shape[1] else {})}
        _write_arrays(command.out, arrays)
    elif command.out.suffix.lower() == ".png":
        true = torch.cat([before[0], truth[0]])
        predicted = predict_sequences(predictor, true[None]).frames[0]
        dreamt = torch.cat([predicted[: command.prime], dream[0]])
        save_image(two_row_picture(true, predicted, dreamt, command.prime), command.out)
    else:
        film = before[:FILM_SEQUENCES]
        shown = torch.cat([predict_sequences(predictor, film).frames, dream[:FILM_SEQUENCES]], 1)
        true = torch.cat([film, truth[:FILM_SEQUENCES]], 1)
        save_video(dream_frames(true, shown, command.prime), command.out, command.frames_per_second)
    if command.json_file is not None:
        scores = judge_dreams(dream, frames, command.prime)
        write_atomically(command.json_file, (scores.model_dump_json(indent=2) + "\n").encode())
        print(scores.table())
    print(f"{len(dream)} dream(s) of {command.steps} steps after {command.prime} frames of {source}: {command.out}")


def _frames_to_prime_on(command: DreamCommand) -> tuple[Tensor, str]:
    """Return sequences, as far as they are known, and what they are."""
    if command.prime_from is not None:
        clips = load_clips(command.prime_from, **_reading(command.model))
        if command.sequences is not None and command.sequences > len(clips):
            raise ValueError(
                f"sequences must be <= {len(clips)}, the clips of {command.prime_from}; got {command.sequences}"
            )
        length = min(command.prime + command.steps, *(len(clip) for clip in clips))
        chosen = np.stack([clip[:length] for clip in clips[: command.sequences]])
        return torch.from_numpy(chosen).float() / 255, str(command.prime_from)
    if command.frames is not None:
        frames = load_frames(command.frames)
        if command.sequences is not None and command.sequences > len(frames):
            raise ValueError(f"sequences must be <= {len(frames)}, those of {command.frames}; got {command.sequences}")
        return frames[: command.sequences], str(command.frames)
    length = max(2, command.prime + command.steps)
    seed = TEST_SEED if command.seed is None else command.seed
    balls = bouncing_ball_sequences(range(command.sequences or 1), seed=seed, sequence_length=length)
    return balls.frames, "the test sequences" if command.seed is None else f"bouncing balls, seed {seed}"


def _write_arrays(target: Path, arrays: dict[str, Tensor]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **cast(Any, {name: array.numpy() for name, array in arrays.items()}))
    write_atomically(target, content.getvalue())


def _check_writable(target: Path) -> None:
    """Refuse a file that cannot be written before the work that it is for."""
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: there is no folder {target.parent}")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    if not os.access(target.parent, os.W_OK):
        raise PermissionError(f"cannot write {target}: the folder {target.parent} is not writable")


def _presets(arguments: list[str]) -> None:
    _parse(PresetsCommand, arguments, "presets")
    width = max(len(name) for name, _ in PRESETS.items())
    for name, make in PRESETS.items():
        print(f"{name:{width}} {(make.__doc__ or '').splitlines()[0].removeprefix('Return ')}")


def _info(arguments: list[str]) -> None:
    folder = find_model(_parse(InfoCommand, arguments, "info").model)
    model = load(folder)
    run = load_run_config(folder) if (folder / RUN_FILE).exists() else None
    weights = sum(p.numel() for p in model.parameters())
    if isinstance(model, VideoPredictor):
        _describe_layers(model, folder, weights)
    else:
        c = model.config
        print(f"{folder}: {model_kind(folder)}, {c.channels} channel(s), {c.height} x {c.width}, {weights:,} weights")
    if run is not None:
        budget = f"{run.training.steps:,} steps" if run.training.steps else f"{run.training.minutes:g} minutes"
        print(f"  run: preset {run.name}, budget {budget}, batch {run.training.batch_size}, seed {run.training.seed}")


def _describe_layers(model: VideoPredictor, folder: Path, weights: int) -> None:
    config = model.config
    size = "any size" if config.height is None else f"{config.height} x {config.width}"
    print(f"{folder}: {config.channels} channel(s), {size}, {weights:,} weights")
    for number, (layer, s) in enumerate(zip(model.stack.layers, config.layers, strict=True), 1):
        weights = sum(p.numel() for p in layer.parameters())
        print(f"  layer {number}: {s.groups} groups x {s.cells_per_group} cells, {s.active_groups} win, ", end="")
        print(f"{s.kernel_size}x{s.kernel_size} stride {s.stride}, {weights:,} weights")
    if model.rectifier is not None and config.rectifier is not None:
        weights = sum(p.numel() for p in model.rectifier.parameters())
        print(f"  rectifier: {config.rectifier.kind}, {weights:,} weights")


def _parse(kind: type[_T], arguments: list[str], name: str, default: Any = None) -> _T:
    """Parse flags with the schema of ``kind``; tyro's boxed message becomes one line."""
    output = io.StringIO()
    known = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(output):
            return cast(_T, tyro.cli(kind, args=arguments, prog=f"torchrsm {name}", config=_TYRO, **known))
    except SystemExit as end:
        if end.code in (0, None):
            raise
        raise ValueError(_one_line(end, output.getvalue(), name)) from None


def _one_line(end: SystemExit, box: str, name: str) -> str:
    """Say what is wrong with the flags: what the schema says, or else what stands first in tyro's box."""
    place, cause = "", end.__context__
    while cause is not None:
        if isinstance(cause, ValidationError):
            return place + first_error(cause)
        place = str(getattr(cause, "arg", "")).removeprefix("run").strip(".")  # such as model.layers.0
        place, cause = place and f"{place}: ", cause.__context__
    title, *parts = re.split(r"[-─]{9,}", re.sub(r"[╭╮╰╯│]", " ", box))
    text = " ".join((parts or [title])[0].split())
    for words, better in _PHRASES:
        text = re.sub(words, better, text)
    return f"{name}: {text}; see torchrsm {name} --help"


# What kind of rectifier there is, and whether there is one, is the preset's to say; the flags are its settings.
_TYRO = (tyro.conf.AvoidSubcommands,)

_PHRASES = (  # what tyro says, and the same in our words
    (r"^Missing from [^:]*: ((?:--\S+ )?\S+) (.*?)\.? \(required\).*", r"missing \1 (\2)"),
    (r"^Unrecognized options: ", "unknown: "),
    (r"^Missing value for argument '(.*)'\. Expected (\d+) values\.", r"\1 needs \2 value(s)"),
    (r"^invalid choice (.*) for argument '(.*)'\. Expected one of \((.*)\)\.", r"\2 must be one of \3; got \1"),
    (r"^Error parsing (\S+): invalid literal for int\(\) with base 10: ", r"\1 must be INT; got "),
    (r"^Error parsing (\S+): could not convert string to float: ", r"\1 must be FLOAT; got "),
    (
        r"^Error parsing (\S+): no type matching (\S+) could be instantiated from \[(.*?)\]\. .*",
        r"\1 must be \2; got \3",
    ),
    (r"^Error parsing (\S+): Could not find valid parse for arguments: ", r"\1 does not take "),
)

_COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "predict": _predict,
    "watch": _watch,
    "serve": _serve,
    "evaluate": _evaluate,
    "bench": _bench,
    "dream": _dream,
    "presets": _presets,
    "info": _info,
}

if __name__ == "__main__":
    sys.exit(main())
