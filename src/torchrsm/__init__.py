"""torchrsm: Recurrent Sparse Memory, a predictor of streams that learns on line with local errors.

The public names are listed here, and each is imported when it is first used: torch and Numba take seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as in the table below, for type checkers and editors
    from torchrsm import streams
    from torchrsm.baselines import BASELINES, SequenceModel, make_baseline
    from torchrsm.exporting import OneStep, export_step, save_step
    from torchrsm.hub import from_pretrained, push_to_hub
    from torchrsm.learning.contract import NonFiniteError
    from torchrsm.learning.local import LearningConfig, LocalLearning
    from torchrsm.learning.rectifying import RectifierLearning, RectifyingConfig
    from torchrsm.learning.windows import SequenceLearningConfig
    from torchrsm.model import ModelConfig, Prediction, VideoPredictor
    from torchrsm.predictor import Predictor, restart, rollout
    from torchrsm.rectifiers.compact import CompactConfig
    from torchrsm.rectifiers.local import LocalConfig
    from torchrsm.rectifiers.paper import PaperConfig
    from torchrsm.rectifiers.sharpening import SharpeningConfig
    from torchrsm.rectifiers.unet import UNetConfig
    from torchrsm.rsm.head import HeadConfig
    from torchrsm.rsm.layer import LayerConfig, RSMLayer
    from torchrsm.rsm.stack import RSMStack
    from torchrsm.runs.fitting import fit
    from torchrsm.runs.presets import PRESETS, preset
    from torchrsm.runs.settings import BaselineRunConfig, RunConfig, TrainingConfig
    from torchrsm.runs.trainer import Trainer
    from torchrsm.scoring import physics
    from torchrsm.scoring.evaluation import Evaluator
    from torchrsm.scoring.rollouts import evaluate_rollouts
    from torchrsm.scoring.sequences import imagine
    from torchrsm.storage.shipped import shipped_models
    from torchrsm.streams.settings import (
        BouncingBallsConfig,
        GrammarConfig,
        KickedBallsConfig,
        MovingMNISTConfig,
        TwoWayBallsConfig,
        VariedBallsConfig,
        VideoConfig,
        WordsConfig,
        frame_shape,
    )
    from torchrsm.streams.splits import TEST_SEED, VALIDATION_SEED, bouncing_ball_frames, held_out_frames
    from torchrsm.systems import load
    from torchrsm.watching import Surprise, Watcher

__version__ = "0.1.0"

__all__ = [
    "BASELINES",
    "PRESETS",
    "TEST_SEED",
    "VALIDATION_SEED",
    "BaselineRunConfig",
    "BouncingBallsConfig",
    "CompactConfig",
    "Evaluator",
    "GrammarConfig",
    "HeadConfig",
    "KickedBallsConfig",
    "LayerConfig",
    "LearningConfig",
    "LocalConfig",
    "LocalLearning",
    "ModelConfig",
    "MovingMNISTConfig",
    "NonFiniteError",
    "OneStep",
    "PaperConfig",
    "Prediction",
    "Predictor",
    "RSMLayer",
    "RSMStack",
    "RectifierLearning",
    "RectifyingConfig",
    "RunConfig",
    "SequenceLearningConfig",
    "SequenceModel",
    "SharpeningConfig",
    "Surprise",
    "Trainer",
    "TrainingConfig",
    "TwoWayBallsConfig",
    "UNetConfig",
    "VariedBallsConfig",
    "VideoConfig",
    "VideoPredictor",
    "Watcher",
    "WordsConfig",
    "bouncing_ball_frames",
    "evaluate_rollouts",
    "export_step",
    "fit",
    "frame_shape",
    "from_pretrained",
    "held_out_frames",
    "imagine",
    "load",
    "make_baseline",
    "physics",
    "preset",
    "push_to_hub",
    "restart",
    "rollout",
    "save_step",
    "shipped_models",
    "streams",
]

_NAMES = {  # of each module
    "torchrsm.baselines": (
        "BASELINES",
        "SequenceModel",
        "make_baseline",
    ),
    "torchrsm.exporting": (
        "OneStep",
        "export_step",
        "save_step",
    ),
    "torchrsm.hub": (
        "from_pretrained",
        "push_to_hub",
    ),
    "torchrsm.learning.contract": ("NonFiniteError",),
    "torchrsm.learning.local": (
        "LearningConfig",
        "LocalLearning",
    ),
    "torchrsm.learning.rectifying": (
        "RectifierLearning",
        "RectifyingConfig",
    ),
    "torchrsm.learning.windows": ("SequenceLearningConfig",),
    "torchrsm.model": (
        "ModelConfig",
        "Prediction",
        "VideoPredictor",
    ),
    "torchrsm.predictor": (
        "Predictor",
        "restart",
        "rollout",
    ),
    "torchrsm.rectifiers.compact": ("CompactConfig",),
    "torchrsm.rectifiers.local": ("LocalConfig",),
    "torchrsm.rectifiers.paper": ("PaperConfig",),
    "torchrsm.rectifiers.sharpening": ("SharpeningConfig",),
    "torchrsm.rectifiers.unet": ("UNetConfig",),
    "torchrsm.rsm.head": ("HeadConfig",),
    "torchrsm.rsm.layer": (
        "LayerConfig",
        "RSMLayer",
    ),
    "torchrsm.rsm.stack": ("RSMStack",),
    "torchrsm.runs.fitting": ("fit",),
    "torchrsm.runs.presets": (
        "PRESETS",
        "preset",
    ),
    "torchrsm.runs.settings": (
        "BaselineRunConfig",
        "RunConfig",
        "TrainingConfig",
    ),
    "torchrsm.runs.trainer": ("Trainer",),
    "torchrsm.scoring.evaluation": ("Evaluator",),
    "torchrsm.scoring.rollouts": ("evaluate_rollouts",),
    "torchrsm.scoring.sequences": ("imagine",),
    "torchrsm.storage.shipped": ("shipped_models",),
    "torchrsm.streams.settings": (
        "BouncingBallsConfig",
        "GrammarConfig",
        "KickedBallsConfig",
        "MovingMNISTConfig",
        "TwoWayBallsConfig",
        "VariedBallsConfig",
        "VideoConfig",
        "WordsConfig",
        "frame_shape",
    ),
    "torchrsm.streams.splits": (
        "TEST_SEED",
        "VALIDATION_SEED",
        "bouncing_ball_frames",
        "held_out_frames",
    ),
    "torchrsm.systems": ("load",),
    "torchrsm.watching": (
        "Surprise",
        "Watcher",
    ),
}
_MODULES = {"physics": "torchrsm.scoring.physics", "streams": "torchrsm.streams"}  # whole modules, by their public name
_HOME = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _MODULES:
        value: Any = importlib.import_module(_MODULES[name])
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # found at once from now on
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
