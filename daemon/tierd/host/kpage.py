# SPDX-License-Identifier: Apache-2.0
"""Files that hold something per page frame: /proc/kpage* and the idle bitmap."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tierd.host import IDLE_WORD_FRAMES, KernelError, Pfns

ENTRY: Final = 8
"""Bytes per frame in /proc/kpage* (KPMSIZE in fs/proc/page.c) and per word of the bitmap."""

GAP: Final = 16
"""Frames that are cheaper read along (50 to 150 ns each) than jumped over (a call more)."""

RUN: Final = 32_768
"""Most frames of one read, so that the scratch memory stays small."""

BITMAP_BYTES: Final = 4096
"""Most bytes the idle bitmap takes or gives in a call: kernfs cuts a binary attribute's I/O at
PAGE_SIZE (fs/kernfs/file.c)."""


class _Opened:
    """A file that is opened at first use and kept open. Opening twice in a race leaks nothing
    but a descriptor until close; all reads name their position, so threads may share it."""

    def __init__(self, path: Path, flags: int) -> None:
        self.path = path
        self._flags = flags | os.O_CLOEXEC
        self._fd = -1

    def fd(self) -> int:
        if self._fd < 0:
            try:
                self._fd = os.open(self.path, self._flags)
            except OSError as error:
                raise kernel_error(error, self.path) from None
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def kernel_error(error: OSError, path: Path | str) -> KernelError:
    """The same errno as a KernelError that names the interface."""
    return KernelError(error.errno or errno.EIO, os.strerror(error.errno or errno.EIO), str(path))


class FrameFile(_Opened):
    """One of /proc/kpageflags, kpagecount, kpagecgroup: one u64 per frame, by PFN."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, os.O_RDONLY)

    def read_run(self, start: int, out: NDArray[np.uint64]) -> None:
        """Entries of the frames start, start+1, ... into `out` (contiguous); 0 past the end of
        memory, where the file ends. Raises KernelError."""
        view = out.data.cast("B")
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self.fd(), [view[done:]], start * ENTRY + done)
            except OSError as error:
                raise kernel_error(error, self.path) from None
            if not got:
                view[done:] = bytes(len(view) - done)
                return
            done += got

    def read(self, pfn: Pfns) -> NDArray[np.uint64]:
        """uint64[n]: the entry of each frame (sorted). Near frames are read in one call."""
        out = np.empty(len(pfn), np.uint64)
        if not len(pfn):
            return out
        cuts = np.flatnonzero(np.diff(pfn) > GAP) + 1
        begins, ends = np.append(0, cuts), np.append(cuts, len(pfn))
        whole = pfn[ends - 1] - pfn[begins] == (ends - begins - 1).astype(np.uint64)
        whole &= ends - begins <= RUN
        # Many small groups are the ordinary case: as little as can be for each of them.
        view, fd, groups = out.data.cast("B"), self.fd(), whole.tolist()
        begins *= ENTRY
        ends *= ENTRY
        position = (pfn[begins // ENTRY] * np.uint64(ENTRY)).tolist()
        scratch: NDArray[np.uint64] | None = None
        for i, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
            if groups[i] and self._read_at_once(fd, view[begin:end], position[i]):
                continue
            scratch = np.empty(RUN, np.uint64) if scratch is None else scratch
            part = slice(begin // ENTRY, end // ENTRY)
            self._read_near(pfn[part], out[part], scratch)
        return out

    def _read_at_once(self, fd: int, view: memoryview, position: int) -> bool:
        """Whether one call filled `view`."""
        try:
            return os.preadv(fd, [view], position) == len(view)
        except OSError as error:
            raise kernel_error(error, self.path) from None

    def _read_near(self, pfn: Pfns, out: NDArray[np.uint64], scratch: NDArray[np.uint64]) -> None:
        first, last = int(pfn[0]), int(pfn[-1])
        if last - first < RUN:
            if last - first + 1 == len(pfn) and out.flags.c_contiguous:
                self.read_run(first, out)
                return
            run = scratch[: last - first + 1]
            self.read_run(first, run)
            np.take(run, (pfn - np.uint64(first)).astype(np.intp), out=out)
            return
        middle = int(np.searchsorted(pfn, np.uint64(first + RUN)))
        self._read_near(pfn[:middle], out[:middle], scratch)
        self._read_near(pfn[middle:], out[middle:], scratch)


class IdleBitmap(_Opened):
    """/sys/kernel/mm/page_idle/bitmap: one bit per frame, in words of 64 (mm/page_idle.c)."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, os.O_RDWR)

    def write(self, start: int, words: NDArray[np.uint64]) -> None:
        """Mark the frames of set bits idle. Frames past the end of memory are ignored."""
        view = words.data.cast("B")
        position = _position(start)
        for done in range(0, len(view), BITMAP_BYTES):
            try:
                os.pwritev(self.fd(), [view[done : done + BITMAP_BYTES]], position + done)
            except OSError as error:
                if error.errno == errno.ENXIO:  # starts past the last frame of the machine
                    return
                raise kernel_error(error, self.path) from None

    def read(self, start: int, words: NDArray[np.uint64]) -> None:
        """Idle bits into `words` (contiguous); 0 past the end of memory."""
        view = words.data.cast("B")
        position = _position(start)
        done = 0
        while done < len(view):
            try:
                got = os.preadv(self.fd(), [view[done : done + BITMAP_BYTES]], position + done)
            except OSError as error:
                raise kernel_error(error, self.path) from None
            if not got:
                view[done:] = bytes(len(view) - done)
                return
            done += got

    def write_words(self, first: Pfns, masks: NDArray[np.uint64]) -> None:
        """Mark the frames of single words (sorted) idle, a call for each: to pass over the clear
        bits between two blocks takes the kernel as long as another call."""
        view, fd = masks.data.cast("B"), self.fd()
        at = 0
        try:
            for position in _positions(first):
                os.pwrite(fd, view[at : at + ENTRY], position)
                at += ENTRY
        except OSError as error:
            if error.errno != errno.ENXIO:  # the rest lies past the last frame as well
                raise kernel_error(error, self.path) from None

    def read_words(self, first: Pfns, words: NDArray[np.uint64]) -> None:
        """Single words (sorted) into `words` (contiguous); 0 past the end of memory."""
        view, fd = words.data.cast("B"), self.fd()
        at = 0
        try:
            for position in _positions(first):
                if not os.preadv(fd, [view[at : at + ENTRY]], position):
                    view[at:] = bytes(len(view) - at)
                    return
                at += ENTRY
        except OSError as error:
            raise kernel_error(error, self.path) from None


def _positions(first: Pfns) -> list[int]:
    if np.any(first % np.uint64(IDLE_WORD_FRAMES)):
        raise ValueError("a frame does not begin a word of the idle bitmap")
    positions: list[int] = (first // np.uint64(8)).tolist()
    return positions


def _position(start: int) -> int:
    if start % IDLE_WORD_FRAMES:
        raise ValueError(f"frame {start} does not begin a word of the idle bitmap")
    return start // 8
