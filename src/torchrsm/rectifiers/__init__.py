"""Rectifiers: they turn the stack's prediction, an average of futures, into one sharp frame; a file each."""

from __future__ import annotations

from collections.abc import Sequence

from torchrsm.rectifiers.compact import CompactConfig, CompactGenerator
from torchrsm.rectifiers.paper import PaperConfig, PaperGenerator
from torchrsm.rectifiers.sharpening import SharpeningConfig, SharpeningFilter
from torchrsm.rectifiers.unet import UNetConfig, UNetGenerator

RectifierConfig = CompactConfig | UNetConfig | PaperConfig | SharpeningConfig

Rectifier = SharpeningFilter | CompactGenerator | UNetGenerator | PaperGenerator


def make_rectifier(
    config: RectifierConfig,
    channels: int,
    layer_cells: Sequence[int],
    seen_channels: int,
    pad: int,
    pad_value: float,
) -> Rectifier:
    """Return the rectifier that the settings name; the arguments are those of `UNetGenerator`."""
    if isinstance(config, CompactConfig):
        return CompactGenerator(config, channels, layer_cells, pad, pad_value)
    if isinstance(config, UNetConfig):
        return UNetGenerator(config, channels, layer_cells, seen_channels, pad, pad_value)
    if isinstance(config, PaperConfig):
        return PaperGenerator(channels, pad, pad_value)
    return SharpeningFilter(config)
