"""``train``: learn from bouncing balls, from a video or from digits."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Annotated, Any

import tyro

from torchrsm.cli.parsing import parse, taken
from torchrsm.cli.progress import reporting
from torchrsm.config import Config
from torchrsm.runs.fitting import adapted, on_stack_of, sized
from torchrsm.runs.presets import PRESETS, preset
from torchrsm.runs.settings import AnyRunConfig, BaselineRunConfig, RunConfig
from torchrsm.runs.trainer import Trainer
from torchrsm.streams.settings import AnyStreamConfig, MovingMNISTConfig, VideoConfig, frame_shape


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


def train(arguments: list[str]) -> None:
    """Train a system in a folder, from nothing or from its last checkpoint on."""
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
    rest, system = taken(arguments, "--system", "balls")
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


def _parse_train(run: AnyRunConfig, arguments: list[str], name: str) -> TrainCommand | TrainBaselineCommand:
    """Parse the flags, which start from a preset; a budget or a stack among them takes the place of the preset's."""
    kind: type[TrainCommand | TrainBaselineCommand] = (
        TrainCommand if isinstance(run, RunConfig) else TrainBaselineCommand
    )
    budgets = [a.split("=")[0].removeprefix("--") for a in arguments if re.match(r"--(steps|minutes)(=|$)", a)]
    if len(set(budgets)) == 1:
        other = {"minutes": None, "steps": 1} if budgets[0] == "steps" else {"steps": None, "minutes": 1.0}
        run = run.replace(training=run.training.replace(**other))
    _, stack = taken(arguments, "--stack-from", "")
    if stack and isinstance(run, RunConfig):
        run = on_stack_of(run, stack)
    default = kind.model_construct(out=tyro.MISSING, resume=False, tensorboard=False, run=run)
    return parse(kind, arguments, name, default=default)


def _summary_writer() -> Any:
    from torch.utils.tensorboard import SummaryWriter

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
