# SPDX-License-Identifier: Apache-2.0
"""The mover over move_phys_pages: by physical address, one verified outcome per folio."""

from __future__ import annotations

import errno
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd import planner
from tierd.host import NO_PFN, Host, KernelError, MoveOption, Pfns
from tierd.movers import MoveResult
from tierd.planner import Moves, Reason, code

BATCH_PAGES: Final = 4096
"""Base pages of one call: 8 of migrate_pages' own batches, so the call's fixed cost is spread."""

BATCH_SECONDS: Final = 0.1
"""A call longer than this makes the next one smaller: SIGTERM is seen between calls only."""

SMALLEST_BATCH: Final = 64

REASONS: Final = {
    errno.EACCES: Reason.CPUSET,
    errno.EXDEV: Reason.MEMPOLICY,
    errno.EFAULT: Reason.VMA,
    errno.EPERM: Reason.SHARED,
    errno.EMLINK: Reason.SHARED,
    errno.EBUSY: Reason.BUSY,
    errno.EAGAIN: Reason.BUSY,
    errno.ENOMEM: Reason.NO_ROOM,
    errno.ENODEV: Reason.NO_ROOM,
    errno.ENODATA: Reason.UNMAPPED,
    errno.ENOENT: Reason.STALE,
    errno.ESTALE: Reason.STALE,
    errno.ENXIO: Reason.STALE,
    errno.EOPNOTSUPP: Reason.VMA,
}
"""Why an entry stayed, by the errno in its status. What is not here counts as busy."""


class MovePhysPages:
    """`tierd.movers.Mover` over `Host.move_phys_pages`."""

    name = "move_phys_pages"

    def __init__(
        self, host: Host, *, respect_mempolicy: bool = True, unmapped_page_cache: bool = True
    ) -> None:
        self._host = host
        self._batch = BATCH_PAGES
        self._options = MoveOption.SHARED | MoveOption.NONBLOCK
        if respect_mempolicy:
            self._options |= MoveOption.MEMPOLICY
        if unmapped_page_cache:
            self._options |= MoveOption.UNMAPPED

    def move(self, moves: Moves, deadline: float) -> MoveResult:
        """Move in batches, in order, until done, `deadline` (host clock) or a full target.

        A folio counts as moved when its status, which the kernel writes after the move, names
        the target. Raises KernelError when the kernel refuses a call as a whole
        before anything was moved; later such a refusal ends the run and the rest is BUDGET.
        """
        count = len(moves.pfn)
        status = np.full(count, -errno.ECANCELED, np.int32)
        new_pfn = np.full(count, NO_PFN, np.uint64)
        began = self._host.monotonic()
        done = 0
        while done < count and self._host.monotonic() < deadline:
            end = done + self._entries(moves.pages[done:])
            try:
                attempted = self._call(moves, slice(done, end), status, new_pfn)
            except KernelError:
                if done == 0:
                    raise
                break
            done += attempted
            tried = slice(done - attempted, done)
            if done < end or _full(moves.pages[tried], status[tried]):
                break
        seconds = self._host.monotonic() - began
        return _result(moves, done, status, new_pfn, seconds)

    def _entries(self, pages: NDArray[np.uint32]) -> int:
        """How many of the next entries make one batch; at least one."""
        ahead = np.cumsum(pages[: self._batch], dtype=np.int64)
        return max(1, int(np.searchsorted(ahead, self._batch, side="right")))

    def _call(self, moves: Moves, part: slice, status: NDArray[np.int32], new_pfn: Pfns) -> int:
        began = self._host.monotonic()
        outcome = self._host.move_phys_pages(
            moves.pfn[part], moves.target[part], moves.source[part], self._options
        )
        end = part.start + outcome.attempted
        status[part.start : end] = outcome.status[: outcome.attempted]
        new_pfn[part.start : end] = outcome.new_pfn[: outcome.attempted]
        self._tune(self._host.monotonic() - began)
        return outcome.attempted

    def _tune(self, seconds: float) -> None:
        if seconds > BATCH_SECONDS:
            self._batch = max(SMALLEST_BATCH, self._batch // 2)
        elif seconds < BATCH_SECONDS / 4:
            self._batch = min(BATCH_PAGES, self._batch * 2)


def _full(pages: NDArray[np.uint32], status: NDArray[np.int32]) -> bool:
    """Most base pages of a batch found no room: the rest would not either, and a failed
    allocation costs the kernel a walk over the zones each time. A large folio that found none
    says nothing: there may be room in pieces."""
    single = status[pages == 1]
    return bool(np.count_nonzero(single == -errno.ENOMEM) * 2 > len(single))


def _result(
    moves: Moves, done: int, status: NDArray[np.int32], new_pfn: Pfns, seconds: float
) -> MoveResult:
    """Outcomes from statuses; entries from `done` on were not attempted."""
    tried = np.arange(len(status)) < done
    moved = tried & (status == moves.target) & (moves.source != moves.target)
    landed = np.where(tried & (status >= 0), status, np.int32(-1)).astype(np.int32, copy=False)
    why = _reasons(tried, moved, status)
    return MoveResult(
        moves=moves,
        moved=moved,
        landed=landed,
        new_pfn=np.where(moved, new_pfn, NO_PFN),
        failed=_failures(moves, why),
        seconds=seconds,
        why=why,
    )


def _reasons(
    tried: NDArray[np.bool_], moved: NDArray[np.bool_], status: NDArray[np.int32]
) -> NDArray[np.int8]:
    """int8[n]: code of the reason why each entry stayed, -1 where it moved."""
    why = np.full(len(status), -1, np.int8)
    why[~tried] = code(Reason.BUDGET)
    stayed = tried & ~moved
    for each in np.unique(status[stayed]).tolist():
        # A node that is not the target: it was moved by somebody else, or never was on source.
        reason = Reason.STALE if each >= 0 else REASONS.get(-each, Reason.BUSY)
        why[stayed & (status == each)] = code(reason)
    return why


def _failures(moves: Moves, why: NDArray[np.int8]) -> dict[Reason, int]:
    """Base pages that stayed, by reason."""
    return {
        planner.REASONS[each]: int(moves.pages[why == each].sum(dtype=np.int64))
        for each in np.unique(why[why >= 0]).tolist()
    }
