# SPDX-License-Identifier: Apache-2.0
"""Looks at 2 MiB blocks through the idle bitmap: marking, reading, folding tails to heads.

The bitmap cannot tell an accessed page from a tail, a free frame or a kernel page: all read 0
(page_idle_get_folio in mm/page_idle.c gives up on them). Set bits need no second opinion; a
clear one is believed only where the block's layout, kept in a byte, says that the frame is the
head of a folio on the LRU, or after its flags were read again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import KPF, Host, Pfns, free_frames

BLOCK: Final = 512
"""Frames in a block: what one PMD-sized folio covers."""
WORDS: Final = BLOCK // 64

UNKNOWN: Final = 0
"""Never looked at closely."""
EMPTY: Final = 1
"""No folio on the LRU that we know of."""
SMALL: Final = 2
"""512 folios of one page."""
HUGE: Final = 3
"""One folio of 512 pages."""
MIXED: Final = 4
"""Anything else."""
USED: Final = 5
"""Some frame is in use; how the block is laid out is not known yet."""

_JUDGE: Final = KPF.LRU | KPF.COMPOUND_TAIL | KPF.HUGE
_ONES: Final = np.full(4096 // 8, np.uint64(2**64 - 1))
_RANGE: Final = np.arange(BLOCK, dtype=np.uint64)
_OTHERS: Final = np.array([2, 4, 6], np.uint8)
"""Words beside one, in a block."""
_BITS: Final = np.arange(64, dtype=np.uint64)

Bools = NDArray[np.bool_]
Words = NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at k blocks told.

    kind: uint8[k]; heads: uint16[k] folios on the LRU; user: uint16[k] base pages in them;
    share: uint8[k], accessed share of what was looked at in each block, 0..255.
    pfn, weight: the frames looked at, as in SampleBatch. gone: uint64[m], sorted; frames that are
    free or tails, of blocks that had more folios before.
    """

    kind: NDArray[np.uint8]
    heads: NDArray[np.uint16]
    user: NDArray[np.uint16]
    share: NDArray[np.uint8]
    pfn: Pfns
    weight: NDArray[np.uint8]
    gone: Pfns = field(default_factory=lambda: np.zeros(0, np.uint64))


@dataclass(frozen=True, slots=True)
class Known:
    """What was known of k blocks before a look at all their frames.

    kind: uint8[k]; heads, user: uint16[k], as in `Seen`.
    trust: uint16[k]; so many clear bits are believed of a SMALL block without reading its flags
    again, more may be freed frames. check: bool[k]; do not take a MIXED block that shows as
    many idle heads as it had for unchanged.
    """

    kind: NDArray[np.uint8]
    heads: NDArray[np.uint16]
    user: NDArray[np.uint16]
    trust: NDArray[np.uint16]
    check: Bools


def runs(starts: Pfns, most: int = len(_ONES) // WORDS) -> Iterator[tuple[int, int]]:
    """Begin and end of each run of adjacent blocks, at most `most` long: one call's worth."""
    cuts = np.flatnonzero(np.diff(starts) != BLOCK) + 1
    for begin, end in zip([0, *cuts.tolist()], [*cuts.tolist(), len(starts)], strict=True):
        for part in range(begin, end, most):
            yield part, min(part + most, end)


def mark_full(host: Host, starts: Pfns) -> None:
    """Mark all frames of some blocks (sorted) idle. Frames that are no head ignore it."""
    for begin, end in runs(starts):
        host.set_idle(int(starts[begin]), _ONES[: (end - begin) * WORDS])


def eligible(flags: NDArray[np.uint64]) -> Bools:
    """bool: heads of folios on the LRU. Tails carry the head's LRU flag in 6.12
    (stable_page_flags in fs/proc/page.c), huge pages of hugetlbfs are on no LRU."""
    heads: Bools = (flags & _JUDGE) == KPF.LRU
    return heads


def there_in_full(host: Host, starts: Pfns) -> Words:
    """uint64[k, 8]: heads of folios on the LRU in blocks (sorted) from `starts` on."""
    return _words(eligible(_flags_of(host, starts)))


def there_in_words(host: Host, first: Pfns) -> Words:
    """uint64[k]: heads of folios on the LRU among 64 frames from each of `first` (sorted)."""
    flags = host.flags((first[:, None] + _BITS).reshape(-1)).reshape(-1, 64)
    return _words(eligible(flags))[:, 0]


def read_full(host: Host, starts: Pfns, known: Known, there: Words | None = None) -> Seen:
    """Read blocks that `mark_full` marked; `starts` are their first frames. there: uint64[k, 8],
    the frames that could be marked; the others have been filled since. None: all."""
    words = np.empty((len(starts), WORDS), np.uint64)
    for begin, end in runs(starts):
        host.read_idle(int(starts[begin]), words[begin:end].reshape(-1))
    idle = _bits(words)
    ones = idle.view(np.uint8).sum(axis=1, dtype=np.uint16)
    believed = (known.kind == SMALL) & (ones + known.trust >= BLOCK)
    same = (known.kind == MIXED) & (ones >= known.heads) & ~known.check
    heads = np.where(believed, BLOCK, ones).astype(np.uint16)
    user = np.where(same, known.user, heads).astype(np.uint16)
    kind = np.where(believed | (ones == BLOCK), SMALL, MIXED).astype(np.uint8)
    looked = idle | believed[:, None]
    doubtful = np.flatnonzero(~(believed | same) & (ones < BLOCK))
    gone = starts[:0]
    if len(doubtful):
        flags = _flags_of(host, starts[doubtful])
        # A head that was idle can have become a tail or free since.
        no_head = _no_head(flags)
        looked[doubtful] = (looked[doubtful] | eligible(flags)) & ~no_head
        kind[doubtful], heads[doubtful], user[doubtful] = _layout(looked[doubtful], flags)
        less = (heads < known.heads) | ((kind == HUGE) & (known.kind == EMPTY))
        less = (less & (known.kind != UNKNOWN))[doubtful]
        gone = (starts[doubtful[less], None] + _RANGE)[no_head[less]]
    told, accessed = heads, heads - ones
    if there is not None:
        looked = looked & _bits(there)
        told = looked.sum(axis=1, dtype=np.uint16)
        accessed = told - (looked & idle).sum(axis=1, dtype=np.uint16)
    share = (accessed.astype(np.uint32) * 255 // np.maximum(told, 1)).astype(np.uint8)
    pfn, weight = _entries(starts, looked, idle)
    return Seen(kind, heads, user, share, pfn, weight, gone)


def _no_head(flags: NDArray[np.uint64]) -> Bools:
    """bool: frames that are free or a tail."""
    none: Bools = free_frames(flags) | ((flags & KPF.COMPOUND_TAIL) != 0)
    return none


def _words(bits: Bools) -> Words:
    """uint64[k, n] from bool[k, 64 * n]."""
    return np.packbits(bits, axis=1, bitorder="little").view(np.uint64)


def _bits(words: Words) -> Bools:
    """bool[k, 512] from uint64[k, 8]."""
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little").view(np.bool_)


def _entries(starts: Pfns, looked: Bools, idle: Bools) -> tuple[Pfns, NDArray[np.uint8]]:
    frames = starts[:, None] + _RANGE
    if np.all(looked):  # the ordinary case of small pages: no selection needed
        return frames.reshape(-1), (~idle).reshape(-1).view(np.uint8)
    return frames[looked], (~idle)[looked].view(np.uint8)


def _flags_of(host: Host, starts: Pfns) -> NDArray[np.uint64]:
    """uint64[k, 512]: page flags of whole blocks."""
    flags = np.empty((len(starts), BLOCK), np.uint64)
    for begin, end in runs(starts):
        host.flags_run(int(starts[begin]), flags[begin:end].reshape(-1))
    return flags


def _layout(
    heads: Bools, flags: NDArray[np.uint64]
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint16]]:
    """Kind, folios and base pages of blocks from the flags of all their frames."""
    count = heads.view(np.uint8).sum(axis=1, dtype=np.uint16)
    tails = (flags & KPF.COMPOUND_TAIL).astype(np.bool_)
    # A tail belongs to a user's folio if it carries the LRU flag or, on older kernels that do
    # not copy it, if it is mapped or anonymous; what is missed here only shortens an estimate.
    own = tails & ((flags & (KPF.LRU | KPF.MMAP | KPF.ANON)) != 0) & ((flags & KPF.HUGE) == 0)
    user = count + own.view(np.uint8).sum(axis=1, dtype=np.uint16)
    kind = np.full(len(heads), MIXED, np.uint8)
    kind[count == 0] = EMPTY
    kind[count == BLOCK] = SMALL
    kind[heads[:, 0] & (count == 1) & (user == BLOCK)] = HUGE
    return kind, count, user


def read_words(
    host: Host,
    starts: Pfns,
    word: NDArray[np.uint8],
    mask: Words,
    kind: NDArray[np.uint8],
    check: Bools,
) -> Seen:
    """Read single words whose frames in `mask` were marked: word w of the block at starts[i]
    (sorted).

    The flags of a word are read where some of its marked frames read 0 and the block's layout
    does not vouch for them, or `check` (bool[k]) says not to believe it. `heads` and `user` are 0
    where the look did not tell.
    """
    first = starts + word.astype(np.uint64) * np.uint64(64)
    idle = np.empty(len(starts), np.uint64)
    host.read_idle_words(first, idle)
    idle &= mask
    looked = mask.copy()
    new_kind = np.where(kind == UNKNOWN, USED, kind).astype(np.uint8)
    huge = np.flatnonzero((idle != mask) & (kind == HUGE))
    huge = huge[_is_huge(host, starts[huge])]
    # Of a block that was never looked at there was the first frame alone to be marked.
    alone = np.flatnonzero((kind == UNKNOWN) & (mask == 1) & (idle == mask))
    new_kind[alone[_is_huge(host, starts[alone])]] = HUGE
    doubt = ((idle != mask) | (mask == 0)) & ((kind != SMALL) | check)
    doubt[huge] = False
    doubtful = np.flatnonzero(doubt)
    gone = starts[:0]
    if len(doubtful):
        flags = host.flags((first[doubtful, None] + _BITS).reshape(-1)).reshape(-1, 64)
        heads = _words(eligible(flags))[:, 0]
        known = (heads | idle[doubtful]) & ~_words(_no_head(flags))[:, 0]
        looked[doubtful] = mask[doubtful] & known
        new_kind[doubtful] = _hints(host, starts[doubtful], word[doubtful], flags, kind[doubtful])
        emptied = np.flatnonzero((kind == SMALL) & (new_kind == EMPTY))
        every = _flags_of(host, starts[emptied])
        new_kind[emptied[np.any(eligible(every), axis=1)]] = USED
        gone = (starts[emptied, None] + _RANGE)[free_frames(every)]
        freed = starts[doubtful[(kind[doubtful] == HUGE) & free_frames(flags[:, 0])]]
        formed = (new_kind == HUGE) & (kind != HUGE) & (kind != UNKNOWN)
        tails = (starts[formed, None] + _RANGE[1:]).reshape(-1)
        gone = np.sort(np.concatenate((gone, freed, tails)))
    one = new_kind == HUGE
    bits, hits = _bits(looked[:, None]), _bits((looked & ~idle)[:, None])
    row, frame = np.nonzero(bits)
    seen, met = (each.view(np.uint8).sum(axis=1, dtype=np.uint16) for each in (bits, hits))
    share = (met * np.uint16(255) // np.maximum(seen, 1)).astype(np.uint8)
    return Seen(
        new_kind,
        one.astype(np.uint16),
        one * np.uint16(BLOCK),
        share,
        first[row] + frame.astype(np.uint64),
        hits[row, frame].view(np.uint8),
        gone,
    )


def _is_huge(host: Host, starts: Pfns) -> Bools:
    """bool[k]: whether blocks are a huge page, from two frames of each. Folios are aligned to
    their size, so that of any smaller ones one would begin in the middle."""
    if not len(starts):
        return np.zeros(0, np.bool_)
    two = np.stack((starts, starts + np.uint64(BLOCK // 2)), axis=1)
    flags = host.flags(two.reshape(-1)).reshape(-1, 2)
    huge: Bools = eligible(flags[:, 0]) & ((flags[:, 0] & KPF.COMPOUND_HEAD) != 0)
    huge &= (flags[:, 1] & KPF.COMPOUND_TAIL) != 0
    return huge


def _hints(
    host: Host,
    starts: Pfns,
    word: NDArray[np.uint8],
    flags: NDArray[np.uint64],
    kind: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """uint8[k]: what the flags of one word of each block (uint64[k, 64]) say about its kind."""
    heads = eligible(flags)
    tails = (flags & KPF.COMPOUND_TAIL).astype(np.bool_)
    # A huge page that does not show was split or is gone, as are small pages that do not.
    other = (kind == HUGE) | (kind == UNKNOWN) | ((kind == SMALL) & ~np.all(heads, axis=1))
    hint = np.where(other, USED, kind)
    nothing = ~np.any(heads | tails, axis=1)
    hint[(kind == UNKNOWN) & nothing] = EMPTY
    freed = np.flatnonzero((kind == SMALL) & nothing)
    hint[freed[_is_empty(host, starts[freed], word[freed])]] = EMPTY
    large = (word == 0) & heads[:, 0] & np.all(tails[:, 1:], axis=1)
    hint[large] = MIXED
    # Nothing but tails: of a folio that begins in another word, or is all of the block.
    whole = np.flatnonzero(large | ((word != 0) & np.all(tails, axis=1)))
    hint[whole[_is_huge(host, starts[whole])]] = HUGE
    return hint.astype(np.uint8)


def _is_empty(host: Host, starts: Pfns, word: NDArray[np.uint8]) -> Bools:
    """bool[k]: whether blocks in one word of which there is nothing have nothing in three others
    either, as far as the first frame of each tells."""
    others = np.sort((word[:, None] + _OTHERS) % WORDS, axis=1)
    frames = starts[:, None] + others.astype(np.uint64) * np.uint64(64)
    flags = host.flags(frames.reshape(-1)).reshape(-1, len(_OTHERS))
    empty: Bools = ~np.any(flags & (KPF.LRU | KPF.COMPOUND_HEAD | KPF.COMPOUND_TAIL), axis=1)
    return empty


def occupied(host: Host, first: Pfns) -> Bools:
    """bool[k]: whether any of the 8 frames from each of `first` (sorted) on is on the LRU. For
    blocks that were empty: have they filled?"""
    if not len(first):
        return np.zeros(0, np.bool_)
    flags = host.flags((first[:, None] + _RANGE[:8]).reshape(-1)).reshape(-1, 8)
    found: Bools = np.any(flags & KPF.LRU, axis=1)
    return found
