# SPDX-License-Identifier: Apache-2.0
"""Sets of frames are what numpy says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierd.sets import member, unique

values = st.lists(st.integers(0, 40) | st.integers(2**62, 2**62 + 5), max_size=60)


@pytest.mark.parametrize("kind", [np.int64, np.uint64])
@given(values, values)
def test_they_are_those_of_numpy(kind: type, some: list[int], others: list[int]) -> None:
    a, b = np.array(some, kind), np.array(others, kind)
    assert np.array_equal(unique(a), np.unique(a))
    assert unique(a).dtype == kind
    assert np.array_equal(member(a, b), np.isin(a, b))
