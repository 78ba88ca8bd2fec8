# SPDX-License-Identifier: Apache-2.0
"""`Draws`: random integers for samples of frames, the same for the same seed.

numpy.random would do as well, at 2.5 MiB of the daemon's resident memory for one import.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_GAMMA: Final = 0x9E3779B97F4A7C15
_WORD: Final = 1 << 64


class Draws:
    """SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), vectorised: word n is a mix of n times an
    odd constant. Good enough to choose frames to look at; not for secrets."""

    def __init__(self, seed: int) -> None:
        self._next = seed * _GAMMA % _WORD

    def below(self, limit: int, count: int) -> NDArray[np.int64]:
        """int64[count] of 0..limit-1, each as likely to within limit / 2**53; limit >= 1."""
        words = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GAMMA) + np.uint64(self._next)
        self._next = (self._next + count * _GAMMA) % _WORD
        words ^= words >> np.uint64(30)
        words *= np.uint64(0xBF58476D1CE4E5B9)
        words ^= words >> np.uint64(27)
        words *= np.uint64(0x94D049BB133111EB)
        words ^= words >> np.uint64(31)
        words >>= np.uint64(11)
        return (words * (limit / 2**53)).astype(np.int64)
