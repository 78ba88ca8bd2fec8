# SPDX-License-Identifier: Apache-2.0
"""What tierd is worth to a program where the slow tier is slow: a CXL device (which, emulated, is
far slower than DRAM)."""

from __future__ import annotations

import pytest

from guest import loads
from guest.service import Service
from guest.tiering import POLICY, Watch
from rig import Guest

pytestmark = [pytest.mark.guest, pytest.mark.machine("B"), pytest.mark.timeout(1500)]


def test_a_program_in_cxl_memory_gets_faster(guest: Guest) -> None:
    """Accesses per second by the program's own count, before and after tierd came."""
    loads.install(guest)
    service = Service(guest)
    service.policy(POLICY)
    load = loads.access(guest, "load-cxl", "window", 40, "--hot 16 --node 1 --report 500")
    assert load.hot_share(1) > 0.99, load.placement()
    before = load.speed(6)
    service.start()
    watch = Watch(guest, service)
    cycles = watch.until(lambda: load.hot_share(0), 0.95, 30)
    after = load.speed(6)
    cold = load.share(1)
    print(
        f"{before:.0f} accesses/s in CXL memory, {after:.0f} after {cycles} cycles: "
        f"{after / before:.1f} times as many; {cold:.0%} of the program still in CXL memory"
    )
    assert after > 2 * before
    assert load.bad_pages() == 0
    service.stop()
