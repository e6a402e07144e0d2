"""A small model that draws what may come."""

import torch

from torchrsm.model import ModelConfig, VideoPredictor
from torchrsm.rectifiers.local import LocalConfig
from torchrsm.rsm.layer import LayerConfig

DRAWS = LocalConfig(stages=2, width=6, noise_channels=3, noise_side=2)


def small_model(rectifier=DRAWS):
    """A model with this rectifier, none of whose weights is 0; it reads frames of any size."""
    torch.manual_seed(0)
    layers = (LayerConfig(groups=8, active_groups=2, output_bias="channel", activation="sigmoid"),)
    model = VideoPredictor(ModelConfig(layers=layers, pad=1, rectifier=rectifier))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    return model.eval()
