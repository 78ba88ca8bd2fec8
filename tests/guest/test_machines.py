# SPDX-License-Identifier: Apache-2.0
"""Machines with a CXL Type 3 device: how it comes up, how tierd ranks it, and moves off it.

The policy names no tiers, so the order is the one that tierd finds by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from guest import loads
from guest.conftest import start
from guest.loads import MIB, Load, wait
from guest.service import Service
from rig import Guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(2400)]

POLICY = """\
version: 1
mode: tier
sampling:
  cpu: 80%             # an emulated core is some fifty times slower than a real one
"""

ORDER = {"B": [[0], [1]], "C": [[0], [1], [2]]}
"""Nodes of each tier, fastest first; the last is the CXL device's."""

CXL_SIZE = 512 * MIB


@pytest.fixture(scope="module", params=sorted(ORDER))
def machine(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def guest(machine: str) -> Iterator[Guest]:
    """The module's guest, once on each machine."""
    with ExitStack() as stack:
        guest = start("test_machines.py", stack, machine=machine)
        yield guest
        complaints = guest.complaints()
    assert not complaints, "the kernel complained:\n" + "\n".join(complaints)


@pytest.fixture(scope="module")
def service(guest: Guest) -> Service:
    loads.install(guest)
    return Service(guest)


@pytest.fixture
def cxl(machine: str) -> int:
    """Node of the CXL device."""
    return ORDER[machine][-1][0]


def test_the_region_is_online_and_movable(service: Service, cxl: int) -> None:
    guest = service.guest
    regions = json.loads(guest.run("cxl list --regions").stdout)
    assert [(each["type"], each["size"]) for each in regions] == [("ram", CXL_SIZE)]
    (device,) = json.loads(guest.run("daxctl list").stdout)
    assert (device["mode"], device["target_node"], device["size"]) == ("system-ram", cxl, CXL_SIZE)
    node = f"/sys/devices/system/node/node{cxl}"
    assert guest.run(f"cat {node}/memory*/valid_zones | sort -u").stdout.split() == ["Movable"]
    assert guest.run(f"cat {node}/memory*/state | sort -u").stdout.split() == ["online"]
    assert guest.run(f"cat {node}/cpulist").stdout.strip() == ""


def test_tiers_of_the_kernel(service: Service, machine: str) -> None:
    """Each node is in a memory tier of its own, in the order of `ORDER`."""
    listing = service.guest.run(
        "cd /sys/devices/virtual/memory_tiering && for t in memory_tier*; do"
        " echo ${t#memory_tier} $(cat $t/nodelist); done"
    ).stdout
    pairs = sorted((int(number), nodes) for number, nodes in map(str.split, listing.splitlines()))
    assert [nodes for _, nodes in pairs] == [str(nodes[0]) for nodes in ORDER[machine]]


def test_probe_ranks_the_tiers_and_says_why(service: Service, machine: str) -> None:
    service.policy(POLICY)
    document = json.loads(service.guest.run("tierd probe --json").stdout)
    tiers = document["tiers"]
    assert [tier["nodes"] for tier in tiers] == ORDER[machine]
    assert not document["problem"]
    why = [tier["why"] for tier in tiers]
    if machine == "B":  # no HMAT of latencies: the kernel's tiers are all there is
        assert all("memory tier" in text for text in why), why
    else:
        assert "100 ns" in why[0]
        assert "150 ns" in why[1]
        assert "no latency" in why[2]


def test_hot_pages_come_from_every_slower_tier(service: Service, machine: str) -> None:
    """What is hot comes to node 0, from the RAM node and from the device; contents stay."""
    service.policy(POLICY)
    slower = [nodes[0] for nodes in ORDER[machine][1:]]
    running: dict[int, Load] = {}
    for node in slower:
        load = running[node] = loads.start(service.guest, f"load-{node}", 12, 4)
        load.migrate(0, node)
        assert load.share(node) > 0.99, load.placement()

    service.start()
    for node, load in running.items():
        wait(
            partial(_hot_is_on, load, 0),
            600,
            f"the hot pages on node {node} did not come to node 0",
            every=2,
        )
    scrape = service.scrape()
    for node, load in running.items():
        assert load.passes() > 0, node
        load.stop()
    hot_pages = len(slower) * 4 * MIB // 4096
    assert scrape.total("tierd_promoted_pages_total") >= 0.9 * hot_pages
    service.stop()


def _hot_is_on(load: Load, node: int) -> bool:
    return load.share(node, hot=True) > 0.9
