"""``dream``: let a model imagine what comes next."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Annotated, Any, Self, cast

import numpy as np
import torch
import tyro
from pydantic import Field, model_validator
from torch import Tensor

from torchrsm.baselines import SequenceModel
from torchrsm.cli.outputs import check_outputs, with_output
from torchrsm.cli.parsing import parse
from torchrsm.cli.reading import Clips, as_read, clips_for, size_for
from torchrsm.cli.symbols import dream_strings, dream_text, require_usual
from torchrsm.config import Config
from torchrsm.learning.ranks import Ranks
from torchrsm.media.films import FILM_SUFFIXES, GIF_RATES, dream_frames, save_video
from torchrsm.media.pictures import save_image, two_row_picture
from torchrsm.model import VideoPredictor
from torchrsm.predictor import Predictor
from torchrsm.runs.settings import DeviceFlag, learned_from
from torchrsm.sampling import Sampled, SampledWinners
from torchrsm.scoring.physics import check_world
from torchrsm.scoring.rollouts import judge_dreams
from torchrsm.scoring.sequences import imagine, predict_sequences
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams import (
    bouncing_ball_sequences,
    open_frames,
)
from torchrsm.streams.paths import printable
from torchrsm.streams.settings import OfSymbols, WordsConfig
from torchrsm.streams.splits import TEST_SEED
from torchrsm.systems import load

DREAM_SUFFIXES = (*FILM_SUFFIXES, ".png", ".npz", ".txt")
FILM_SEQUENCES = 4
_FRAMES_PER_SECOND = 20.0


class DreamCommand(Config):
    """Show a model the beginning of some sequences, then let it imagine how they go on, on its own output alone.

    Attributes:
        model: folder of a model or a run, the name of a shipped model, or of a baseline.
        out: without it a film in runs/, of a model of symbols a text. .mp4 or .gif for a film of up to four of the
            sequences (prediction red, truth blue, both magenta), .png for the two-row picture of the first (above: each
            frame predicted from the true ones before it; below: the dream), .npz for the numbers of all (arrays
            `frames`, the dream, `prime` and, as far as known, `truth`). A model of symbols writes strings, one a line,
            to a .txt.
        prime: true frames that the model sees first.
        steps: frames to imagine.
        sequences: how many, the first ones; None for one, or for all of a file.
        frames: .npz or .npy of [sequences, time, (channels,) height, width] in 0..1 to prime on; else bouncing balls.
        layout: what each axis of an array is, where their shape does not tell: letters of ntchw (n: sequence).
        white: which value of a pixel is white, for pictures of more than 8 bits to prime on that do not tell.
        prime_from: a video to prime on, read at the size that the model has learned from.
        seed: of the bouncing balls; else the fixed test sequences.
        sample: draw one of the futures that may come at each step, with a number as the seed of the draws: another one
            dreams another future. For models whose rectifier takes noise, and for others with ``temperature``.
        temperature: of the draws, where the winners of each layer are drawn in place of the rectifier's noise.
        json_file: write the physics of the dreams here; of 30 x 30 frames with three balls.
        frames_per_second: of the film; of a GIF 1 to 50.
        device: where the model computes, by its name (`torchrsm.devices.choose_device`).
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    prime: Annotated[int, Field(ge=1)] = 50
    steps: Annotated[int, Field(ge=1)] = 150
    sequences: Annotated[int | None, Field(ge=1)] = None
    frames: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    layout: str | None = None
    white: Annotated[float | None, Field(gt=0)] = None
    prime_from: Annotated[Path | None, tyro.conf.arg(metavar="VIDEO")] = None
    seed: Annotated[int | None, Field(ge=0, lt=2**63)] = None
    sample: Annotated[int | None, Field(ge=0, lt=2**63), tyro.conf.arg(metavar="SEED")] = None
    temperature: Annotated[float | None, Field(gt=0)] = None
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    frames_per_second: Annotated[float, Field(ge=0.001, le=240)] = _FRAMES_PER_SECOND
    device: DeviceFlag = "cpu"

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.out.suffix.lower() not in DREAM_SUFFIXES:
            raise ValueError(f"out must end in {', '.join(DREAM_SUFFIXES)}; got {str(self.out)!r}")
        if self.frames is not None and self.prime_from is not None:
            raise ValueError(
                f"frames and prime_from cannot go together; got {str(self.frames)!r} and {str(self.prime_from)!r}"
            )
        given = self.frames or self.prime_from
        if self.temperature is not None and self.sample is None:
            raise ValueError(f"temperature is that of draws and needs sample; got {self.temperature:g} without sample")
        if self.layout is not None and given is None:
            raise ValueError(f"layout is that of frames from a file; got {self.layout!r} without any")
        if self.white is not None and self.prime_from is None:
            raise ValueError(f"white is that of pictures to prime on; got {self.white:g} without prime_from")
        if self.frames_per_second != _FRAMES_PER_SECOND and self.out.suffix.lower() not in FILM_SUFFIXES:
            raise ValueError(
                f"frames_per_second is that of a film; got {self.frames_per_second:g} with out {str(self.out)!r}"
            )
        if given is not None and self.seed is not None:
            raise ValueError(f"seed is for bouncing balls, it cannot go with frames; got {self.seed} with {given}")
        slowest, fastest = GIF_RATES
        if self.out.suffix.lower() == ".gif" and not slowest <= self.frames_per_second <= fastest:
            raise ValueError(
                f"frames_per_second of a GIF must be in {slowest}..{fastest}; got {self.frames_per_second:g}"
            )
        return self


def dream(arguments: list[str], ranks: Ranks) -> None:
    """Prime a model, let it dream, and write the dream as a film, a picture or numbers."""
    if ranks.count == 1 and arguments and not arguments[0].startswith("-"):
        suffix = ".txt" if isinstance(learned_from(arguments[0]), OfSymbols) else ".mp4"
        arguments = with_output(arguments, f"{Path(arguments[0]).name}-dream", suffix)
    command = parse(DreamCommand, arguments, "dream")
    outputs = {"out": command.out, "json": command.json_file}
    check_outputs(outputs, [command.model, command.frames, command.prime_from])
    symbols = _symbols_of(command)
    if symbols is not None:
        if ranks.rank == 0:
            _write_symbols(command, symbols)
        return
    predictor = load(command.model, device=command.device)
    frames, source = _frames_to_prime_on(command, predictor)
    if frames.shape[1] < command.prime:
        raise ValueError(f"prime must be <= {frames.shape[1]}, the frames of a sequence; got {command.prime}")
    if command.json_file is not None:
        check_world(frames)
    before, truth = frames[:, : command.prime], frames[:, command.prime : command.prime + command.steps]
    dream = imagine(_dreaming(command, predictor), before, command.steps, mapped=ranks.map)
    if ranks.rank > 0:
        return
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


def _write_symbols(command: DreamCommand, stream: OfSymbols) -> None:
    """Let a model write strings, or a text."""
    if isinstance(stream, WordsConfig):
        dream_text(command.model, stream, command.out, command.steps, command.seed, command.device)
        return
    strings = command.sequences or 100
    dream_strings(command.model, stream, command.out, strings, command.steps, command.seed, command.device)


def _symbols_of(command: DreamCommand) -> OfSymbols | None:
    """Return the symbols that a model learned from, None for a model of frames; what does not fit is refused."""
    stream = learned_from(command.model)
    if not isinstance(stream, OfSymbols):
        if command.out.suffix.lower() == ".txt":
            raise ValueError(f"out must not be a .txt for a model of frames; got {str(command.out)!r}")
        return None
    others = ("sequences",) if isinstance(stream, WordsConfig) else ()
    about_frames = ("prime", "frames", "prime_from", "sample", "temperature", "json_file", *others)
    require_usual(command, DreamCommand(model=command.model, out=command.out), about_frames)
    return stream


def _dreaming(command: DreamCommand, predictor: VideoPredictor | SequenceModel) -> Predictor[Any, Any]:
    """Return what dreams: the model itself, or by draws."""
    if command.sample is None:
        return predictor
    if not isinstance(predictor, VideoPredictor):
        raise ValueError(f"sample needs a model of RSM; got {command.model}")
    if command.temperature is not None:
        return SampledWinners(predictor, command.temperature, command.sample)
    if not predictor.draws_futures:
        raise ValueError(f"sample needs a model whose rectifier takes noise, or temperature; got {command.model}")
    return Sampled(predictor, command.sample)


def _frames_to_prime_on(command: DreamCommand, predictor: VideoPredictor | SequenceModel) -> tuple[Tensor, str]:
    """Return sequences, as far as they are known, and what they are."""
    if command.prime_from is not None:
        clips = clips_for(size_for(predictor, command.model, command.white), command.prime_from, command.layout)
        return _beginnings(command, clips), printable(command.prime_from)
    if command.frames is not None:
        given = open_frames(command.frames, command.layout)
        print(as_read(command.frames, given.shape))
        count, length = given.shape[:2]
        if command.sequences is not None and command.sequences > count:
            raise ValueError(f"sequences must be <= {count}, those of {command.frames}; got {command.sequences}")
        needed = min(length, command.prime + command.steps)
        begun = [given.read(number, 0, needed) for number in range(command.sequences or count)]
        return torch.from_numpy(np.stack(begun)), printable(command.frames)
    length = max(2, command.prime + command.steps)
    seed = TEST_SEED if command.seed is None else command.seed
    balls = bouncing_ball_sequences(range(command.sequences or 1), seed=seed, sequence_length=length)
    return balls.frames, "the test sequences" if command.seed is None else f"bouncing balls, seed {seed}"


def _beginnings(command: DreamCommand, clips: Clips) -> Tensor:
    """Read the first frames of clips, as many as are needed and no more; they are cut to the shortest."""
    if command.sequences is not None and command.sequences > len(clips.readers):
        raise ValueError(
            f"sequences must be <= {len(clips.readers)}, the clips of {command.prime_from}; got {command.sequences}"
        )
    print(clips.description)
    chosen = clips.readers[: command.sequences]
    if len({reader.frame_shape for _, reader in chosen}) > 1:
        raise ValueError(f"clips must have frames of one shape to dream side by side: {command.prime_from}")
    begun = [np.stack(list(itertools.islice(reader, command.prime + command.steps))) for _, reader in chosen]
    length = min(len(clip) for clip in begun)
    return torch.from_numpy(np.stack([clip[:length] for clip in begun])).float() / 255


def _write_arrays(target: Path, arrays: dict[str, Tensor]) -> None:
    content = io.BytesIO()
    np.savez_compressed(content, **cast(Any, {name: array.numpy() for name, array in arrays.items()}))
    write_atomically(target, content.getvalue())
