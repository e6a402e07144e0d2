"""The systems that RSM is compared with, each a `torchrsm.predictor.Predictor` with a file of its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import SerializeAsAny

from torchrsm.baselines.constant_velocity import ConstantVelocity, ConstantVelocityConfig
from torchrsm.baselines.convlstm import ConvLSTM, ConvLSTMConfig
from torchrsm.baselines.copy_last import CopyLast, CopyLastConfig
from torchrsm.baselines.dtsbn import DTSBN, DTSBNConfig
from torchrsm.baselines.lstm import LSTM, LSTMConfig
from torchrsm.baselines.pgn import PGN, PGNConfig
from torchrsm.baselines.predrnn import PredRNN, PredRNNConfig
from torchrsm.baselines.rtrbm import RTRBM, RTRBMConfig
from torchrsm.baselines.seq2seq_convlstm import (
    Seq2SeqConvLSTM,
    Seq2SeqConvLSTMConfig,
    Seq2SeqConvLSTMMultiDecoder,
    Seq2SeqConvLSTMMultiDecoderConfig,
)
from torchrsm.baselines.sequence_model import BaselineConfig, SequenceModel
from torchrsm.baselines.simvp import SimVP, SimVPConfig
from torchrsm.baselines.srtrbm import SRTRBM, SRTRBMConfig
from torchrsm.baselines.unet import FramesUNet, FramesUNetConfig
from torchrsm.baselines.window_network import WindowNetwork, WindowNetworkConfig
from torchrsm.registry import chosen_from

__all__ = [
    "BASELINES",
    "DTSBN",
    "LSTM",
    "PGN",
    "RTRBM",
    "SRTRBM",
    "WITHOUT_WEIGHTS",
    "AnyBaselineConfig",
    "BaselineConfig",
    "ConstantVelocity",
    "ConstantVelocityConfig",
    "ConvLSTM",
    "ConvLSTMConfig",
    "CopyLast",
    "CopyLastConfig",
    "DTSBNConfig",
    "FramesUNet",
    "FramesUNetConfig",
    "LSTMConfig",
    "PGNConfig",
    "PredRNN",
    "PredRNNConfig",
    "RTRBMConfig",
    "SRTRBMConfig",
    "Seq2SeqConvLSTM",
    "Seq2SeqConvLSTMConfig",
    "Seq2SeqConvLSTMMultiDecoder",
    "Seq2SeqConvLSTMMultiDecoderConfig",
    "SequenceModel",
    "SimVP",
    "SimVPConfig",
    "WindowNetworkConfig",
    "make_baseline",
]

BASELINES: dict[str, tuple[type[BaselineConfig], type[SequenceModel]]] = {
    "copy-last": (CopyLastConfig, CopyLast),
    "constant-velocity": (ConstantVelocityConfig, ConstantVelocity),
    "lstm": (LSTMConfig, LSTM),
    "rtrbm": (RTRBMConfig, RTRBM),
    "srtrbm": (SRTRBMConfig, SRTRBM),
    "dtsbn": (DTSBNConfig, DTSBN),
    "pgn": (PGNConfig, PGN),
    "seq2seq-convlstm": (Seq2SeqConvLSTMConfig, Seq2SeqConvLSTM),
    "seq2seq-convlstm-multi-decoder": (Seq2SeqConvLSTMMultiDecoderConfig, Seq2SeqConvLSTMMultiDecoder),
    "convlstm": (ConvLSTMConfig, ConvLSTM),
    "predrnn": (PredRNNConfig, PredRNN),
    "simvp": (SimVPConfig, SimVP),
    "unet": (FramesUNetConfig, FramesUNet),
    "window-network": (WindowNetworkConfig, WindowNetwork),
}
"""The settings and the model of each baseline, by the ``kind`` of its settings: a file and a line here add one."""

AnyBaselineConfig = Annotated[SerializeAsAny[BaselineConfig], chosen_from("model", BASELINES)]
"""The settings of any baseline; ``kind`` says which."""

WITHOUT_WEIGHTS = ("copy-last", "constant-velocity")
"""The baselines that learn nothing. They have no weights, so they are loaded by name, without a folder."""


def make_baseline(config: BaselineConfig) -> SequenceModel:
    """Return the baseline that the settings describe, with new weights."""
    for config_type, model_type in BASELINES.values():
        if type(config) is config_type:
            return model_type(config)
    raise TypeError(f"no baseline has the settings {type(config).__name__}")
