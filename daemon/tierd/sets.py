# SPDX-License-Identifier: Apache-2.0
"""Sets of page frames and blocks, as arrays of integers.

numpy has since 2.3 made `unique`, and `isin` by it, with a hash table where neither indices nor
counts are asked for (its issue 30876 knows that sorting can win): of 100,000 frames that took 24 ms
where sorting took 0.6 ms, with numpy 2.4 on two shared cores of an AMD EPYC.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_Number = TypeVar("_Number", np.int32, np.int64, np.uint64)


def unique(values: NDArray[_Number]) -> NDArray[_Number]:
    """Each value (n, in any order) once, sorted."""
    ordered = np.sort(values)
    first = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    return ordered[first]


def member(values: NDArray[_Number], of: NDArray[_Number]) -> NDArray[np.bool_]:
    """bool[n]: whether each value (n, in any order) is among those `of` (m, in any order)."""
    if not len(of):
        return np.zeros(len(values), np.bool_)
    ordered = np.sort(of)
    at = np.searchsorted(ordered, values)
    found: NDArray[np.bool_] = ordered[np.minimum(at, len(ordered) - 1)] == values
    return found
