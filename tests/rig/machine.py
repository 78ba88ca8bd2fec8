# SPDX-License-Identifier: Apache-2.0
"""The machines that a guest can run on, as QEMU options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    name: str
    about: str
    nodes: int
    """Memory nodes once the guest is up."""
    options: tuple[str, ...]
    """Only what makes the machine; disk, console and command channel are everyone's. Other PCI
    devices must name pcie.0 as their bus, or QEMU plugs them into a CXL bridge."""
    slowness: float = 1.0
    """How many times longer than on machine A things may take."""

    @property
    def cxl(self) -> bool:
        """It has a CXL Type 3 device, from whose memory no other device can read."""
        return any("cxl-type3" in option for option in self.options)


def _ram_nodes(latency: int, bandwidth: str, dram: str = "1G") -> tuple[str, ...]:
    """DRAM with the CPUs, and 1 GiB that the HMAT calls slower.

    Without the HMAT both would be one memory tier and neither a demotion target."""
    locality = "hmat-lb,initiator=0,hierarchy=memory"
    return (
        f"-object memory-backend-ram,id=m0,size={dram}",
        "-object memory-backend-ram,id=m1,size=1G",
        "-numa node,nodeid=0,memdev=m0,cpus=0-1",
        "-numa node,nodeid=1,memdev=m1,initiator=0",
        f"-numa {locality},target=0,data-type=access-latency,latency=100",
        f"-numa {locality},target=1,data-type=access-latency,latency={latency}",
        f"-numa {locality},target=0,data-type=access-bandwidth,bandwidth=100G",
        f"-numa {locality},target=1,data-type=access-bandwidth,bandwidth={bandwidth}",
    )


_CXL_DEVICE = (
    "-object memory-backend-ram,id=vmem0,share=on,size=512M",
    "-device pxb-cxl,bus_nr=12,bus=pcie.0,id=cxl.1",
    "-device cxl-rp,port=0,bus=cxl.1,id=rp13,chassis=0,slot=2",
    "-device cxl-type3,bus=rp13,volatile-memdev=vmem0,id=cxl-vmem0,sn=1",
    "-M cxl-fmw.0.targets.0=cxl.1,cxl-fmw.0.size=4G",
)

MACHINES: Mapping[str, Machine] = {
    machine.name: machine
    for machine in (
        Machine(
            name="A",
            about="two RAM nodes, node 1 slower by the HMAT",
            nodes=2,
            options=("-M q35,hmat=on", "-smp 2", "-m 2G", *_ram_nodes(300, "20G")),
        ),
        Machine(
            name="B",
            about="DRAM and a CXL Type 3 device, which is slow indeed",
            nodes=2,
            options=(
                "-M q35,cxl=on,hmat=on",
                "-smp 2",
                "-m 1G,maxmem=8G,slots=4",
                "-object memory-backend-ram,id=m0,size=1G",
                "-numa node,nodeid=0,memdev=m0,cpus=0-1",
                *_CXL_DEVICE,
            ),
            slowness=4.0,
        ),
        Machine(
            name="C",
            about="three tiers: two RAM nodes and a CXL Type 3 device",
            nodes=3,
            options=(
                "-M q35,cxl=on,hmat=on",
                "-smp 2",
                "-m 2G,maxmem=8G,slots=4",
                # With machine A's numbers the device's own table would rank it above node 1.
                *_ram_nodes(150, "50G"),
                *_CXL_DEVICE,
            ),
            slowness=4.0,
        ),
        Machine(
            name="D",
            about="as A with 2 GiB of DRAM, for thousands of processes on the debug kernel",
            nodes=2,
            options=("-M q35,hmat=on", "-smp 2", "-m 3G", *_ram_nodes(300, "20G", "2G")),
        ),
    )
}
