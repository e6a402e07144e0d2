"""The training loop of every system, with its record, its checkpoints and its exact resumption; no mathematics.

Its `torchrsm.learning.contract.Learner` decides how a system learns, and in which phases.

A run is a folder::

    run.json                 every setting of the run
    config.json              the model's settings: the folder is a model folder, too (`torchrsm.load`)
    model.safetensors        the model's weights at the last checkpoint
    checkpoint.safetensors   all that it takes to go on: weights, optimisers, states, position in the stream, randomness
    metrics.jsonl            errors, one line every `log_steps` steps; the same for the same seed and number of threads
    timing.jsonl             seconds of training at the same steps
    .lock                    while a process writes the run: its number
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from torchrsm.baselines import SequenceModel
from torchrsm.devices import choose_device, precise_type
from torchrsm.learning.contract import NonFiniteError, require_finite_losses, require_finite_tensors
from torchrsm.learning.randomness import Randomness, seed_of
from torchrsm.learning.ranks import LostRankError, Ranks
from torchrsm.model import VideoPredictor
from torchrsm.precision import check_precision, products_in
from torchrsm.rsm import kernels
from torchrsm.runs.checkpoint import (
    CHECKPOINT_FILE,
    FORMAT,
    RANDOM,
    laid_out,
    lay_out_as_weights,
    layouts,
    load_checkpoint,
    optimiser_state,
    random_name,
    saved_sums,
)
from torchrsm.runs.film import found, with_absolute_path
from torchrsm.runs.lock import locked
from torchrsm.runs.record import METRICS_FILE, TIMING_FILE, Record
from torchrsm.runs.settings import (
    RUN_FILE,
    AnyRunConfig,
    first_difference,
    flatten_settings,
    load_run_config,
    save_run_config,
)
from torchrsm.state import flatten, unflatten
from torchrsm.storage.folders import WEIGHTS_FILE, load_weights
from torchrsm.storage.shipped import CONFIG_FILE
from torchrsm.storage.tensors import make_folder, save_tensors, write_atomically
from torchrsm.streams.settings import make_stream
from torchrsm.streams.share import share_of
from torchrsm.streams.stream import Stream, StreamBatch, StreamInPlace
from torchrsm.streams.turns import frame_shapes

_ALONE = Ranks()


class Trainer:
    """Trains one model in one folder.

    Args:
        config: the whole experiment.
        folder: where the run lives; made if need be.
        resume: go on with the run that is in the folder. Its settings must be those of ``config``, but for a longer
            budget, which extends it, also when it was finished: its schedules are functions of the share of the budget
            that is done, and go on over the new length.
        stream: frames to learn from; None for those that ``config`` names.
        ranks: the processes that train this model together (`torchrsm.learning.distributed.joined`), all of which make
            the same Trainer. Each plays its share of the streams; rank 0 alone writes and reports.

    Raises:
        FileExistsError: the folder holds a run and ``resume`` is false.
        FileNotFoundError: ``resume`` is true and the folder holds no run.
        ValueError: the run in the folder has other settings, or its checkpoint is truncated or foreign; or the ranks
            differ in their settings or cannot share out the streams.
        BlockingIOError: another process is writing a run to the folder.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        config: AnyRunConfig,
        folder: Path | str,
        *,
        resume: bool = False,
        stream: Stream | None = None,
        ranks: Ranks = _ALONE,
    ) -> None:
        self.config = config if stream is not None else with_absolute_path(config)
        self.folder = Path(folder)
        self._ranks = ranks
        self._stopped = False
        _check_alike(self.config, ranks)
        with self._holding():
            self._prepare(resume, stream)
            self._left = self._files_as_left()

    def _prepare(self, resume: bool, stream: Stream | None) -> None:
        """Make what is trained, new or from the checkpoint, and the folder of a new run."""
        config, training, ranks = self.config, self.config.training, self._ranks
        extended, going_on = ranks.from_first(lambda: self._look(resume))
        self.device = _device(training.device, ranks)
        check_precision(training.precision, self.device)
        self.threads = training.threads or kernels.threads()
        whole = stream or make_stream(
            found(config.stream, self.folder), training.batch_size, training.seed, self.device
        )
        self._streams = whole.batch_size  # of all ranks
        self.stream: Stream = share_of(whole, ranks.rank, ranks.count)
        self._stream_in_place = self.stream if isinstance(self.stream, StreamInPlace) else None
        first, *others = frame_shapes(self.stream)
        shape = (self.stream.batch_size, *first)
        self._randomness = Randomness(training.seed, self.device)
        with self._randomness.in_use():
            self.learner = config.make_learner(shape, self.device, not going_on, ranks, others)
        if ranks.rank > 0:  # the weights are those of rank 0, what is drawn from here on is not
            self._randomness = Randomness(seed_of(ranks.rank, training.seed), self.device)
        self.step = 0
        self.seconds = 0.0
        self._sums: Tensor | None = None  # since the last record: frames, their error, each loss, times the frames
        self._offsets = {METRICS_FILE: 0, TIMING_FILE: 0}
        if going_on:
            self._restore()
        else:
            ranks.from_first(self._begin_folder)
        if extended:
            ranks.from_first(lambda: write_atomically(self.folder / RUN_FILE, save_run_config(config)))
        self._check_same_weights()

    def _look(self, resume: bool) -> tuple[bool, bool]:
        """Return whether the run is extended and whether it has a checkpoint; refuse a folder that is taken."""
        if not resume:
            _check_free(self.folder)
            return False, False
        return _extends(self.folder, self.config), (self.folder / CHECKPOINT_FILE).exists()

    def _check_same_weights(self) -> None:
        """Refuse processes that begin with different weights, as different machines or versions may make them."""
        if self._ranks.count > 1:
            digest = hashlib.sha256()
            for tensor in self._weights().values():
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
            first, *others = self._ranks.everyone(digest.hexdigest())
            for rank, other in enumerate(others, start=1):
                if other != first:
                    raise ValueError(
                        f"all ranks must begin with the same weights; those of rank {rank} are not rank 0's"
                    )

    @contextmanager
    def _holding(self, new: bool = True) -> Iterator[None]:
        """Let rank 0 hold the folder for this run; it need not be there where it may be ``new``."""
        with ExitStack() as held:
            if not new or self._ranks.from_first(self.folder.is_dir):
                self._ranks.from_first(lambda: held.enter_context(locked(self.folder)))
            yield

    def _begin_folder(self) -> None:
        """Write the settings of a run and its untrained model. If the disk is full, remove what was new."""
        settings = save_run_config(self.config)
        is_new = not self.folder.exists()
        written = [path for name in (RUN_FILE, CONFIG_FILE, WEIGHTS_FILE) if not (path := self.folder / name).exists()]
        make_folder(self.folder)
        try:
            write_atomically(self.folder / RUN_FILE, settings)
            self.model.save(self.folder)
        except OSError:
            for path in written:
                path.unlink(missing_ok=True)
            if is_new:
                self.folder.rmdir()
            raise

    @property
    def model(self) -> VideoPredictor | SequenceModel:
        """What is trained."""
        return self.learner.model

    @property
    def progress(self) -> float:
        """Share of the run that is done, in 0..1."""
        training = self.config.training
        if not self.learner.optimisers:  # nothing to learn
            return 1.0
        done = self.step / training.steps if training.steps else self.seconds / (60 * (training.minutes or 1))
        return min(1.0, done)

    @property
    def phase(self) -> str:
        """What learns next."""
        return self.learner.phase(self.progress)

    def run(self, report: Callable[[Record], None] = lambda record: None) -> VideoPredictor | SequenceModel:
        """Train to the end of the budget and return the model in evaluation mode.

        An interrupt (Ctrl-C) or a termination signal ends the run after the step under way, with a checkpoint.

        Args:
            report: called with each record.

        Raises:
            NonFiniteError: an input, a loss or a weight is NaN or infinite; weights are looked at before each
                checkpoint and at the end of each phase.
            ValueError: the stream gives frames outside of 0..1.
            KeyboardInterrupt: the run was interrupted or stopped; its checkpoint is saved.
            BlockingIOError: another process is writing a run to the folder.
            OSError: the folder cannot be written, or the disk is full; the last checkpoint is good.
        """
        with self._holding(new=False):
            self._ranks.from_first(self._check_untouched)
            try:
                precision = products_in(self.config.training.precision)
                with kernels.threads_in_use(self.threads), precision, self._randomness.in_use():
                    return self._run(report)
            except LostRankError as reason:
                raise LostRankError(f"{reason}; {self._last_checkpoint()}", reason.speaks) from reason
            finally:
                self._left = self._files_as_left()

    def stop(self) -> None:
        """Let the run end after the step under way, with a checkpoint, as an interrupt does; from any thread."""
        self._stopped = True

    def _check_untouched(self) -> None:
        if self._files_as_left() != self._left:
            raise ValueError(f"{self.folder} was written by someone else in the meantime; resume the run anew")

    def _files_as_left(self) -> list[tuple[int, int] | None]:
        """Return what tells whether another process has written the run since."""
        paths = [self.folder / name for name in (RUN_FILE, CHECKPOINT_FILE)]
        return [(path.stat().st_mtime_ns, path.stat().st_size) if path.exists() else None for path in paths]

    def _run(self, report: Callable[[Record], None]) -> VideoPredictor | SequenceModel:
        self.learner.warm_up()
        self._ranks.wait()
        self._stopped = False
        with _signals() as stopping, self._logs() as logs:
            clock = time.process_time if self.config.training.clock == "processor" else time.monotonic
            since, checked = clock(), time.monotonic()  # of the last record, of the last checkpoint
            started, last_step = since - self.seconds, self.step
            begun: str | None = None
            stop = False
            while self.progress < 1.0 and not stop:
                phase = self.phase
                if phase != begun:
                    self.learner.begin(phase, self.threads)
                    begun = phase
                self._teach()
                now = clock()
                agreed = self._agree(
                    now - started,
                    time.monotonic() - checked >= self.config.training.checkpoint_seconds,
                    bool(stopping) or self._stopped,
                )
                self.seconds = agreed.seconds
                finished = self.progress >= 1.0
                ends = finished or self.phase != phase
                if ends:
                    self._require_finite(self._weights())
                if self.step % self.config.training.log_steps == 0 or ends:
                    frames = (self.step - last_step) * self._streams * self.config.frames_in_a_step
                    record = self._log(logs, phase, frames / max(now - since, 1e-9))
                    with self._randomness.set_aside():
                        self._ranks.from_first(partial(report, record))
                    since, last_step = now, self.step
                if agreed.save or finished:
                    self._save(logs)
                    checked = time.monotonic()
                # A process alone looks again: its report may have stopped it. Others hear of it after the next step.
                stop = agreed.stop if self._ranks.count > 1 else bool(stopping) or self._stopped
            if stop:
                self._save(logs)
                raise KeyboardInterrupt(f"stopped at step {self.step}; the checkpoint is saved")
            if not self.learner.optimisers:
                self._save(logs)
        return self.model.eval()

    def _agree(self, seconds: float, save: bool, stop: bool) -> _Agreed:
        """Return rank 0's clock, whether rank 0 wants a checkpoint, and whether any rank was told to stop."""
        first = self._ranks.rank == 0
        clock, saves, stops = self._ranks.totals((seconds * first, float(save and first), float(stop)))
        return _Agreed(clock, saves > 0, stops > 0)

    def _teach(self) -> None:
        """Take the next batches of the stream, let the model learn from them, and add the figures to the sums.

        The sums stay on the device; they are read once for each record.
        """
        with self._naming_the_checkpoint(self.step + 1):
            phase = self.phase
            if self._stream_in_place is not None:
                taught = self.learner.teach_in_place(self._stream_in_place, self.progress)
            else:
                batches = [self._next_batch() for _ in range(self.learner.batches_per_update)]
                taught = self.learner.teach(batches, self.progress)
            if self.device.type == "cpu":  # elsewhere a look would wait for the device; `_log` looks at the sums
                require_finite_losses(self.learner.loss_names(phase), taught.losses)
        self._sums = taught.sums.clone() if self._sums is None else self._sums + taught.sums
        self.step += 1

    def _next_batch(self) -> StreamBatch:
        batch = next(self.stream)
        if batch.frames.device.type != "cpu":  # made there; to look at them would wait for all work of that device
            return batch
        low, high = (float(value) for value in batch.frames.aminmax())  # NaN if there is one
        if not (math.isfinite(low) and math.isfinite(high)):
            raise NonFiniteError("the stream gave a frame with NaN or infinity")
        if low < 0 or high > 1:
            raise ValueError(f"frames must be in 0..1; the stream gave {low:.6g}..{high:.6g} at step {self.step + 1}")
        return batch

    @contextmanager
    def _naming_the_checkpoint(self, step: int) -> Iterator[None]:
        """Add the step and the last checkpoint to the message about a number that is not finite."""
        try:
            yield
        except NonFiniteError as reason:
            raise NonFiniteError(f"{reason} at step {step}; {self._last_checkpoint()}") from reason

    def _last_checkpoint(self) -> str:
        good = self.folder / CHECKPOINT_FILE
        return f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"

    def _log(self, logs: Mapping[str, IO[str]], phase: str, frames_per_second: float) -> Record:
        assert self._sums is not None
        with self._naming_the_checkpoint(self.step):
            require_finite_losses(("frame_squared_error", *self.learner.loss_names(phase)), self._sums[1:])
        frames, error, *losses = self._sums.tolist()
        frames = max(frames, 1.0)
        record = Record(
            phase,
            self.step,
            self.progress,
            error / frames,
            tuple(loss / frames for loss in losses),
            tuple(self.learner.loss_names(phase)),
            self.seconds,
            frames_per_second,
        )
        self._sums = None
        line = {
            "phase": phase,
            "step": record.step,
            "frame_squared_error": record.frame_squared_error,
            "losses": dict(zip(record.loss_names, record.losses, strict=True)),
        }
        if logs:
            print(json.dumps(line), file=logs[METRICS_FILE])
            print(json.dumps({"step": record.step, "seconds": record.seconds}), file=logs[TIMING_FILE])
        return record

    @contextmanager
    def _logs(self) -> Iterator[dict[str, IO[str]]]:
        """Open the record's files and cut off what was written after the last checkpoint; it will be written again.

        Rank 0 alone has such files.
        """
        files: dict[str, IO[str]] = {}
        if self._ranks.rank > 0:
            yield files
            return
        try:
            for name, offset in self._offsets.items():
                file: IO[str] = open(self.folder / name, "a+", encoding="utf-8")  # noqa: SIM115
                files[name] = file
                file.truncate(offset)
            yield files
        except OSError:  # a full disk: leave no half of a line
            for name, file in files.items():
                with suppress(OSError):
                    file.close()
                os.truncate(self.folder / name, self._offsets[name])
            raise
        finally:
            for file in files.values():
                file.close()

    def _save(self, logs: Mapping[str, IO[str]]) -> None:
        """Write a checkpoint; rank 0 does, of what all ranks hold."""
        state = flatten("state", self.learner.state)
        if self._ranks.count > 1:
            state = {name: tensor.cpu() for name, tensor in state.items()}
        parts = self._ranks.everyone((state, self._randomness.state_dict()))
        self._ranks.from_first(lambda: self._write(logs, [state for state, _ in parts], [draws for _, draws in parts]))

    def _write(
        self, logs: Mapping[str, IO[str]], states: list[dict[str, Tensor]], random: list[dict[str, Tensor]]
    ) -> None:
        """Write a checkpoint and the model.

        Args:
            logs: the files of the record.
            states: what the streams of each rank have seen, flat.
            random: the states of each rank's generators.
        """
        offsets = {}
        for name, file in logs.items():
            try:
                file.flush()
            except OSError as error:
                raise OSError(error.errno, f"cannot write {self.folder / name}: {error.strerror}") from error
            offsets[name] = os.fstat(file.fileno()).st_size
        tensors = self._weights()
        for i, optimiser in enumerate(self.learner.optimisers):
            for j, entry in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{j}.{key}": value for key, value in entry.items()}
        state = states[0] if len(states) == 1 else self._side_by_side(states)
        tensors |= state
        sums = {} if self._sums is None else {"an error since the last record": self._sums}
        self._require_finite(tensors | sums)
        for rank, draws in enumerate(random):
            tensors |= {random_name(device, rank): state for device, state in draws.items()}
        header = {
            "format": FORMAT,
            "step": self.step,
            "seconds": self.seconds,
            "sums": [] if self._sums is None else self._sums.tolist(),
            "loss_names": list(self.learner.loss_names(self.phase)),  # a record ends a phase: the sums are of this one
            "offsets": offsets,
            "stream": self.stream.state_dict(),
            "threads": self.threads,
            "layouts": layouts(state),
        }
        if len(states) > 1:
            header["ranks"] = len(states)
        save_tensors(self.folder / CHECKPOINT_FILE, tensors, header)
        self._offsets = offsets
        self.model.save_weights(self.folder)

    def _side_by_side(self, states: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the flat state of all streams, in the order of the ranks."""
        return {name: torch.cat([state[name] for state in states]).to(self.device) for name in states[0]}

    def _weights(self) -> dict[str, Tensor]:
        """Return all weights, by the names that they have in a checkpoint."""
        return {
            f"{part}.{name}": tensor
            for part, module in self.learner.modules.items()
            for name, tensor in module.state_dict().items()
        }

    def _require_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """Check all that a checkpoint would hold before it replaces the last good one."""
        with self._naming_the_checkpoint(self.step):
            require_finite_tensors(tensors)

    def _restore(self) -> None:
        path = self.folder / CHECKPOINT_FILE
        tensors, header = load_checkpoint(path)
        begun, rank = header.get("ranks", 1), self._ranks.rank
        if begun != self._ranks.count:
            raise ValueError(f"{self.folder} was begun with ranks = {begun}; it cannot go on with {self._ranks.count}")
        for part, module in self.learner.modules.items():
            prefix = f"{part}."
            weights = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
            load_weights(module, weights, str(path))
        for i, optimiser in enumerate(self.learner.optimisers):
            whole = optimiser.state_dict()
            whole["state"] = optimiser_state(f"optimiser.{i}.", tensors)
            optimiser.load_state_dict(whole)
            lay_out_as_weights(optimiser)
        states = {n: t for n, t in laid_out(tensors, header).items() if n == "state" or n.startswith("state.")}
        if begun > 1:
            states = {name: state.chunk(begun)[rank] for name, state in states.items()}
        self.learner.state = unflatten("state", self.learner.state, states)
        names = {device: random_name(device, rank) for device in RANDOM}
        self._randomness.load_state_dict({device: tensors[name] for device, name in names.items() if name in tensors})
        self.threads = header["threads"]  # sums over the batch are taken in as many parts as before
        self.step, self.seconds = header["step"], header["seconds"]
        sums = saved_sums(header, self.learner.loss_names(self.phase))
        self._sums = torch.tensor(sums, dtype=precise_type(self.device), device=self.device) if sums else None
        self._offsets = header["offsets"]
        self.stream.load_state_dict(header["stream"])


class _Agreed(NamedTuple):
    """What all ranks do after a step.

    Attributes:
        seconds: of training so far.
        save: whether a checkpoint is due.
        stop: whether the run is to stop.
    """

    seconds: float
    save: bool
    stop: bool


def _check_alike(config: AnyRunConfig, ranks: Ranks) -> None:
    """Refuse a launch whose ranks have different settings; each of them says in what."""
    first, *others = ranks.everyone(flatten_settings(config.model_dump(mode="json")))
    for rank, other in enumerate(others, start=1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"all ranks must have the same settings; rank 0 has {name} = {first.get(name)}, "
                    f"rank {rank} has {other.get(name)}"
                )


def _device(name: str, ranks: Ranks) -> torch.device:
    """Return where a rank learns: of several each has a CUDA device of its own, that of its number on the machine."""
    device = choose_device(name)
    if ranks.count == 1 or device.type != "cuda":
        return device
    if ":" in name:
        raise ValueError(f"device must be cuda for {ranks.count} ranks, which gives each its own; got {name}")
    return choose_device(f"cuda:{ranks.local_rank}")


def trained(run: AnyRunConfig, folder: Path, report: Callable[[Record], None]) -> VideoPredictor | SequenceModel:
    """Train a run in a folder to the end of its budget, from nothing or from where it was left; return its model.

    Args:
        run: its settings.
        folder: new, empty, or that of this run.
        report: called with each record.

    Raises:
        As `Trainer` and `Trainer.run`.
    """
    return Trainer(run, folder, resume=(folder / RUN_FILE).exists()).run(report)


def _check_free(folder: Path) -> None:
    """Refuse a folder whose run or model would be lost."""
    if (folder / RUN_FILE).exists():
        raise FileExistsError(f"{folder} holds a run; resume it or choose another folder")
    if (folder / CONFIG_FILE).exists() or (folder / WEIGHTS_FILE).exists():
        raise FileExistsError(f"{folder} holds a model; choose another folder")


def _extends(folder: Path, config: AnyRunConfig) -> bool:
    """Return whether a run goes on for longer, or on another device, than it was begun; all else must be the same."""
    begun = with_absolute_path(load_run_config(folder))
    budget = {"steps": config.training.steps, "minutes": config.training.minutes}
    for name, now in budget.items():
        before = getattr(begun.training, name)
        if before is not None and now is not None and now < before:
            raise ValueError(f"{folder} was begun for {before:g} {name}; it can go on for more, not for {now:g}")
        if before is not None and now is None:
            raise ValueError(f"{folder} was begun for {before:g} {name}; a longer budget must be one of {name}, too")
    longer = begun.replace(training=begun.training.replace(**budget, device=config.training.device))
    difference = first_difference(longer, with_absolute_path(config))
    if difference is not None:
        name, before, now = difference
        raise ValueError(f"{folder} was begun with {name} = {before}; it cannot go on with {now}")
    return longer != begun


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Turn the first interrupt or termination signal into an entry of the list; a second interrupt takes effect."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # outside the main thread no signal can be taken
        before = {}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
