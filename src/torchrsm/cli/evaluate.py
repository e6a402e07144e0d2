"""``evaluate``: score predictions and dreams on frames that were never learned from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self

import tyro
from pydantic import Field, model_validator
from torch import Tensor

from torchrsm.baselines import WITHOUT_WEIGHTS
from torchrsm.cli.outputs import check_outputs
from torchrsm.cli.parsing import parse
from torchrsm.cli.reading import as_read, clips_for, size_for, whole_clips
from torchrsm.cli.symbols import require_usual, score_symbols, score_text
from torchrsm.config import Config
from torchrsm.learning.ranks import Ranks
from torchrsm.media.pictures import save_image, strip
from torchrsm.media.plots import physics_panels, plot_by_step
from torchrsm.predictor import Predictor
from torchrsm.runs.film import found
from torchrsm.runs.record import training_summary
from torchrsm.runs.settings import RUN_FILE, DeviceFlag, learned_from, load_run_config
from torchrsm.sampling import Sampled
from torchrsm.scoring.evaluation import Evaluator
from torchrsm.scoring.metrics import SIMILARITY_WINDOW
from torchrsm.scoring.rollouts import RolloutScores, evaluate_rollouts, simulator_tracked_error, world_geometry
from torchrsm.scoring.samples import evaluate_samples
from torchrsm.scoring.sequences import predict_sequences
from torchrsm.storage.shipped import find_model
from torchrsm.storage.tensors import write_atomically
from torchrsm.streams import DisturbanceConfig, Shown, disturbed_sequences, expected_noisy, load_frames
from torchrsm.streams.settings import (
    PUBLISHED_BALLS,
    BallWorldConfig,
    BouncingBallsConfig,
    OfBalls,
    OfSymbols,
    StreamConfig,
    VideoConfig,
    WordsConfig,
    unseen,
)
from torchrsm.streams.splits import FRAMES_IN_A_SEQUENCE, Split, bouncing_ball_frames, held_out_frames
from torchrsm.systems import load

SEQUENCES = 200
PRIME = 50


class EvaluateCommand(Config):
    """Score the next-frame predictions of a model: squared error per frame, PSNR and SSIM.

    Attributes:
        model: folder of a model or a run, or the name of a shipped model or a baseline.
        video: a film, a folder of films or of pictures, or an array, read as `predict` reads it; else what the model
            has not learned from.
        frames: .npz or .npy of [sequences, time, (channels,) height, width] in 0..1; else the fixed test sequences.
        layout: what each axis of those is, where their shape does not tell: letters of ntchw (n: sequence).
        world: the balls and the frames of the fixed sequences, where they shall not be the published ones. A model of
            balls is scored on the published world, whatever balls it has learned from, unless this says otherwise.
        split: which fixed sequences, or which part of the run's own video: `test`, or `validation`, which is for
            choosing between models; None for `test`.
        sequences: how many of the fixed sequences; None for 200.
        json_file: write the scores here.
        strip: write a picture (.png) here: truth, prediction, and their overlay, of the first sequence.
        rollout_steps: steps of the dreams whose physics is judged too; 0 for none. Not with frames from a file, of
            whose world nothing is known.
        prime: true frames before a dream; None for 50.
        samples: draws of each frame that may come, to be scored as draws; 0 for none. For models whose rectifier takes
            noise. The dreams are then by draws, too.
        plot: write the dreams' physics by step (.png) here.
        disturbance: what disturbs the frames that the model is shown, at most one value of each; it is scored on the
            true ones, and of noisy frames on their mean, which is all that can be known. Not with dreams or draws.
        device: where the model computes, by its name (`torchrsm.devices.choose_device`).
    """

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    video: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")] = None
    frames: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    layout: str | None = None
    world: BouncingBallsConfig = PUBLISHED_BALLS
    split: Split | None = None
    sequences: Annotated[int | None, Field(ge=2)] = None
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="FILE")] = None
    strip: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None
    rollout_steps: Annotated[int, Field(ge=0)] = 0
    prime: Annotated[int | None, Field(ge=1, lt=FRAMES_IN_A_SEQUENCE)] = None
    samples: Annotated[int, Field(ge=0)] = 0
    plot: Annotated[Path | None, tyro.conf.arg(metavar="PNG")] = None
    disturbance: DisturbanceConfig = DisturbanceConfig()
    device: DeviceFlag = "cpu"

    @property
    def given(self) -> Path | None:
        """What is scored on, where it was given."""
        return self.frames if self.video is None else self.video

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.video is not None and self.frames is not None:
            raise ValueError(f"frames and a video cannot go together; got {self.frames} and {self.video}")
        source = self.given
        for name, value in (("split", self.split), ("sequences", self.sequences)):
            if value is not None and source is not None:
                raise ValueError(
                    f"{name} chooses among fixed sequences and cannot go with frames; got {value} with {source}"
                )
        if self.world != PUBLISHED_BALLS and source is not None:
            raise ValueError(f"world is that of fixed sequences and cannot go with frames; got {source}")
        if self.rollout_steps and self.world.sequence_length <= (self.prime or PRIME):
            raise ValueError(
                f"world.sequence_length must be > prime = {self.prime or PRIME}, the true frames before a dream; "
                f"got {self.world.sequence_length}"
            )
        if self.layout is not None and source is None:
            raise ValueError(f"layout is that of frames from a file; got {self.layout!r} without frames")
        for name, path in (("strip", self.strip), ("plot", self.plot)):
            if path is not None and path.suffix.lower() != ".png":
                raise ValueError(f"{name} must end in .png; got {str(path)!r}")
        if self.rollout_steps and source is not None:
            raise ValueError(f"rollout_steps must be 0 with frames from a file; got {self.rollout_steps}")
        for name in ("noise", "flicker", "blackout", "bar"):
            if len(values := getattr(self.disturbance, name)) > 1:
                raise ValueError(f"disturbance.{name} must be one value, for all sequences alike; got {values}")
        if self.disturbance.disturbs and (self.rollout_steps or self.samples):
            raise ValueError("disturbance must disturb nothing where dreams or draws are scored; got one")
        if self.samples == 1:
            raise ValueError("samples must be 0, or 2 or more, so that draws can be compared; got 1")
        for name, given in (("plot", self.plot), ("prime", self.prime)):
            if given is not None and not self.rollout_steps:
                raise ValueError(f"{name} needs rollout_steps >= 1; got {self.rollout_steps} with {name} {given}")
        return self


def evaluate(arguments: list[str], ranks: Ranks) -> None:
    """Score a model, print the table, and write what was asked for."""
    command = parse(EvaluateCommand, arguments, "evaluate")
    stream = _stream(command.model)
    if isinstance(stream, OfSymbols):
        _score_symbols(command, stream, ranks)
        return
    trained, looks_at = learned_from(command.model), command.world if isinstance(stream, OfBalls) else stream
    note = None if trained is None else unseen(trained, looks_at)
    film = stream.path if isinstance(stream, VideoConfig) else None
    outputs = {"json": command.json_file, "strip": command.strip, "plot": command.plot}
    check_outputs(outputs, [command.model, command.frames, command.video, film])
    predictor: Any = load(command.model, device=command.device)
    if command.samples and not getattr(predictor, "draws_futures", False):
        raise ValueError(f"samples must be 0 for a model whose rectifier takes no noise; got {command.samples}")
    folder = Path(command.model)
    training = (
        None if command.model in WITHOUT_WEIGHTS and not folder.is_dir() else training_summary(find_model(folder))
    )
    given = command.given
    frames = _frames(command, predictor, stream)
    if given is not None or film is not None:
        print(as_read(given or film or "", frames.shape))
    similarity = min(frames.shape[-2:]) >= SIMILARITY_WINDOW
    truth, shown = _shown(frames, command.disturbance)
    evaluator = Evaluator(truth, similarity=similarity, shown=shown)
    scores = evaluator.evaluate(predictor, model=command.model, mapped=ranks.map)
    samples = evaluate_samples(predictor, frames, command.samples, mapped=ranks.map) if command.samples else None
    world = stream if isinstance(stream, BallWorldConfig) and not isinstance(stream, OfBalls) else command.world
    dreaming = Sampled(predictor) if command.samples else predictor
    rollout = _rollout(command, world, dreaming, frames, ranks)
    if ranks.rank > 0:
        return
    scores = scores.model_copy(update={"training": training, "rollout": rollout, "samples": samples})
    if command.json_file is not None:
        write_atomically(command.json_file, (scores.to_json() + "\n").encode())
    if command.strip is not None:
        first = frames[:1, :30]
        seen = None if shown is None or shown.seen is None else shown.seen[:1, :30]
        observed = first if shown is None else shown.frames[:1, :30]
        predicted = predict_sequences(predictor, observed, seen).frames
        save_image(strip(first[0], predicted[0], title=f"{command.model}: next-frame prediction"), command.strip)
    if command.plot is not None and scores.rollout is not None:
        plot_by_step(physics_panels(scores.rollout.physics), command.plot)
    print(scores.table())
    if given is None and note is not None:
        print(note)
    for name, target in (("scores", command.json_file), ("picture", command.strip), ("physics", command.plot)):
        if target is not None:
            print(f"{name}: {target}")


def _score_symbols(command: EvaluateCommand, stream: OfSymbols, ranks: Ranks) -> None:
    """Score a model of symbols; what is about frames is refused."""
    about_frames = ("frames", "layout", "world", "strip", "rollout_steps", "samples", "disturbance")
    require_usual(command, EvaluateCommand(model=command.model), about_frames)
    check_outputs({"json": command.json_file}, [command.model])
    if ranks.rank > 0:
        return
    split = command.split or "test"
    if isinstance(stream, WordsConfig):
        if command.sequences is not None:
            raise ValueError(f"sequences chooses among strings, which a text has not; got {command.sequences}")
        score_text(command.model, stream, split, command.json_file, command.device)
    else:
        streams = command.sequences or SEQUENCES
        score_symbols(command.model, stream, split, streams, command.json_file, command.device)


def _shown(frames: Tensor, disturbance: DisturbanceConfig) -> tuple[Tensor, Shown | None]:
    """Return what a model is scored on, and what it is shown; None for that itself."""
    if not disturbance.disturbs:
        return frames, None
    truth = expected_noisy(frames, disturbance.noise[0]) if disturbance.noise else frames
    return truth, disturbed_sequences(frames, disturbance)


def _stream(name_or_folder: str) -> StreamConfig:
    """Return what a model learned from, where it has a run that says so, else bouncing balls."""
    if not (Path(name_or_folder) / RUN_FILE).is_file():
        return PUBLISHED_BALLS
    return found(load_run_config(name_or_folder).stream, name_or_folder)


def _frames(command: EvaluateCommand, predictor: Any, stream: StreamConfig) -> Tensor:
    """Return what is scored on: what was given, else what the model never learned from."""
    if command.frames is not None:
        return load_frames(command.frames, layout=command.layout)
    if command.video is None:
        return _unseen_frames(command, stream)
    return whole_clips(clips_for(size_for(predictor, command.model), command.video, command.layout))


def _unseen_frames(command: EvaluateCommand, stream: StreamConfig) -> Tensor:
    """Return what the model never learned from."""
    of_balls = isinstance(stream, OfBalls)
    if not of_balls and command.world != PUBLISHED_BALLS:
        raise ValueError(f"world is for models of bouncing balls; got a model of {stream.kind}")
    if not isinstance(stream, OfBalls | BallWorldConfig) and command.rollout_steps:
        raise ValueError(f"rollout_steps must be 0 for a model of {stream.kind}; got {command.rollout_steps}")
    if isinstance(stream, VideoConfig) and command.sequences is not None:
        raise ValueError(f"sequences chooses among fixed sequences, which a video has not; got {command.sequences}")
    split, sequences = command.split or "test", command.sequences or SEQUENCES
    return (
        bouncing_ball_frames(split, sequences, command.world) if of_balls else held_out_frames(stream, split, sequences)
    )


def _rollout(
    command: EvaluateCommand, world: BallWorldConfig, predictor: Predictor[Any, Any], frames: Tensor, ranks: Ranks
) -> RolloutScores | None:
    if not command.rollout_steps:
        return None
    prime = command.prime or PRIME
    simulator = None
    if world == PUBLISHED_BALLS:
        simulator = simulator_tracked_error(command.split or "test", command.sequences or SEQUENCES, prime=prime)
    return evaluate_rollouts(
        predictor,
        frames,
        prime=prime,
        steps=command.rollout_steps,
        simulator=simulator,
        geometry=world_geometry(world),
        mapped=ranks.map,
    )
