# SPDX-License-Identifier: Apache-2.0
"""The mover: batches, outcomes, reasons."""

import errno
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fakehost import machine, pages_of
from tierd.config import Workload
from tierd.host import NO_PFN, KernelError, MoveOption, PhysMove
from tierd.host.machine import Failures
from tierd.movers.move_phys_pages import BATCH_PAGES, REASONS, MovePhysPages
from tierd.planner import Moves, Reason

Answer = Callable[[np.ndarray, np.ndarray], tuple[list[int], int]]


class Scripted:
    """A host that only moves, as a function says; each call takes `seconds`."""

    def __init__(self, answer: Answer, seconds: float = 0.0) -> None:
        self.answer = answer
        self.now = 0.0
        self.seconds = seconds
        self.calls: list[list[int]] = []
        self.options: list[MoveOption] = []

    def monotonic(self) -> float:
        return self.now

    def move_phys_pages(
        self, pfn: np.ndarray, target: np.ndarray, source: np.ndarray, options: MoveOption
    ) -> PhysMove:
        self.calls.append(pfn.tolist())
        self.options.append(options)
        self.now += self.seconds
        status, attempted = self.answer(pfn, target)
        codes = np.array(status, np.int32)
        new = np.where(codes == target, pfn + np.uint64(5000), NO_PFN)
        return PhysMove(codes, new, attempted)


def moves(count: int, pages: int = 1) -> Moves:
    return Moves(
        pfn=np.arange(count, dtype=np.uint64) * np.uint64(pages),
        pages=np.full(count, pages, np.uint32),
        source=np.ones(count, np.int32),
        target=np.zeros(count, np.int32),
    )


def all_moved(pfn: np.ndarray, target: np.ndarray) -> tuple[list[int], int]:
    return target.tolist(), len(pfn)


def mover(host: Scripted) -> MovePhysPages:
    return MovePhysPages(host)  # type: ignore[arg-type]


def test_batches_hold_so_many_pages_and_not_entries() -> None:
    host = Scripted(all_moved)
    result = mover(host).move(moves(20, pages=512), deadline=1.0)
    assert [len(call) for call in host.calls] == [8, 8, 4]
    assert result.moved.all()
    assert (result.new_pfn == result.moves.pfn + np.uint64(5000)).all()
    assert result.landed.tolist() == [0] * 20
    assert result.failed == {}


def test_a_folio_larger_than_a_batch_still_goes() -> None:
    host = Scripted(all_moved)
    result = mover(host).move(moves(2, pages=2 * BATCH_PAGES), deadline=1.0)
    assert [len(call) for call in host.calls] == [1, 1]
    assert result.moved.all()


def test_a_slow_kernel_gets_smaller_batches_and_the_deadline_holds() -> None:
    host = Scripted(all_moved, seconds=0.3)
    result = mover(host).move(moves(50_000), deadline=1.0)
    assert [len(call) for call in host.calls] == [4096, 2048, 1024, 512]
    assert result.failed == {Reason.BUDGET: 50_000 - 4096 - 2048 - 1024 - 512}
    assert result.seconds == pytest.approx(1.2)
    assert (result.landed[7680:] == -1).all()


def test_a_passed_deadline_moves_nothing() -> None:
    host = Scripted(all_moved)
    result = mover(host).move(moves(3), deadline=0.0)
    assert host.calls == []
    assert result.failed == {Reason.BUDGET: 3}


def test_entries_that_the_kernel_did_not_reach_are_budget() -> None:
    """A fatal signal ends the call early; nothing may be claimed of the rest."""
    host = Scripted(lambda pfn, target: (target.tolist(), 2))
    result = mover(host).move(moves(10), deadline=1.0)
    assert result.moved.tolist() == [True] * 2 + [False] * 8
    assert result.failed == {Reason.BUDGET: 8}
    assert len(host.calls) == 1


def test_a_full_target_ends_the_run() -> None:
    host = Scripted(lambda pfn, target: ([-errno.ENOMEM] * len(pfn), len(pfn)))
    result = mover(host).move(moves(10_000), deadline=1.0)
    assert len(host.calls) == 1
    assert result.failed == {Reason.NO_ROOM: 4096, Reason.BUDGET: 10_000 - 4096}


@pytest.mark.parametrize(("code", "reason"), sorted(REASONS.items()))
def test_every_code_has_its_reason(code: int, reason: Reason) -> None:
    host = Scripted(lambda pfn, target: ([0, -code, 0], 3))
    result = mover(host).move(moves(3, pages=4), deadline=1.0)
    assert result.failed == {reason: 4}
    assert result.moved.tolist() == [True, False, True]
    assert int(result.new_pfn[1]) == int(NO_PFN)
    assert int(result.landed[1]) == -1


def test_another_node_than_the_target_is_stale_and_an_unknown_code_busy() -> None:
    host = Scripted(lambda pfn, target: ([3, -errno.EIO], 2))
    result = mover(host).move(moves(2), deadline=1.0)
    assert result.failed == {Reason.STALE: 1, Reason.BUSY: 1}
    assert result.landed.tolist() == [3, -1]


def test_a_refusal_as_a_whole_raises_only_when_nothing_was_done() -> None:
    calls = 0

    def refuse_second(pfn: np.ndarray, target: np.ndarray) -> tuple[list[int], int]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KernelError(errno.EPERM, "no", "move_phys_pages")
        return all_moved(pfn, target)

    result = mover(Scripted(refuse_second)).move(moves(5000), deadline=1.0)
    assert result.failed == {Reason.BUDGET: 5000 - 4096}
    calls = 1
    with pytest.raises(KernelError):
        mover(Scripted(refuse_second)).move(moves(5), deadline=1.0)


def test_options_follow_the_policy() -> None:
    host = Scripted(all_moved)
    plain = MovePhysPages(host, respect_mempolicy=False, unmapped_page_cache=False)  # type: ignore[arg-type]
    plain.move(moves(1), deadline=1.0)
    mover(host).move(moves(1), deadline=1.0)
    assert host.options == [
        MoveOption.SHARED | MoveOption.NONBLOCK,
        MoveOption.SHARED | MoveOption.NONBLOCK | MoveOption.MEMPOLICY | MoveOption.UNMAPPED,
    ]


@given(
    st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.3), st.integers(1, 400), st.integers(0, 9)
)
def test_nothing_is_lost_and_outcomes_are_what_is_so(
    pinned: float, busy: float, mempolicy: float, count: int, seed: int
) -> None:
    """On a machine with failures: pages moved and failed add up, and each new frame is on the
    target and holds the page."""
    host = machine(
        fast="16MiB",
        slow="16MiB",
        workloads=(Workload(kind="uniform", size="24MiB"),),
        failures=Failures(pinned=pinned, busy=busy, mempolicy=mempolicy),
        folios={},
        seed=seed,
    )
    frames = pages_of(host, 0)
    slow = frames[host.machine.frames.node[host.machine.frames.locate(frames)] == 1][:count]
    ids = host.machine.frames.ids(slow)
    plan = Moves(
        pfn=slow,
        pages=np.ones(len(slow), np.uint32),
        source=np.ones(len(slow), np.int32),
        target=np.zeros(len(slow), np.int32),
    )
    result = MovePhysPages(host).move(plan, deadline=1e9)
    assert int(result.moved.sum()) + sum(result.failed.values()) == len(slow)
    new = result.new_pfn[result.moved]
    assert host.machine.frames.ids(new).tolist() == ids[result.moved].tolist()
    assert (host.machine.frames.ids(slow[~result.moved]) == ids[~result.moved]).all()
