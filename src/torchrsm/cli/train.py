"""``train``: learn from bouncing balls, a video, digits, balls whose future is not certain, or symbols."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from torchrsm.cli.outputs import check_output_folder, same_place, with_output
from torchrsm.cli.parsing import parse, taken
from torchrsm.cli.progress import reporting
from torchrsm.cli.reading import as_read, shape_of
from torchrsm.config import Config
from torchrsm.learning.ranks import Ranks
from torchrsm.runs.film import found
from torchrsm.runs.fitting import adapted, nearest_shape, on_stack_of, sized
from torchrsm.runs.presets import PRESETS, preset
from torchrsm.runs.record import Record
from torchrsm.runs.settings import AnyRunConfig, BaselineRunConfig, RunConfig, load_run_config
from torchrsm.runs.trainer import Trainer
from torchrsm.streams.grammar import GRAMMARS
from torchrsm.streams.settings import (
    STREAMS,
    GrammarConfig,
    OfSymbols,
    VideoConfig,
    WordsConfig,
    frame_shape,
    open_videos,
)


class _TrainCommand(Config):
    """What every training run takes on the command line.

    Attributes:
        out: folder of the run; without it one in runs/.
        resume: go on with the run in the folder, with its settings; a longer budget extends it.
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


def train(arguments: list[str], ranks: Ranks) -> None:
    """Train a system in a folder, from nothing or from its last checkpoint on."""
    with_folder = _with_folder(arguments, ranks)
    name, command = _parsed(with_folder)
    if with_folder != arguments:
        print(f"run folder: {command.out}")
    writer_type = _summary_writer() if command.tensorboard and ranks.rank == 0 else None
    stream = found(command.run.stream, command.out)
    film = stream.path if isinstance(stream, VideoConfig) else None
    check_output_folder(command.out, [film, getattr(command.run, "stack_from", None)])
    if isinstance(stream, VideoConfig):
        print(as_read(stream.path, shape_of(open_videos(stream))))
    trainer = Trainer(command.run, command.out, resume=command.resume, ranks=ranks)
    if command.resume:
        print(f"resuming {command.out} at step {trainer.step:,}")
    with reporting(name, lambda: trainer.progress) as report, _tensorboard(writer_type, trainer) as write:
        _run(trainer, lambda record: (report(record), write(record))[0])
    print(f"{command.out} is trained: {trainer.step:,} steps, {trainer.seconds / 60:.1f} minutes")
    if ranks.rank == 0:
        place = shlex.quote(str(command.out))
        print(f"next: torchrsm evaluate {place}, torchrsm dream {place}, torchrsm serve {place}")


def _with_folder(arguments: list[str], ranks: Ranks) -> list[str]:
    """Return arguments that name a folder: where a single process begins a run and names none, one in runs/."""
    known = arguments[:1] and (arguments[0] in PRESETS or arguments[0] in _WORLDS)
    if not known or "--resume" in arguments or ranks.count > 1 or "--" in arguments:
        return arguments
    name, *rest = arguments
    if name not in _SOURCES:
        return with_output(arguments, name)
    return with_output(arguments, Path(rest[0]).stem) if rest and not rest[0].startswith("-") else arguments


def _run(trainer: Trainer, report: Callable[[Record], None]) -> None:
    """Train; where the reader of the record leaves, stop as for an interrupt, so that nothing learned is lost."""
    reader_left = False

    def report_while_read(record: Record) -> None:
        nonlocal reader_left
        try:
            report(record)
        except BrokenPipeError:
            reader_left = True
            trainer.stop()

    try:
        trainer.run(report_while_read)
    except KeyboardInterrupt:
        if not reader_left:
            raise
    if reader_left:
        raise BrokenPipeError


def _parsed(arguments: list[str]) -> tuple[str, TrainCommand | TrainBaselineCommand]:
    """Return what the run is called in its record, and all that was asked for."""
    name = arguments[0] if arguments else ""
    if "--resume" in arguments and not {"-h", "--help"} & set(arguments):
        return _parsed_to_resume(arguments)
    if name in _WORLDS:
        return name, _parse_world(name, arguments[1:])
    if not name or name.startswith("-"):
        if name in ("-h", "--help"):
            _parse_train(preset("balls"), ["--help"], "train PRESET")
        raise ValueError(
            f"train needs a preset first, one of {', '.join(PRESETS)}, or one of {', '.join(_WORLDS)}; "
            f"got {name or 'none'}"
        )
    return name, _parse_train(preset(name), arguments[1:], f"train {name}")


def _parsed_to_resume(arguments: list[str]) -> tuple[str, TrainCommand | TrainBaselineCommand]:
    """Take the settings of the run in the folder, and the flags as changes of them, which the run will check."""
    _, folder = taken(arguments, "--out", "")
    if not folder:
        raise ValueError("train: missing --out DIR, the folder of the run to resume; see torchrsm train --help")
    begun = load_run_config(folder)
    name, *rest = arguments
    if name.startswith("-"):
        rest = arguments
    elif name in _WORLDS:
        rest, system = taken(rest, "--system", begun.name)
        source = None
        if name in _SOURCES and rest and not rest[0].startswith("-"):
            source, *rest = rest
        _check_begun_with(folder, begun, name, system, source)
    else:
        _check_begun_with(folder, begun, preset(name).stream.kind, preset(name).name, None)
    return begun.name, _parse_train(begun, rest, f"train {name}")


def _check_begun_with(folder: str, begun: AnyRunConfig, world: str, system: str, source: str | None) -> None:
    """Refuse to resume a run under the name of another."""
    if begun.stream.kind != world:
        raise ValueError(f"{folder} was begun with {begun.stream.kind}; it cannot go on with {world}")
    if begun.name != preset(system).name:
        raise ValueError(f"{folder} was begun with {begun.name}; it cannot go on with {system}")
    if source is not None and isinstance(begun.stream, VideoConfig):
        where = found(begun.stream, folder)
        assert isinstance(where, VideoConfig)
        if not same_place(Path(source), Path(where.path)):
            raise ValueError(f"{folder} was begun with the video {begun.stream.path}; it cannot go on with {source}")
    words = begun.stream.path if isinstance(begun.stream, WordsConfig) else None
    if source is not None and words is not None and not same_place(Path(source), Path(words)):
        raise ValueError(f"{folder} was begun with the text {words}; it cannot go on with {source}")
    if source is not None and isinstance(begun.stream, GrammarConfig) and source != begun.stream.grammar:
        raise ValueError(f"{folder} was begun with the grammar {begun.stream.grammar}; it cannot go on with {source}")


def _parse_world(world: str, arguments: list[str]) -> TrainCommand | TrainBaselineCommand:
    """Parse the flags of a run that learns from another world, its settings made to fit the frames."""
    rest, system = taken(arguments, "--system", _WORLDS[world])
    given: dict[str, Any] = {}
    name = f"train {world}"
    if world in _SOURCES:
        of = _SOURCES[world]
        source, rest = _first(rest, f"train {world} needs {of.needed}")
        given = {of.setting: source or of.in_help}
        name = f"train {world} {source}" if source else name
    run = preset(system)
    stream = STREAMS[world][0].model_validate(given)
    if run.model.channels != 1 and not isinstance(stream, OfSymbols):
        raise ValueError(f"system must be a preset for one channel; got {system!r}")
    # How many symbols there are follows from flags, too.
    begun = run.replace(stream=stream) if isinstance(stream, OfSymbols) else adapted(run, stream)
    command = _parse_train(begun, rest, name)
    return command.replace(run=_fitted(command.run, system))


# The streams that can be learned from by the name of their kind, and the system that does so unless another is named.
_WORLDS = {
    "video": "balls-window",
    "digits": "balls-window",
    "kicked-balls": "balls",
    "two-way-balls": "balls",
    "grammar": "reber",
    "words": "words-boosted",
}


class _Source(NamedTuple):
    """What is learned from, where it is named first on the command line.

    Attributes:
        setting: of the stream, which it is.
        in_help: its value where nothing is named.
        needed: what must stand there, for people.
    """

    setting: str
    in_help: str
    needed: str


_SOURCES = {
    "video": _Source("path", "-", "a file or folder first"),
    "grammar": _Source("grammar", next(iter(GRAMMARS)), f"a file first, or one of {', '.join(GRAMMARS)}"),
    "words": _Source("path", "-", "a text first, a folder or a file"),
}


def _first(arguments: list[str], needed: str) -> tuple[str | None, list[str]]:
    """Return what is learned from, which stands first or after ``--``, None where help is asked for; and the rest."""
    if "--" in arguments:
        at = arguments.index("--")
        before, after = arguments[:at], arguments[at + 1 :]
        if len(after) == 1:
            return after[0], before
        arguments = [*after, *before]
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], arguments[1:]
    if arguments[:1] in (["-h"], ["--help"]):
        return None, arguments
    raise ValueError(f"{needed}; got {arguments[0] if arguments else 'none'}")


def _fitted(run: AnyRunConfig, system: str) -> AnyRunConfig:
    """Return a run whose model reads the frames; a video is read a little wider or narrower where it must be."""
    if isinstance(run.stream, OfSymbols):
        run = adapted(run, run.stream)
    shape = frame_shape(run.stream)
    if not isinstance(run.stream, VideoConfig):
        return sized(run, shape)
    channels, height, width = nearest_shape(run, shape)
    if (channels, height, width) != shape:
        if run.stream.height is not None and run.stream.width is not None:
            raise ValueError(
                f"{system} cannot read frames of {shape[1]} x {shape[2]} (height x width); "
                f"the nearest that it can read are {height} x {width}"
            )
        print(f"frames are read as {height} x {width} (height x width): {system} cannot read {shape[1]} x {shape[2]}")
        run = run.replace(**{"stream.height": height, "stream.width": width})
    return sized(run, (channels, height, width))


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
