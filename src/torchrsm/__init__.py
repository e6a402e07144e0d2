"""torchrsm: Recurrent Sparse Memory, a predictor of streams that learns on line with local errors.

The public names are listed here, and each is imported when it is first used: torch and Numba take seconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names as in the table below, for type checkers and editors
    from torchrsm import physics, streams
    from torchrsm.baselines import BASELINES, SequenceModel, make_baseline
    from torchrsm.evaluation import TEST_SEED, VALIDATION_SEED, Evaluator, bouncing_ball_frames, evaluate_rollouts
    from torchrsm.layer import LayerConfig, RSMLayer
    from torchrsm.learner import NonFiniteError
    from torchrsm.learning import LearningConfig, LocalLearning, RectifierLearning, RectifyingConfig
    from torchrsm.model import ModelConfig, Prediction, VideoPredictor
    from torchrsm.predictor import Predictor, restart, rollout
    from torchrsm.presets import PRESETS, fit, preset
    from torchrsm.rectifier import CompactConfig, PaperConfig, SharpeningConfig, UNetConfig
    from torchrsm.runs import BaselineRunConfig, RunConfig, TrainingConfig
    from torchrsm.sequence_learner import SequenceLearningConfig
    from torchrsm.shipped import shipped_models
    from torchrsm.sources import BouncingBallsConfig, MovingMNISTConfig, VideoConfig, frame_shape, held_out_frames
    from torchrsm.stack import RSMStack
    from torchrsm.systems import load
    from torchrsm.training import Trainer
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
    "LayerConfig",
    "LearningConfig",
    "LocalLearning",
    "ModelConfig",
    "MovingMNISTConfig",
    "NonFiniteError",
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
    "UNetConfig",
    "VideoConfig",
    "VideoPredictor",
    "Watcher",
    "bouncing_ball_frames",
    "evaluate_rollouts",
    "fit",
    "frame_shape",
    "held_out_frames",
    "load",
    "make_baseline",
    "physics",
    "preset",
    "restart",
    "rollout",
    "shipped_models",
    "streams",
]

_NAMES = {  # of each module
    "torchrsm.baselines": (
        "BASELINES",
        "SequenceModel",
        "make_baseline",
    ),
    "torchrsm.evaluation": (
        "TEST_SEED",
        "VALIDATION_SEED",
        "Evaluator",
        "bouncing_ball_frames",
        "evaluate_rollouts",
    ),
    "torchrsm.layer": (
        "LayerConfig",
        "RSMLayer",
    ),
    "torchrsm.learner": ("NonFiniteError",),
    "torchrsm.learning": (
        "LearningConfig",
        "LocalLearning",
        "RectifierLearning",
        "RectifyingConfig",
    ),
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
    "torchrsm.presets": (
        "PRESETS",
        "fit",
        "preset",
    ),
    "torchrsm.rectifier": (
        "CompactConfig",
        "PaperConfig",
        "SharpeningConfig",
        "UNetConfig",
    ),
    "torchrsm.runs": (
        "BaselineRunConfig",
        "RunConfig",
        "TrainingConfig",
    ),
    "torchrsm.sequence_learner": ("SequenceLearningConfig",),
    "torchrsm.shipped": ("shipped_models",),
    "torchrsm.sources": (
        "BouncingBallsConfig",
        "MovingMNISTConfig",
        "VideoConfig",
        "frame_shape",
        "held_out_frames",
    ),
    "torchrsm.stack": ("RSMStack",),
    "torchrsm.systems": ("load",),
    "torchrsm.training": ("Trainer",),
    "torchrsm.watching": (
        "Surprise",
        "Watcher",
    ),
}
_MODULES = {"physics": "torchrsm.physics", "streams": "torchrsm.streams"}  # whole modules, by their public name
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
