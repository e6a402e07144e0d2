"""torchrsm: Recurrent Sparse Memory, a predictor of streams that learns on line with local errors."""

from torchrsm import physics, streams
from torchrsm.baselines import BASELINES, SequenceModel, make_baseline
from torchrsm.evaluation import TEST_SEED, VALIDATION_SEED, Evaluator, bouncing_ball_frames, evaluate_rollouts
from torchrsm.layer import LayerConfig, RSMLayer
from torchrsm.learner import NonFiniteError
from torchrsm.learning import LearningConfig, LocalLearning, RectifierLearning, RectifyingConfig
from torchrsm.model import ModelConfig, Prediction, VideoPredictor
from torchrsm.predictor import Predictor, restart, rollout
from torchrsm.presets import PRESETS, preset
from torchrsm.rectifier import CompactConfig, PaperConfig, SharpeningConfig, UNetConfig
from torchrsm.runs import BaselineRunConfig, RunConfig, TrainingConfig
from torchrsm.sequence_learner import SequenceLearningConfig
from torchrsm.shipped import shipped_models
from torchrsm.stack import RSMStack
from torchrsm.systems import load
from torchrsm.training import Trainer

__all__ = [
    "BASELINES",
    "PRESETS",
    "TEST_SEED",
    "VALIDATION_SEED",
    "BaselineRunConfig",
    "CompactConfig",
    "Evaluator",
    "LayerConfig",
    "LearningConfig",
    "LocalLearning",
    "ModelConfig",
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
    "Trainer",
    "TrainingConfig",
    "UNetConfig",
    "VideoPredictor",
    "bouncing_ball_frames",
    "evaluate_rollouts",
    "load",
    "make_baseline",
    "physics",
    "preset",
    "restart",
    "rollout",
    "shipped_models",
    "streams",
]

__version__ = "0.1.0"
