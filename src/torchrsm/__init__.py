"""torchrsm: Recurrent Sparse Memory, a predictor of streams that learns on line with local errors."""

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

__version__ = "0.1.0"
