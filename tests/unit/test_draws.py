# SPDX-License-Identifier: Apache-2.0
"""Random draws: even, in range, repeatable, and without numpy.random in the daemon."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierd.host import Span
from tierd.hotness import Draws, HeatMap


def test_the_words_are_those_of_the_published_generator() -> None:
    """First words for seed 1234567 of the reference code, as commonly printed; here its seed is
    a state, which is a seed of ours times the odd constant."""
    state = 1234567
    inverse = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
    words = Draws(state * inverse % (1 << 64)).below(1 << 53, 3)
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert words.tolist() == [word >> 11 for word in expected]


@given(seed=st.integers(0, 2**32), limit=st.integers(1, 2**40), count=st.integers(0, 300))
def test_draws_are_in_range_and_repeat(seed: int, limit: int, count: int) -> None:
    draws = Draws(seed)
    drawn = draws.below(limit, count)
    assert drawn.shape == (count,)
    assert ((drawn >= 0) & (drawn < limit)).all()
    again = Draws(seed)
    assert again.below(limit, count).tolist() == drawn.tolist()
    assert again.below(1000, 7).tolist() == draws.below(1000, 7).tolist()


def test_draws_are_even() -> None:
    counts = np.bincount(Draws(5).below(64, 1 << 18), minlength=64)
    # Chi-squared with 63 degrees of freedom: above 118 once in 30,000.
    assert ((counts - 4096) ** 2 / 4096).sum() < 118


def test_known_frames_of_a_node_are_picked_alike() -> None:
    heat = HeatMap([Span(0, 0, 1 << 18), Span(1, 1 << 18, 3 << 17)])
    heat.tick()
    known = np.concatenate([np.arange(100), np.arange(1 << 17, (1 << 17) + 300)]).astype(np.uint64)
    heat.observe(known, np.zeros(len(known), np.uint8))
    picked = heat.search.pick([0], 4000, Draws(3)).pfn
    assert np.isin(picked, known).all()
    assert np.mean(picked < 100) == pytest.approx(0.25, abs=0.05)


def test_the_daemon_does_without_numpys_generators() -> None:
    """They take 2.5 MiB of resident memory."""
    program = "import sys, tierd.commands; assert 'numpy.random' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
