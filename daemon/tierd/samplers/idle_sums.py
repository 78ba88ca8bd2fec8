# SPDX-License-Identifier: Apache-2.0
"""What all blocks come to, kept as they change: `Sums`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tierd.samplers.idle_blocks import Blocks, BlockTable
from tierd.samplers.idle_cost import UNIT_BLOCK, full_units
from tierd.samplers.idle_looks import BLOCK, EMPTY, UNKNOWN, USED


class Sums:
    """Sums over all blocks of a table, right as long as each change is made within `changing`."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table
        self.units = float(table.count * (BLOCK + UNIT_BLOCK))
        """Of full looks at all blocks."""
        self.users = 0
        """Base pages in users' folios."""
        self.known = 0
        """Folios of blocks whose kind is known."""
        self.empties = 0
        """Empty blocks."""
        self._accessed = {True: 0.0, False: 0.0}

    @contextmanager
    def changing(self, blocks: Blocks) -> Iterator[None]:
        """What is learned of these blocks (each once) within this context is accounted for."""
        self._count(blocks, -1)
        try:
            yield
        finally:
            self._count(blocks, +1)

    @property
    def fast_share(self) -> float | None:
        """Share of the pages that were accessed at the last looks which are in the fastest tier."""
        fast, slow = self._accessed[True], self._accessed[False]
        return fast / (fast + slow) if fast + slow >= 1 else None

    def _count(self, blocks: Blocks, sign: int) -> None:
        table = self._table
        kind, heads, user = table.kind(blocks), table.heads(blocks), table.pages(blocks)
        self.units += sign * float(full_units(kind, heads).sum())
        self.users += sign * int(user.sum(dtype=np.int64))
        pages = user * (table.share(blocks) / 255)
        fast = float(pages[table.fast(blocks)].sum())
        self._accessed[True] += sign * fast
        self._accessed[False] += sign * (float(pages.sum()) - fast)
        self.empties += sign * int(np.count_nonzero(kind == EMPTY))
        known = (kind != UNKNOWN) & (kind != USED)
        self.known += sign * int(heads[known].sum(dtype=np.int64))
