"""The energy score: what teaches a generator with noise to draw one of all futures, without an adversary.

``E|x - y| - E|x - x'| / 2``, where x and x' are two draws and y is what came, is lowest where the draws are distributed
as what comes (Tilmann Gneiting, Adrian Raftery, JASA 102, 2007; as a loss for generators: Xinwei Shen, Nicolai
Meinshausen, arXiv 2307.00835). Here the distances are those within windows of a frame. So what happens in one place is
judged by itself.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_STILL = 1e-12  # added under the root: a distance has no gradient at 0


def windowed_energy_score(first: Tensor, second: Tensor, frame: Tensor, window: int) -> Tensor:
    """Return the energy score of two draws, the mean over all windows of a frame, ``[b]``.

    Windows of ``window`` x ``window`` pixels overlap by half; at the border they reach beyond the frame, where nothing
    differs.

    Args:
        first, second: two draws of the same prediction, with noise of their own, ``[b, c, h, w]``.
        frame: what came, ``[b, c, h, w]``.
        window: pixels, 1 or more.
    """
    to_frame = _distances(first, frame, window) + _distances(second, frame, window)
    return (to_frame - _distances(first, second, window)).flatten(1).mean(1) / 2


def _distances(one: Tensor, other: Tensor, window: int) -> Tensor:
    squares = (one - other).square().sum(1, keepdim=True)
    sums = F.avg_pool2d(squares, window, max(1, window // 2), window // 2) * window**2
    return torch.sqrt(sums + _STILL)
