"""Checks torchrsm on a machine with a GPU, in minutes: one script, which goes on to the next part when one fails.

    python benchmarks/gpu_check.py --minutes 7 --out runs/gpu-check

It looks whether the engine for CUDA agrees with the reference, whether runs repeat bit by bit and resume, and whether
an update waits for nothing. Then it measures frames a second, lists the kernels of an update, and trains `balls-wide`
from nothing. What it finds is in benchmarks/results/gpu.json, and in the folder after ``--out`` together with the
weights; both are written after each part.

The machine needs Python 3.11, torch with CUDA, triton, numba, numpy, pydantic and safetensors, and no network; torchrsm
need not be installed. ``--wheels FOLDER`` brings what is missing: all wheels of the folder are unpacked into a
temporary one. ``--device cpu`` does everything in small sizes on the CPU, for tests; its times say nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("torch", "numpy", "numba", "pydantic", "safetensors")
SPARED = ("PIL", "av", "matplotlib", "rich", "scipy", "skimage", "tyro")  # films, plots, flags: imported, never called
MAX_FILE_BYTES = 16 * 2**20 - 1
TARGET_ERROR = 0.21  # of `balls-wide`, all_predictable, validation
PRECISIONS = ("float32", "tf32", "bfloat16")

# --- A bare machine ---------------------------------------------------------------------------------------------------


class Absent:
    """Stands for anything in a package that is not there and that no part of this script calls."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return Absent()


class AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Lets packages that are not there be imported."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """Return a place for each of the packages and whatever is asked for in it."""
        if name.partition(".")[0] not in self.names:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return a module that has every name."""
        module = types.ModuleType(spec.name)
        absent = Absent()
        module.__getattr__ = lambda name: getattr(absent, name)  # type: ignore[method-assign]
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: there is nothing in it."""


def unpack_wheels(folder: Path, target: Path) -> int:
    """Unpack all wheels of a folder into another one and return how many there were.

    Wheels with binary parts, such as pydantic_core, cannot be imported from the archive itself.
    """
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise SystemExit(f"--wheels must be a folder with wheels in it; got {folder}")
    for wheel in wheels:
        try:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
        except zipfile.BadZipFile as error:
            raise SystemExit(f"--wheels must hold whole wheels; {wheel.name}: {error}") from None
    return len(wheels)


def is_missing(name: str) -> bool:
    return importlib.util.find_spec(name) is None


def bring_in(needed: Sequence[str], spared: Sequence[str]) -> list[str]:
    """Let stand-ins take the places of spared packages that are missing; return their names.

    Raises:
        SystemExit: a package is missing that is needed.
    """
    missing = [name for name in needed if is_missing(name)]
    if missing:
        version = ".".join(platform.python_version_tuple()[:2])
        raise SystemExit(
            f"missing: {', '.join(missing)}; on a machine with a network, run 'pip download --only-binary=:all: "
            f"--python-version {version} --dest wheels {' '.join(missing)}' for the platform of this one "
            f"({platform.system()} {platform.machine()}), bring the folder, and add '--wheels wheels'"
        )
    absent = [name for name in spared if is_missing(name)]
    for name in (*needed, "triton"):  # first, because some of them look whether others are there
        if not is_missing(name):
            importlib.import_module(name)
    if absent:
        sys.meta_path.append(AbsentPackages(absent))
    return absent


# --- What the parts share ---------------------------------------------------------------------------------------------


class LeftOutError(Exception):
    """A part has no time left; what it has found so far counts."""


class Check:
    """The device, the time, and what has been found.

    Attributes:
        device: a `torch.device`.
        small: whether sizes are those of a test.
        out: folder of the weights and of what runs write.
        found: of the part that runs, as it will be written.
    """

    def __init__(self, device: str, seconds: float, out: Path, files: Sequence[Path], precision: str) -> None:
        import torch

        from torchrsm.devices import choose_device

        self.device: torch.device = choose_device(device)
        self.small = self.device.type == "cpu"
        self.out, self._files, self.precision = out, files, precision
        self._begun, self._end = time.monotonic(), time.monotonic() + seconds
        self.deadline = self._end
        self.results: dict[str, Any] = {}
        self.found: Any = {}

    def say(self, text: str) -> None:
        """Print a line with the seconds that have passed."""
        print(f"{time.monotonic() - self._begun:6.1f} s  {text}", flush=True)

    @property
    def seconds_left(self) -> float:
        """Seconds left to the part that runs."""
        return self.deadline - time.monotonic()

    def require_time(self) -> None:
        """Raise a `LeftOutError` if the part has no time left."""
        if self.seconds_left <= 0:
            raise LeftOutError

    def wait(self) -> None:
        """Wait for all work of the device."""
        from torchrsm.devices import wait_for

        wait_for(self.device)

    def run(self, parts: Sequence[Part]) -> bool:
        """Run parts one after the other, each for its share of what is left; return whether all went well."""
        good = True
        for number, (name, share, work) in enumerate(parts):
            left = sum(later for _, later, _ in parts[number:]) or 1.0
            if not self.small:  # what is small needs no more than all of the time
                self.deadline = time.monotonic() + max(0.0, self._end - time.monotonic()) * share / left
            self.say(f"--- {name}")
            self.found = {}
            try:
                work(self)
            except LeftOutError:
                self.found["left_out"] = "the rest of this part, for want of time"
                self.say("no time left for the rest of this part")
            except Exception as error:
                good = False
                self.found["error"] = f"{type(error).__name__}: {error}"
                traceback.print_exc(file=sys.stdout)
                self.say(f"{name} FAILED: {self.found['error'].partition(chr(10))[0]}")
            good &= not self.found.get("failed")
            self.results[name] = self.found
            self._write()
            self._tidy()
        return good

    def note(self, name: str, good: bool, **figures: Any) -> None:
        """Take down whether a check holds, with its figures, and say so."""
        self.found.setdefault("checks", {})[name] = {"holds": good, **figures}
        if not good:
            self.found.setdefault("failed", []).append(name)
        text = ", ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )
        self.say(f"{'holds ' if good else 'FAILED'} {name}{': ' if text else ''}{text}")

    def _write(self) -> None:
        for file in self._files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(self.results, indent=1) + "\n")

    def _tidy(self) -> None:
        """Give back what the part has left on the device."""
        import torch

        gc.collect()
        if self.device.type == "cuda":
            with suppress(RuntimeError):  # after some errors a device refuses everything; the other parts will say so
                torch.cuda.empty_cache()


Part = tuple[str, float, Callable[[Check], None]]


class AsWritten:
    """In place of a CUDA graph where there is none: work that is done again as it is written."""

    def warm_up(self, work: Callable[[], None]) -> None:
        """See `torchrsm.learning.captured.Recorder`."""
        work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """See `torchrsm.learning.captured.Recorder`."""
        return work


def recorder(captured: bool) -> Callable[[Any], Any]:
    """Return what gives a learner its recorder: CUDA graphs, or on the CPU what stands for them; or none."""
    from torchrsm.learning.captured import recorder_for

    return (lambda device: recorder_for(device) or AsWritten()) if captured else (lambda device: None)


def make_learner(run: Any, check: Check, batch: int, captured: bool = True, device: Any = None) -> Any:
    """Return what learns in a run on the device, with as many streams as ``batch``."""
    import torch

    from torchrsm.baselines import make_baseline
    from torchrsm.learning.online import OnlineLearner
    from torchrsm.learning.windows import SequenceLearner
    from torchrsm.runs.settings import RunConfig

    place = device or check.device
    size = (run.model.height or run.stream.resolution, run.model.width or run.stream.resolution)
    shape = (batch, 1, *size)
    torch.manual_seed(run.training.seed)
    if isinstance(run, RunConfig):
        return OnlineLearner(
            run.model, run.learning, run.rectifying, True, shape, place, recorder_for=recorder(captured)
        )
    return SequenceLearner(make_baseline(run.model), run.learning, shape, place, recorder_for=recorder(captured))


def make_stream(run: Any, check: Check, batch: int, **changes: Any) -> Any:
    """Return the stream of a run, made on the device; on the CPU, too."""
    from torchrsm.streams.bouncing_balls_on_device import BouncingBallsOnDevice

    settings = {**run.stream.arguments(), **changes}
    return BouncingBallsOnDevice(batch, seed=run.training.seed, device=check.device, **settings)


def wide(check: Check, **changes: Any) -> Any:
    """Return `balls-wide`; small, where sizes are those of a test."""
    from torchrsm import CompactConfig, preset

    run = preset("balls-wide")
    if check.small:
        run = run.replace(
            **{
                "model.layers.0.groups": 24,
                "model.layers.0.active_groups": 4,
                "model.layers.1.groups": 16,
                "model.layers.1.active_groups": 3,
                "model.rectifier": CompactConfig(width=8, blocks=1),
            }
        )
    return run.replace(**changes)


def weights_of(learner: Any) -> dict[str, Any]:
    """Return copies of the weights and of what the streams have seen."""
    from torchrsm.state import flatten

    found = flatten("state", learner.state)
    for name, module in learner.modules.items():
        found |= {f"{name}.{key}": value for key, value in module.state_dict().items()}
    return {name: value.detach().clone() for name, value in found.items()}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the names of the tensors that are not equal bit by bit."""
    import torch

    return [name for name, value in one.items() if not torch.equal(value, other[name])]


# --- 1. The machine ---------------------------------------------------------------------------------------------------


def machine(check: Check) -> None:
    import numba
    import numpy
    import torch

    import torchrsm

    found = check.found
    found |= {"torchrsm": torchrsm.__version__, "python": platform.python_version()}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda}
    found |= {"numpy": numpy.__version__, "numba": numba.__version__, "triton": None}
    if not is_missing("triton"):
        import triton

        found["triton"] = triton.__version__
    if check.device.type == "cuda":
        properties = torch.cuda.get_device_properties(check.device)
        found |= {
            "gpu": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_bytes": properties.total_memory,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver(),
        }
    for name, value in found.items():
        check.say(f"{name}: {value}")


def driver() -> str | None:
    command = shutil.which("nvidia-smi")
    if command is None:
        return None
    asked = [command, "--query-gpu=driver_version", "--format=csv,noheader"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.strip().partition("\n")[0] or None


# --- 2. Parity with the reference -------------------------------------------------------------------------------------

SMALL_STEP: dict[str, Any] = {
    "groups": 16,
    "cells_per_group": 1,
    "active_groups": 4,
    "kernel_size": 5,
    "stride": 2,
    "recurrent_kernel_size": 1,
    "decoder_kernel_size": 5,
    "input_grid": (14, 13),
    "channels": 1,
    "input_pool": 1,
    "activation": "identity",
    "margin": 0,
}

# Each is a change of the step above. `order` limits or lifts cells. `above` is whether a layer above is heard, on the
# same grid, where a resize has no rounding.
PROBLEMS: dict[str, dict[str, Any]] = {
    "layer 1 of paper": {"groups": 64, "cells_per_group": 8, "active_groups": 3, "order": "refractory"},
    "layer 2 of paper": {
        "groups": 128,
        "cells_per_group": 8,
        "active_groups": 5,
        "kernel_size": 3,
        "decoder_kernel_size": 3,
        "channels": 64,
        "input_pool": 2,
        "input_grid": (9, 9),
        "order": "refractory",
    },
    "layer 1 of balls-wide": {
        "groups": 512,
        "active_groups": 24,
        "kernel_size": 7,
        "decoder_kernel_size": 7,
        "recurrent_kernel_size": 3,
        "input_grid": (34, 34),
        "margin": 2,
        "above": True,
    },
    "inhibition": {"cells_per_group": 3, "order": "inhibition"},
    "boost": {"groups": 33, "order": "boost", "above": True},
    "connected": {"decoder_kernel_size": 0},
}
FEW = ("inhibition", "boost", "connected")  # in small sizes


def parity(check: Check) -> None:
    import torch

    from torchrsm.precision import products_in
    from torchrsm.rsm.kernels import ENGINES
    from torchrsm.rsm.kernels.cuda import CudaEngine

    # On the CPU the engine for CUDA runs with Triton's interpreter.
    engine = CudaEngine() if check.small else ENGINES["cuda"].engine
    assert isinstance(engine, CudaEngine)
    check.found["runs_triton"] = engine.runs_triton(check.device)
    check.note("Triton's kernels are in use", check.found["runs_triton"] or check.small)
    for name, changes in PROBLEMS.items():
        if check.small and name not in FEW:
            continue
        for precision in PRECISIONS:
            check.require_time()
            with products_in(precision):  # type: ignore[arg-type]
                wrong = disagreements(Problem(2 if check.small else 4, changes), engine, check.device)
            check.note(f"{name}, {precision}, equals the reference", not wrong, **({"not": wrong} if wrong else {}))
    if engine.runs_triton(check.device):
        triton_winners(check)
    stream_on_device(check)
    one_update(check)
    torch.manual_seed(0)


class Problem:
    """A layer's step on whole eighths of small size, whose sums have no rounding in whatever order and precision."""

    def __init__(self, batch: int, changes: dict[str, Any]) -> None:
        import torch

        from torchrsm.rsm.functional import Cells, Grid
        from torchrsm.rsm.kernels import Context, Step, Weights

        settings = {**SMALL_STEP, **changes}
        order, above = settings.pop("order", None), settings.pop("above", None)
        source = Grid(*settings.pop("input_grid"))
        self.step = step = Step.of(input_grid=source, **settings)
        self._random = random = torch.Generator().manual_seed(0)
        here, channels, size = (batch, *step.grid), step.channels, step.decoder_kernel_size
        if channels > 1:
            whole = (batch, source.height * step.input_pool, source.width * step.input_pool)
            entered: Any = self.cells(whole, channels, 3)
        else:
            entered = self.number(batch, *source, channels).relu()
        outputs = source.height * source.width * channels
        self.weights = Weights(
            feedforward=self.number(step.kernel_size**2 * channels, step.groups),
            recurrent=self.number(step.recurrent_kernel_size**2 * step.cells, step.cells),
            feedback=self.number(6, step.cells) if above else None,
            bias=self.number(step.cells),
            decoder=self.number(step.groups, size**2 * channels)
            if size
            else self.number(step.grid.height * step.grid.width * step.groups, outputs),
            output_bias=self.number(1, 1, channels),
        )
        self.context = Context(
            input=entered,
            memory=self.cells(here, step.cells, step.active_groups),
            feedback=self.cells(here, 6, 2) if above else None,
            refractory=self.cells(here, step.cells, step.active_groups).index if order == "refractory" else None,
            inhibition=self.number(*here, step.cells).abs().clamp(max=1) if order == "inhibition" else None,
            boost=2.0 ** torch.randint(-1, 2, (step.cells,), generator=random) if order == "boost" else None,
        )
        self.z = self.number(*here, step.active_groups)
        self.target = entered if isinstance(entered, Cells) else self.number(batch, *source, channels)

    def number(self, *shape: int) -> Any:
        """Return whole eighths in -1..1."""
        import torch

        return (torch.randn(shape, generator=self._random) * 4).round().clamp(-8, 8) / 8

    def cells(self, shape: tuple[int, ...], count: int, k: int) -> Any:
        """Return different cells at each location, a quarter of the entries empty."""
        import torch

        from torchrsm.rsm.functional import Cells

        index = torch.rand(*shape, count, generator=self._random).argsort(-1)[..., :k].to(torch.int32)
        missing = torch.rand(index.shape, generator=self._random) < 0.25
        return Cells(index.masked_fill(missing, -1), self.number(*index.shape).masked_fill(missing, 0))

    def solve(self, engine: Any, device: Any) -> dict[str, Any]:
        """Return winners, drive, what is decoded, the loss and the gradients, on the CPU."""
        from torchrsm.state import to_device

        weights = type(self.weights)(
            *(None if w is None else w.to(device, copy=True).requires_grad_() for w in self.weights)
        )
        context, z = to_device(self.context, device), to_device(self.z, device).requires_grad_()
        index, drive = engine.select(self.step, weights, context)
        found = {"winners": index, "drive": drive, "decoded": engine.decode(self.step, weights, index, z)}
        learn = (index.flatten(1)[:, 0] >= 0).clone()
        loss = engine.loss(self.step, weights, index, z, to_device(self.target, device), learn)
        (loss + drive.square().mean()).backward()
        found["loss"] = loss
        found |= {f"gradient of {name}": w.grad for name, w in weights._asdict().items() if w is not None}
        found["gradient of z"] = z.grad
        return {name: value.detach().cpu() for name, value in found.items() if value is not None}


def disagreements(problem: Problem, engine: Any, device: Any) -> list[str]:
    """Return in what an engine differs from the reference: not at all forward, in the gradients by rounding alone."""
    import torch

    from torchrsm.precision import products
    from torchrsm.rsm.kernels import ENGINES

    expected = problem.solve(ENGINES["reference"].engine, torch.device("cpu"))
    found = problem.solve(engine, device)
    wrong = [name for name in ("winners", "drive", "decoded") if not torch.equal(found[name], expected[name])]
    tolerance = {"float32": 1e-4, "tf32": 5e-3, "bfloat16": 3e-2}[products(device)]
    for name in expected.keys() - {"winners", "drive", "decoded"}:
        scale = expected[name].abs().max().clamp(min=1e-12)
        off = float((found[name] - expected[name]).abs().max() / scale)
        if not off <= tolerance:
            wrong.append(f"{name} ({off:.2g})")
    return wrong


WINNERS = [(1, 1, 1), (7, 1, 7), (33, 3, 5), (64, 8, 3), (128, 8, 5), (512, 1, 24), (4096, 1, 24)]


def triton_winners(check: Check) -> None:
    """Compare the kernel with the reference on rows of random numbers and of every kind of tie."""
    import torch

    from torchrsm.rsm.functional import select_winners
    from torchrsm.rsm.kernels.triton_winners import winners

    infinity, least = torch.inf, torch.finfo(torch.float32).min
    count, wrong = 0, 0
    for groups, cells, k in WINNERS[: 4 if check.small else None]:
        check.require_time()
        random = torch.Generator().manual_seed(groups)
        each = 18 if check.small else 64
        plain = torch.randn(each, groups * cells, generator=random)

        def some(*values: float, like: Any = plain, random: Any = random) -> Any:
            return torch.tensor(values)[torch.randint(len(values), like.shape, generator=random)]

        falling = torch.arange(groups * cells, 0.0, -1).expand_as(plain)
        kinds = [plain, plain.round(), plain * 1e-42, plain[:, :1].expand_as(plain), falling, falling.flip(1)]
        kinds += [some(0.0, -0.0), some(0.0, -0.0, 1e-45, -1e-45), some(infinity, -infinity), some(-infinity)]
        kinds += [some(least, -infinity, -least), some(infinity, least, 0.0, -0.0, 1.0), some(1.0, 2.0)]
        kinds += [torch.where(torch.rand(plain.shape, generator=random) < 0.02, torch.nan, plain)]
        rows = torch.cat(kinds)
        index, drive = winners(rows.to(check.device), groups, k, elements=65_536 if check.small else 2048)
        expected = select_winners(rows, groups, k)
        value = rows.gather(1, expected.long())
        same = (index.cpu() == expected).all(1) & ((drive.cpu() == value) | (drive.cpu().isnan() & value.isnan())).all(
            1
        )
        count, wrong = count + len(rows), wrong + int((~same).sum())
    check.note("Triton's winners are those of the reference", wrong == 0 and count >= 1000, rows=count, wrong=wrong)


def stream_on_device(check: Check) -> None:
    """Compare the balls that are made on the device with those of the CPU."""
    from torchrsm.streams.bouncing_balls import BouncingBalls
    from torchrsm.streams.bouncing_balls_on_device import BouncingBallsOnDevice

    check.require_time()
    batch, steps = (3, 110) if check.small else (64, 320)
    reference, ours = BouncingBalls(batch, seed=1), BouncingBallsOnDevice(batch, seed=1, device=check.device)
    worst, same = 0.0, True
    for _ in range(steps):
        expected, made = next(reference), next(ours)
        worst = max(worst, float((made.frames.cpu() - expected.frames).abs().max()))
        same &= bool((made.starts.cpu() == expected.starts).all() and (made.index.cpu() == expected.index).all())
    check.note("the stream on the device is that of the CPU", same and worst < 1e-5, steps=steps, largest=worst)


def one_update(check: Check) -> None:
    """Compare updates in float32 on the device with those of the reference on the CPU."""
    import torch

    from torchrsm.precision import products_in
    from torchrsm.rsm.layer import RSMLayer
    from torchrsm.streams.bouncing_balls import BouncingBalls

    check.require_time()
    # Without dropout and noise, because the two devices draw different random numbers.
    run = wide(check, **{"rectifying.adversarial_weight": 0.0})
    batch = 2 if check.small else 8
    stream = BouncingBalls(batch, seed=0)
    here = make_learner(run, check, batch)
    there = make_learner(run, check, batch, captured=False, device=torch.device("cpu"))
    for part in there.model.modules():
        if isinstance(part, RSMLayer):
            part.engine = "reference"
    losses, gradients = 0.0, 0.0
    with products_in("float32"):
        for number, progress in enumerate((0.1, 0.1, 0.1, 0.6)):  # of the stack, then of the rectifier
            frames = next(stream)
            taught = []
            for learner in (here, there):
                learner.begin(learner.phase(progress), 1)
                taught.append(learner.teach([frames], progress).losses.cpu())
            off = (taught[0] - taught[1]).abs() / taught[1].abs().clamp(min=1e-6)
            losses = max(losses, float(off.max()))
            for a, b in zip(here.model.parameters(), there.model.parameters(), strict=True):
                if number == 1 and a.grad is not None and b.grad is not None:  # the first that teaches
                    scale = b.grad.abs().max().clamp(min=1e-12)
                    gradients = max(gradients, float((a.grad.cpu() - b.grad).abs().max() / scale))
    good = losses < 2e-3 and 0 < gradients < 1e-3  # later, a winner may change by rounding
    check.note("updates in float32 are those of the CPU", good, losses_off=losses, gradients_off=gradients)


# --- 3. Determinism ---------------------------------------------------------------------------------------------------


def determinism(check: Check) -> None:
    import torch

    from torchrsm import preset
    from torchrsm.precision import products_in
    from torchrsm.state import map_state

    steps, batch = (6, 4) if check.small else (60, 16)
    runs = {"balls-wide": wide(check)}
    if not check.small:
        runs["paper"] = preset("paper")  # dropout, and a discriminator with noise
    check.found["captured_by"] = "CUDA graphs" if check.device.type == "cuda" else "work done again as it is written"
    for name, run in runs.items():
        ends = []
        for captured in (True, True, False):
            check.require_time()
            with products_in("float32"):
                learner = make_learner(run, check, batch, captured)
                stream = make_stream(run, check, batch, sequence_length=13)
                torch.manual_seed(5)
                begun = None
                for step in range(steps):
                    phase = learner.phase(step / steps)
                    if phase != begun:
                        learner.begin(phase, 1)
                        begun = phase
                    learner.state = map_state(row_by_row, learner.state)  # as captured updates keep it in memory
                    learner.teach_in_place(stream, step / steps)
            ends.append(weights_of(learner))
            del learner, stream
        check.note(f"{name}: two runs are equal bit by bit", not differences(ends[0], ends[1]), updates=steps)
        other = differences(ends[0], ends[2])
        check.note(f"{name}: captured updates are those that are not captured", not other, differ=len(other))
    resume(check)


def row_by_row(part: Any) -> Any:
    import torch

    return part.clone(memory_format=torch.contiguous_format)


def resume(check: Check) -> None:
    """Stop a run, go on with it, and compare it with one that was not stopped."""
    from torchrsm import Trainer

    check.require_time()
    steps, stop, batch = (8, 4, 4) if check.small else (60, 20, 16)
    settings = {"steps": steps, "minutes": None, "batch_size": batch, "log_steps": stop, "device": str(check.device)}
    run = wide(check, training=wide(check).training.replace(**settings, precision="auto"))
    with tempfile.TemporaryDirectory() as folder:
        whole = Trainer(run, Path(folder) / "whole").run().state_dict()
        stopped = Trainer(run, Path(folder) / "parts")
        try:
            stopped.run(lambda record: stopped.stop() if record.step == stop else None)
        except KeyboardInterrupt:
            check.say(f"stopped at step {stopped.step} of {steps}")
        parts = Trainer(run, Path(folder) / "parts", resume=True).run().state_dict()
        records = [(Path(folder) / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    good = not differences(whole, parts) and records[0] == records[1] and stopped.step == stop
    check.note("a run that is stopped and resumed is the whole run bit by bit", good, steps=steps, stopped=stop)


# --- 4. The law -------------------------------------------------------------------------------------------------------


@contextmanager
def waiting_is_an_error(device: Any) -> Iterator[None]:
    """Make it an error to wait for the device; on the CPU nothing can."""
    import torch

    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def law(check: Check) -> None:
    from torchrsm import preset
    from torchrsm.precision import products_in

    check.found["looked_at"] = check.device.type == "cuda"
    runs = {"balls-wide": wide(check)}
    if not check.small:
        runs |= {name: preset(name) for name in ("paper", "balls", "balls-window", "simvp", "predrnn", "convlstm-wide")}
    for name, run in runs.items():
        for captured in (True, False):
            batch = 2 if check.small else 8
            learner, stream = (
                make_learner(run, check, batch, captured),
                make_stream(run, check, batch, sequence_length=7),
            )
            for phase, progress in phases(learner).items():
                check.require_time()
                try:
                    with products_in("auto"):
                        learner.begin(phase, 1)
                        learner.teach_in_place(stream, progress)  # makes what is made on first use
                        with waiting_is_an_error(check.device):
                            for _ in range(2 if check.small else 10):
                                learner.teach_in_place(stream, progress)
                    waited = None
                except RuntimeError as error:
                    waited = str(error).partition("\n")[0]
                how = "captured" if captured else "as it is written"
                check.note(
                    f"{name}, {phase}, {how}: nothing waits", waited is None, **({"but": waited} if waited else {})
                )


def phases(learner: Any) -> dict[str, float]:
    """Return a point of a run, in 0..1, for each of its phases."""
    return {learner.phase(point): point for point in (0.95, 0.8, 0.5, 0.2, 0.01)}


# --- 5. Frames a second -----------------------------------------------------------------------------------------------


def overlapping(run: Any) -> Any:
    """Return a run in which stack and rectifier learn together almost throughout."""
    return run.replace(**{"rectifying.share": 0.99, "rectifying.stack_share": 0.98})


def speed_cases(check: Check) -> list[tuple[str, Any, str, int, str, bool]]:
    """Return what is timed, the most wanted first: name, run, phase, batch, precision, and whether it is captured."""
    from torchrsm import preset

    wide_run, paper = wide(check), preset("paper")
    if check.small:
        return [
            ("balls-wide", wide_run, "stack", 4, "float32", True),
            ("balls-wide", overlapping(wide_run), "both", 4, "float32", False),
            ("convlstm-wide", preset("convlstm-wide"), "sequence", 2, "float32", True),
        ]
    baselines = [preset(name) for name in ("simvp", "predrnn", "convlstm-wide")]
    wanted = [("paper", paper, phase, 256) for phase in ("stack", "rectifier")]
    wanted += [
        ("balls-wide", overlapping(wide_run) if phase == "both" else wide_run, phase, batch)
        for batch in (64, 256)
        for phase in ("stack", "both", "rectifier")
    ]
    wanted += [(run.name, run, "sequence", run.training.batch_size) for run in baselines]
    wanted += [(run.name, run, "sequence", 64) for run in baselines]
    cases = [(*case, "tf32", True) for case in wanted]
    cases += [(*case, "tf32", False) for case in wanted[:5]]
    cases += [(*case, "bfloat16", True) for case in wanted]
    cases += [(*case, "float32", True) for case in wanted[:8]]
    return cases + [(*case, "tf32", False) for case in wanted[5:11]]


def speed(check: Check) -> None:
    from torchrsm.precision import products_in

    rows: list[dict[str, Any]] = []
    check.found["frames_per_second"] = rows
    for name, run, phase, batch, precision, captured in speed_cases(check):
        check.require_time()
        row = {"system": name, "phase": phase, "batch": batch, "precision": precision, "captured": captured}
        try:
            with products_in(precision):  # type: ignore[arg-type]
                row |= timed(check, run, phase, batch, captured)
            figure = f"{row['frames_per_second']:10,.0f} frames/s, {row['milliseconds_per_update']:8.3f} ms an update"
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
            check.found.setdefault("failed", []).append(f"{name}, {phase}, {precision}")
            figure = f"FAILED: {row['error'].partition(chr(10))[0]}"
        rows.append(row)
        how = "captured" if captured else "as written"
        check.say(f"{name:14} {phase:10} batch {batch:4} {precision:8} {how:10} {figure}")
        gc.collect()
    check.found["stream_frames_per_second"] = stream_speed(check)


def timed(check: Check, run: Any, phase: str, batch: int, captured: bool) -> dict[str, float]:
    """Return the speed of updates whose frames are made on the device."""
    import torch

    learner, stream = make_learner(run, check, batch, captured), make_stream(run, check, batch)
    progress = phases(learner)[phase]
    learner.begin(phase, 1 if check.small else 2)
    frames = run.frames_in_a_step * batch
    for _ in range(1 if check.small else 5):
        learner.teach_in_place(stream, progress)
    check.wait()
    if check.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(check.device)
    updates, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < (0.0 if check.small else 0.8) or updates == 0:
        for _ in range(1 if check.small else 20):
            taught = learner.teach_in_place(stream, progress)
            updates += 1
        check.wait()  # the clock of the host must not run ahead
    seconds = time.perf_counter() - begun
    if not bool(taught.losses.isfinite().all()):
        raise ArithmeticError(f"a loss is not finite after {updates} updates")
    found = {"frames_per_second": frames * updates / seconds, "milliseconds_per_update": 1000 * seconds / updates}
    if check.device.type == "cuda":
        found["memory_bytes"] = torch.cuda.memory_reserved(check.device)
    return found


def stream_speed(check: Check) -> float:
    """Return how many frames of `paper` the stream makes in a second, recorded where that is possible."""
    from torchrsm import preset

    check.require_time()
    run, batch, steps = preset("paper"), 16 if check.small else 256, 5 if check.small else 500
    stream = make_stream(run, check, batch)
    next(stream)
    advance = recorder(True)(check.device).record(stream.advance)
    check.wait()
    begun = time.perf_counter()
    for _ in range(steps):
        stream.prepare()
        advance()
    check.wait()
    found = batch * steps / (time.perf_counter() - begun)
    check.say(f"the stream alone, batch {batch}: {found:,.0f} frames/s")
    return found


# --- 6. Kernels -------------------------------------------------------------------------------------------------------

ROWS = 15


def kernel_tables(check: Check) -> None:
    from torchrsm import preset

    cases: dict[str, tuple[Any, str, int]] = {
        "balls-wide, both": (overlapping(wide(check)), "both", 4 if check.small else 64)
    }
    if not check.small:
        cases |= {
            "paper, stack": (preset("paper"), "stack", 256),
            "paper, rectifier": (preset("paper"), "rectifier", 256),
        }
    for name, (run, phase, batch) in cases.items():
        check.require_time()
        check.found[name] = kernel_table(check, run, phase, batch)


def kernel_table(check: Check, run: Any, phase: str, batch: int) -> dict[str, Any]:
    """Return what one update launches, the longest first, and print it."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    from torchrsm.precision import products_in

    on_cuda = check.device.type == "cuda"
    updates = 10 if on_cuda else 1
    with products_in(check.precision):  # type: ignore[arg-type]
        learner, stream = make_learner(run, check, batch), make_stream(run, check, batch)
        progress = phases(learner)[phase]
        learner.begin(phase, 1)
        for _ in range(3):
            learner.teach_in_place(stream, progress)
        check.wait()
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
        with profile(activities=activities) as profiler:
            for _ in range(updates):
                learner.teach_in_place(stream, progress)
            check.wait()
    rows = []
    for event in profiler.key_averages():
        if on_cuda and (event.device_type == DeviceType.CPU or getattr(event, "is_user_annotation", False)):
            continue
        microseconds = event.self_device_time_total if on_cuda else event.self_cpu_time_total
        rows.append((microseconds / updates, event.count / updates, event.key))
    rows.sort(reverse=True)
    whole, launches = sum(row[0] for row in rows), sum(row[1] for row in rows)
    check.say(f"{run.name}, {phase}, batch {batch}: {whole:,.0f} us in {launches:,.0f} launches an update")
    for microseconds, calls, key in rows[:ROWS]:
        check.say(f"  {microseconds:9.1f} us {microseconds / max(whole, 1e-9):5.1%} {calls:6.1f} times  {key[:80]}")
    return {
        "batch": batch,
        "precision": check.precision,
        "microseconds_per_update": whole,
        "launches_per_update": launches,
        "longest": [{"microseconds": us, "launches": calls, "name": key} for us, calls, key in rows[:ROWS]],
    }


# --- 7. Error against seconds -----------------------------------------------------------------------------------------


def learning(check: Check) -> None:
    """Train `balls-wide` from nothing until its error on validation sequences is good, or the time ends."""
    import torch

    from torchrsm.precision import products_in

    batch = 4 if check.small else 64
    run = wide(check)
    whole = held_out(check)
    frames = whole[:40]
    budget = max(0.0, check.seconds_left - (1 if check.small else 15))
    budget = min(budget, 4.0) if check.small else budget
    if budget < 1:
        raise LeftOutError
    lines: list[dict[str, float]] = []
    check.found |= {"batch": batch, "precision": check.precision, "budget_seconds": budget, "curve": lines}
    with products_in(check.precision):  # type: ignore[arg-type]
        learner, stream = make_learner(run, check, batch), make_stream(run, check, batch)
        torch.manual_seed(1)
        learner.warm_up()
        phase, seconds, updates = None, 0.0, 0
        looks = 2 if check.small else 16
        while seconds < budget:
            begun = time.perf_counter()
            until = min(budget, budget * (len(lines) + 1) / looks)
            while (now := seconds + time.perf_counter() - begun) < until:
                progress = min(now / budget, 1.0)
                if learner.phase(progress) != phase:
                    phase = learner.phase(progress)
                    learner.begin(phase, 1 if check.small else 2)
                for _ in range(1 if check.small else 20):
                    learner.teach_in_place(stream, progress)
                    updates += 1
                check.wait()
            seconds += time.perf_counter() - begun
            error, raw = errors(learner.model, frames)
            lines.append({"seconds": seconds, "frames": updates * batch, "error": error, "raw": raw})
            check.say(
                f"{seconds:6.1f} s of training, {updates * batch:10,} frames, {phase}: error {error:.3f}, raw {raw:.3f}"
            )
            if error < TARGET_ERROR:
                break
    reached = next((line["seconds"] for line in lines if line["error"] < TARGET_ERROR), None)
    error, raw = errors(learner.model, whole)
    check.found |= {"target": TARGET_ERROR, "seconds_to_target": reached}
    check.found |= {"validation_sequences": len(whole), "validation_error": error, "validation_raw_error": raw}
    check.say(f"validation, {len(whole)} sequences: {error:.3f}, raw {raw:.3f}")
    folder = check.out / "balls-wide"
    learner.model.save(folder)
    check.found["weights"] = in_small_files(folder)


def held_out(check: Check) -> Any:
    """Return the validation sequences; few and short ones, where sizes are those of a test."""
    from torchrsm.streams.splits import bouncing_ball_frames

    return bouncing_ball_frames("validation", 4)[:, :12] if check.small else bouncing_ball_frames("validation")


def errors(model: Any, frames: Any) -> tuple[float, float]:
    """Return the squared error of a frame, all_predictable, of the rectified and of the raw prediction."""
    from torchrsm.scoring.metrics import frame_squared_error
    from torchrsm.scoring.sequences import predict_sequences

    found = predict_sequences(model, frames)
    raw = found.frames if found.raw is None else found.raw
    rectified, before = (frame_squared_error(part, frames)[:, 1:].mean().item() for part in (found.frames, raw))
    return rectified, before


def in_small_files(folder: Path, limit: int = MAX_FILE_BYTES) -> list[str]:
    """Cut files of a folder that are too large to be sent into numbered pieces; return the names of all files.

    ``cat model.safetensors.* > model.safetensors`` puts them together again.
    """
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        if len(data) > limit:
            for number, start in enumerate(range(0, len(data), limit)):
                file.with_name(f"{file.name}.{number:02}").write_bytes(data[start : start + limit])
            file.unlink()
    return sorted(file.name for file in folder.iterdir())


# --- 8. The published run ---------------------------------------------------------------------------------------------


def published(check: Check) -> None:
    """Say how long the published run takes at the speeds that were measured."""
    from torchrsm import preset

    run = preset("paper")
    assert run.training.steps is not None
    rows = check.results.get("speed", {}).get("frames_per_second", [])
    best = {
        phase: max((row["frames_per_second"] for row in rows if suits(row, phase)), default=None)
        for phase in ("stack", "rectifier")
    }
    check.found["frames_per_second"] = best
    if None in best.values():
        check.say("no speed of paper was measured")
        return
    rectifier = round(run.rectifying.share * run.training.steps)
    steps = {"stack": run.training.steps - rectifier, "rectifier": rectifier}
    minutes = {phase: count * run.training.batch_size / best[phase] / 60 for phase, count in steps.items()}
    check.found |= {"steps": steps, "minutes": sum(minutes.values()), "minutes_by_phase": minutes}
    check.say(f"200,000 + 50,000 steps of paper: {sum(minutes.values()):.1f} minutes by these speeds")


def suits(row: dict[str, Any], phase: str) -> bool:
    return row["system"] == "paper" and row["phase"] == phase and row["captured"] and "error" not in row


def published_in_full(check: Check) -> None:
    """Make the published run, however long it takes."""
    from torchrsm import Trainer, preset

    settings = {"device": str(check.device), "precision": check.precision, "log_steps": 2000}
    settings |= {"steps": 10, "batch_size": 2} if check.small else {}
    run = preset("paper").replace(**{f"training.{name}": value for name, value in settings.items()})
    folder = check.out / "paper"
    trainer = Trainer(run, folder / "run", resume=(folder / "run" / "run.json").exists())
    begun = time.perf_counter()
    model = trainer.run(
        lambda record: check.say(
            f"step {record.step}, {record.phase}: error {record.frame_squared_error:.3f}, "
            f"{record.frames_per_second:,.0f} frames/s"
        )
    )
    check.found |= {"steps": trainer.step, "minutes": (time.perf_counter() - begun) / 60}
    error, raw = errors(model, held_out(check))
    check.found |= {"validation_error": error, "validation_raw_error": raw}
    check.say(f"{check.found['minutes']:.1f} minutes; validation error {error:.3f}, raw {raw:.3f}")
    model.save(folder / "model")
    check.found["weights"] = in_small_files(folder / "model")


# --- All of it --------------------------------------------------------------------------------------------------------

PARTS: tuple[Part, ...] = (
    ("machine", 0.01, machine),
    ("parity", 0.10, parity),
    ("determinism", 0.10, determinism),
    ("law", 0.08, law),
    ("speed", 0.25, speed),
    ("kernels", 0.06, kernel_tables),
    ("learning", 0.40, learning),
    ("published", 0.01, published),
)


def options_of(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N, or cpu for a reduced run")
    parser.add_argument("--minutes", type=float, default=7.0, help="for all parts together, > 0")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "runs" / "gpu-check", help="folder of weights and results; see --only"
    )
    parser.add_argument(
        "--json", type=Path, help="default: benchmarks/results/gpu.json; on the CPU none but that in --out"
    )
    parser.add_argument("--wheels", type=Path, help="folder of wheels of packages that are not installed")
    parser.add_argument(
        "--only",
        help="names of parts, with commas; what --out holds of the others stays: "
        + ", ".join(name for name, _, _ in PARTS),
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="of kernel tables and trainings; tf32, on the CPU float32"
    )
    parser.add_argument("--published", action="store_true", help="make the published run in full, beyond --minutes")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes must be > 0; got {options.minutes:g}")
    names = [name for name, _, _ in PARTS]
    options.only = options.only.split(",") if options.only else names
    for name in options.only:
        if name not in names:
            parser.error(f"--only must be of {', '.join(names)}; got {name}")
    return options


def wheels_on_path(folder: Path | None) -> AbstractContextManager[object]:
    """Unpack wheels and put them on the path of imports, before all else, until the program ends."""
    if folder is None:
        return nullcontext()
    unpacked = tempfile.TemporaryDirectory(prefix="wheels-")
    count = unpack_wheels(folder, Path(unpacked.name))
    sys.path.insert(0, unpacked.name)
    importlib.invalidate_caches()
    print(f"{count} wheels of {folder} are unpacked", flush=True)
    return unpacked


def main(arguments: Sequence[str] | None = None) -> int:
    options = options_of(arguments)
    with wheels_on_path(options.wheels):
        if options.device == "cpu":
            os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported
        sys.path.insert(0, str(ROOT / "src"))
        absent = bring_in(NEEDED, SPARED)
        import torch

        from torchrsm.rsm import kernels

        on_cpu = options.device == "cpu"
        if not on_cpu and not torch.cuda.is_available():
            raise SystemExit(f"--device must be one that is there; got {options.device}, and torch sees no CUDA device")
        files = [options.out / "gpu.json"]
        files += [options.json or ROOT / "benchmarks" / "results" / "gpu.json"] if options.json or not on_cpu else []
        precision = options.precision or ("float32" if on_cpu else "tf32")
        check = Check(options.device, 60 * options.minutes, options.out, files, precision)
        if absent:
            check.say(f"not installed and not called: {', '.join(absent)}")
        if options.only != [name for name, _, _ in PARTS] and files[0].exists():
            check.results = json.loads(files[0].read_text())  # the other parts stay as they were found
        check.results["absent_packages"] = absent
        parts = [part for part in PARTS if part[0] in options.only]
        if options.published:
            parts.append(("published_in_full", 0.0, published_in_full))
        with kernels.threads_in_use(kernels.threads()), torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")
            good = check.run(parts)
        check.say(f"{'all parts went well' if good else 'NOT ALL WENT WELL'}; {files[-1]}")
        return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
