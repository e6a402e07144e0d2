"""Counter-based random numbers: a draw is a function of its key and its number alone.

It uses integers, sums, products and quotients alone. So a sequence depends on no library's generator, on no batch and
on no earlier draw.
"""

from __future__ import annotations

import numpy as np

from torchrsm.compiling import compiled

WEYL = np.uint64(0x9E3779B97F4A7C15)

_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)

_MIX_2 = np.uint64(0x94D049BB133111EB)


@compiled(nogil=True)
def mix(bits: np.uint64) -> np.uint64:
    """Scramble 64 bits, one to one (the output function of SplitMix64, Steele, Lea, Flood 2014)."""
    bits = (bits ^ (bits >> np.uint64(30))) * _MIX_1
    bits = (bits ^ (bits >> np.uint64(27))) * _MIX_2
    return bits ^ (bits >> np.uint64(31))


@compiled(nogil=True)
def uniform(key: np.uint64, draw: int) -> float:
    """Return draw number ``draw`` of the generator ``key``, uniform in [0, 1), a multiple of 2^-53."""
    return (mix(key + np.uint64(draw) * WEYL) >> np.uint64(11)) * 2.0**-53
