"""torchrsm: Recurrent Sparse Memory, a predictor of streams that learns on line with local errors."""

from torchrsm import streams
from torchrsm.baselines import BASELINES, SequenceModel, make_baseline
from torchrsm.learning.contract import NonFiniteError
from torchrsm.learning.local import LearningConfig, LocalLearning
from torchrsm.learning.rectifying import RectifierLearning, RectifyingConfig
from torchrsm.learning.windows import SequenceLearningConfig
from torchrsm.model import ModelConfig, Prediction, VideoPredictor
from torchrsm.predictor import Predictor, restart, rollout
from torchrsm.rectifiers.compact import CompactConfig
from torchrsm.rectifiers.paper import PaperConfig
from torchrsm.rectifiers.sharpening import SharpeningConfig
from torchrsm.rectifiers.unet import UNetConfig
from torchrsm.rsm.layer import LayerConfig, RSMLayer
from torchrsm.rsm.stack import RSMStack
from torchrsm.runs.fitting import fit
from torchrsm.runs.presets import PRESETS, preset
from torchrsm.runs.settings import BaselineRunConfig, RunConfig, TrainingConfig
from torchrsm.runs.trainer import Trainer
from torchrsm.scoring import physics
from torchrsm.scoring.evaluation import Evaluator
from torchrsm.scoring.rollouts import evaluate_rollouts
from torchrsm.storage.shipped import shipped_models
from torchrsm.streams.settings import BouncingBallsConfig, MovingMNISTConfig, VideoConfig, frame_shape
from torchrsm.streams.splits import TEST_SEED, VALIDATION_SEED, bouncing_ball_frames, held_out_frames
from torchrsm.systems import load
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
