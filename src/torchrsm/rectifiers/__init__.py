"""Rectifiers, a file each. They turn the stack's prediction, an average of futures, into one sharp frame."""

from __future__ import annotations

from typing import Annotated

from pydantic import SerializeAsAny

from torchrsm.rectifiers.compact import CompactConfig, CompactGenerator
from torchrsm.rectifiers.contract import InputSizes, Rectifier, RectifierConfig
from torchrsm.rectifiers.local import LocalConfig, LocalStages
from torchrsm.rectifiers.paper import PaperConfig, PaperGenerator
from torchrsm.rectifiers.sharpening import SharpeningConfig, SharpeningFilter
from torchrsm.rectifiers.unet import UNetConfig, UNetGenerator
from torchrsm.registry import chosen_from

__all__ = ["RECTIFIERS", "AnyRectifierConfig", "InputSizes", "Rectifier", "RectifierConfig", "make_rectifier"]

RECTIFIERS: dict[str, tuple[type[RectifierConfig], type[Rectifier]]] = {
    "compact": (CompactConfig, CompactGenerator),
    "unet": (UNetConfig, UNetGenerator),
    "local": (LocalConfig, LocalStages),
    "paper": (PaperConfig, PaperGenerator),
    "sharpening": (SharpeningConfig, SharpeningFilter),
}
"""Settings and class by ``kind``. To add a rectifier, add a file and a line here."""

AnyRectifierConfig = Annotated[SerializeAsAny[RectifierConfig], chosen_from("rectifier", RECTIFIERS)]
"""The settings of any rectifier; their field ``kind`` names it."""


def make_rectifier(config: RectifierConfig, sizes: InputSizes) -> Rectifier:
    """Return the rectifier that settings name, with new weights."""
    return RECTIFIERS[config.kind][1](config, sizes)
