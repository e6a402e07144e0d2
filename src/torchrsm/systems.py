"""Any system, RSM or baseline, by its folder or its name."""

from __future__ import annotations

import os
from pathlib import Path

from torchrsm.baselines import BASELINES, WITHOUT_WEIGHTS, SequenceModel, make_baseline
from torchrsm.model import VideoPredictor
from torchrsm.model import load as load_predictor
from torchrsm.rsm.kernels import EngineName
from torchrsm.storage.folders import load_model, model_kind
from torchrsm.storage.shipped import find_model


def load(name_or_folder: Path | str, engine: EngineName = "auto") -> VideoPredictor | SequenceModel:
    """Load a system; it comes in evaluation mode.

    Nothing in the folder is executed: settings are JSON, weights safetensors. Nothing is fetched from a network.

    Args:
        name_or_folder: a folder that a training run or a model's ``save`` wrote, or the name of a shipped model
            (`torchrsm.shipped_models`) or of a baseline without weights; a folder that exists goes before a name.
        engine: which implementation computes the step of RSM.

    Raises:
        FileNotFoundError: there is neither such a folder nor such a name, or a file is missing.
        ValueError: a file is truncated or foreign, a setting unknown or out of range, a weight of the wrong shape or
            not finite, or the settings ask for many more weights than the file holds.
    """
    name = str(name_or_folder)
    if name in WITHOUT_WEIGHTS and not os.path.isdir(name_or_folder):
        config_type, model_type = BASELINES[name]
        return model_type(config_type()).eval()
    try:
        folder = find_model(name_or_folder)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; baselines: {', '.join(WITHOUT_WEIGHTS)}") from None
    kind = model_kind(folder)
    if kind is None:
        return load_predictor(folder, engine)
    if kind not in BASELINES:
        raise ValueError(f"{folder}: kind must be one of {', '.join(BASELINES)}; got {kind!r}")
    return load_model(folder, BASELINES[kind][0], make_baseline)
