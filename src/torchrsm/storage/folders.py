"""A model's folder: its settings as JSON, its weights as safetensors; nothing in it is executed.

Of weights that are tied to one another, the file holds each number once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from torchrsm.config import Config
from torchrsm.storage.shipped import CONFIG_FILE
from torchrsm.storage.tensors import load_tensors, make_folder, save_tensors, write_atomically

WEIGHTS_FILE = "model.safetensors"
FORMAT = "torchrsm-model-1"

ModelT = TypeVar("ModelT", bound=nn.Module)
ConfigT = TypeVar("ConfigT", bound=Config)


@runtime_checkable
class Repeats(Protocol):
    """A part of a module that knows which of that module's weights hold the same number in several places."""

    def repeated(self) -> tuple[str, ...]:
        """Return the names of these weights."""

    def once(self, name: str, weight: Tensor) -> Tensor | None:
        """Return each number of a weight once, ``[numbers]``; None if numbers differ that should be equal."""

    def whole(self, name: str, numbers: Tensor, like: Tensor) -> Tensor:
        """Return a weight, shaped like ``like``, whose numbers `once` returned; other ``numbers`` as they are."""


def save_model(model: nn.Module, config: Config, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` to a folder, which is made if need be.

    Raises:
        OSError: the folder cannot be made or written.
    """
    make_folder(folder)
    write_atomically(folder / CONFIG_FILE, (config.model_dump_json(indent=2) + "\n").encode())
    save_weights(model, folder)


def save_weights(model: nn.Module, folder: Path) -> None:
    """Write ``model.safetensors`` alone, atomically."""
    tensors = dict(model.state_dict())
    for key, name, part in _repeated(model):
        numbers = part.once(name, tensors[key])
        if numbers is not None:
            tensors[key] = numbers
    save_tensors(folder / WEIGHTS_FILE, tensors, {"format": FORMAT})


def _repeated(model: nn.Module) -> Iterator[tuple[str, str, Repeats]]:
    """Yield each weight that holds numbers several times: its name in the model, that in its module, and the part."""
    for path, part in model.named_modules():
        if isinstance(part, Repeats):
            for name in part.repeated():
                yield f"{path.rpartition('.')[0]}.{name}".lstrip("."), name, part


def model_kind(folder: Path) -> str | None:
    """Return the ``kind`` that a model's settings name, None where they name none.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: the settings are no JSON object.
    """
    settings = _settings_file(folder)
    try:
        config = json.loads(settings.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{settings}: invalid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{settings} must hold a JSON object; got {type(config).__name__}")
    kind = config.get("kind")
    return None if kind is None else str(kind)


def load_model(folder: Path, config_type: type[ConfigT], build: Callable[[ConfigT], ModelT]) -> ModelT:
    """Read what `save_model` wrote; the model comes in evaluation mode, torch's generator stays as it is.

    Args:
        folder: of the model.
        config_type: the class of its settings.
        build: makes the model from them.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is truncated or foreign, a setting unknown or out of range, a weight of the wrong shape or
            not finite, or the settings ask for many more weights than the file holds.
    """
    settings, weights = _settings_file(folder), folder / WEIGHTS_FILE
    try:
        config = config_type.from_json(settings.read_bytes())
    except ValueError as error:
        raise ValueError(f"{settings}: {error}") from error
    tensors, header = load_tensors(weights)
    if header.get("format") != FORMAT:
        raise ValueError(f"{weights} must have the format {FORMAT}; got {header.get('format')}")
    try:
        # New weights are drawn only to be overwritten, so the draw must leave the generator as it was.
        with _Allowance(tensors, config.copies), torch.random.fork_rng(devices=()):
            model = build(config)
    except OverflowError as error:
        raise ValueError(f"{settings}: sizes must fit the weights in {WEIGHTS_FILE}; {error}") from error
    expected = model.state_dict()
    for key, name, part in _repeated(model):
        if key in tensors:
            tensors[key] = part.whole(name, tensors[key], expected[key])
    load_weights(model, tensors, str(weights))
    return model.eval()


def _settings_file(folder: Path) -> Path:
    settings = folder / CONFIG_FILE
    if not settings.is_file():
        raise FileNotFoundError(f"{folder} is no model folder: it has no {CONFIG_FILE}")
    return settings


class _Allowance(TorchFunctionMode):
    """Stops a model from being built before it takes much more memory, or time, than the weights of a file need.

    A size in settings may be anything, and building a model allocates it. The exact fit of the weights is checked
    afterwards. The allowance is wide, so a model that is only a little off gets the better message of that check.

    Args:
        tensors: of the file.
        copies: how many places of the model may hold one number of the file.
    """

    _FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn)

    def __init__(self, tensors: Mapping[str, Tensor], copies: int) -> None:
        super().__init__()
        self.tensors = 2 * len(tensors) + 100
        self.elements = 4 * copies * sum(tensor.numel() for tensor in tensors.values()) + 100_000

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._FACTORIES:
            size = args[0] if args and isinstance(args[0], tuple | list) else (kwargs or {}).get("size", args)
            self.tensors -= 1
            self.elements -= math.prod(size)
            if self.tensors < 0 or self.elements < 0:
                raise OverflowError(f"got settings that ask for many more weights, one of them {tuple(size)}")
        return func(*args, **(kwargs or {}))


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy weights into a model.

    Raises:
        ValueError: names or shapes differ, or a weight is not finite; the message names ``source``.
    """
    expected = model.state_dict()
    if expected.keys() != tensors.keys():
        name = sorted(expected.keys() ^ tensors.keys())[0]
        raise ValueError(f"{source}: weight {name} is {'missing' if name in expected else 'unknown'}")
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape or tensor.dtype != expected[name].dtype:
            raise ValueError(
                f"{source}: weight {name} must be {tuple(expected[name].shape)} {expected[name].dtype}; "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{source}: weight {name} is not finite")
    model.load_state_dict(dict(tensors))
