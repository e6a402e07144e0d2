"""Any system, RSM or baseline: the registry of all of them, and the one way to load one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchrsm.baselines import BASELINES, WITHOUT_WEIGHTS, SequenceModel
from torchrsm.config import Config
from torchrsm.devices import choose_device
from torchrsm.learning.local import LearningConfig
from torchrsm.learning.schedules import ScheduleConfig
from torchrsm.learning.windows import SequenceLearningConfig
from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rsm.kernels import EngineName
from torchrsm.storage.folders import load_model, model_kind
from torchrsm.storage.shipped import find_model

RSM = "rsm"
"""The kind of RSM, whose settings name none."""


class System(NamedTuple):
    """One kind of system.

    Attributes:
        config: its settings.
        make: makes it, with new weights, from its settings and the name of an engine, which only RSM looks at.
        learning: the settings of how it learns.
    """

    config: type[Config]
    make: Callable[[Any, EngineName], VideoPredictor | SequenceModel]
    learning: type[ScheduleConfig]


def systems() -> dict[str, System]:
    """Return all systems by their kind: RSM, then the baselines, of which a file and a line in `BASELINES` add one."""
    return {RSM: System(ModelConfig, VideoPredictor, LearningConfig)} | {
        kind: System(config, _without_engine(model), SequenceLearningConfig)
        for kind, (config, model) in BASELINES.items()
    }


def _without_engine(model: type[SequenceModel]) -> Callable[[Any, EngineName], SequenceModel]:
    return lambda config, engine: model(config)


def load(
    name_or_folder: Path | str, engine: EngineName = "auto", *, device: str | torch.device = "cpu"
) -> VideoPredictor | SequenceModel:
    """Load a system; it comes in evaluation mode.

    Nothing in the folder is executed: settings are JSON, weights safetensors. Nothing is fetched from a network.

    Args:
        name_or_folder: a folder that a training run or a model's ``save`` wrote, or the name of a shipped model
            (`torchrsm.shipped_models`) or of a baseline without weights; a folder that exists goes before a name.
        engine: which implementation computes the step of RSM.
        device: where the system computes; see `torchrsm.devices.choose_device`.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a name, or a file is missing.
        ValueError: a file is truncated or foreign, a setting unknown or out of range, a weight of the wrong shape or
            not finite, or the settings ask for many more weights than the file holds; or there is no such device.
    """
    place, name = choose_device(device), str(name_or_folder)
    if name in WITHOUT_WEIGHTS and not os.path.isdir(name_or_folder):
        config_type, model_type = BASELINES[name]
        return model_type(config_type(kind=name)).eval().to(place)
    try:
        folder = find_model(name_or_folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; baselines: {', '.join(WITHOUT_WEIGHTS)}") from None
    kind, known = model_kind(folder) or RSM, systems()
    if kind not in known:
        raise ValueError(f"{folder}: kind must be one of {', '.join(BASELINES)}; got {kind!r}")
    return load_model(folder, known[kind].config, lambda config: known[kind].make(config, engine)).to(place)
