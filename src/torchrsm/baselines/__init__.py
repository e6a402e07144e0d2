"""The systems that RSM is compared with, each a `torchrsm.predictor.Predictor` with a file of its own."""

from __future__ import annotations

from torchrsm.baselines.copy_last import CopyLast, CopyLastConfig
from torchrsm.baselines.dtsbn import DTSBN, DTSBNConfig
from torchrsm.baselines.sequence_model import BaselineConfig, SequenceModel

__all__ = [
    "BASELINES",
    "WITHOUT_WEIGHTS",
    "AnyBaselineConfig",
    "BaselineConfig",
    "CopyLast",
    "CopyLastConfig",
    "DTSBN",
    "DTSBNConfig",
    "SequenceModel",
    "make_baseline",
]

AnyBaselineConfig = CopyLastConfig | DTSBNConfig
"""The settings of any baseline; ``kind`` says which."""

BASELINES: dict[str, tuple[type[BaselineConfig], type[SequenceModel]]] = {
    "copy-last": (CopyLastConfig, CopyLast),
    "dtsbn": (DTSBNConfig, DTSBN),
}
"""Settings and model by ``kind``."""

WITHOUT_WEIGHTS = ("copy-last", "constant-velocity")
"""Those that have nothing to learn, so that they need no folder."""


def make_baseline(config: BaselineConfig) -> SequenceModel:
    """Make the baseline that some settings describe, with new weights."""
    for config_type, model_type in BASELINES.values():
        if type(config) is config_type:
            return model_type(config)
    raise TypeError(f"no baseline has the settings {type(config).__name__}")
