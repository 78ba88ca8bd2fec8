# SPDX-License-Identifier: Apache-2.0
"""Record on a real kernel, and replay: by hand, and by the daemon at work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from guest import loads, tiering
from guest.loads import MIB
from guest.service import Service
from rig import Guest

pytestmark = [pytest.mark.guest, pytest.mark.timeout(1500)]

POLICY = tiering.POLICY + "classes:\n  - {match: system.slice/load-hot.service}\n"
HOT = 48
CYCLES = 30
"""Of a recording: on a slow host the first ones see little."""


@pytest.fixture
def service(guest: Guest) -> Iterator[Service]:
    loads.install(guest)
    found = Service(guest)
    found.stop()
    found.policy(POLICY)
    yield found
    found.systemctl("stop", check=False)
    guest.run("systemctl stop 'load-*.service'", timeout=120, check=False)


def replayed(guest: Guest, path: str) -> dict[str, Any]:
    """What a user without privileges is told about a copy of the trace."""
    for source, copy in ((path, "trace"), ("/etc/tierd/tierd.yaml", "yaml")):
        guest.run(f"install -o nobody -m 600 {source} /tmp/copy.{copy}", check=True)
    command = "tierd replay /tmp/copy.trace --config /tmp/copy.yaml --json"
    whole = f"setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all {command}"
    document: dict[str, Any] = json.loads(guest.run(whole, timeout=300, check=True).stdout)
    return document


def test_what_is_recorded_by_hand_foretells_what_tierd_does(guest: Guest, service: Service) -> None:
    load = loads.start(guest, "load-hot", 200, HOT)
    load.migrate(0, 1)
    command = f"tierd record --cycles {CYCLES} --out /root/hand.trace"
    done = guest.run(command, timeout=300, check=True)
    print(done.stdout)
    assert guest.run("stat -c '%a %U' /root/hand.trace", check=True).stdout.split() == [
        "600",
        "root",
    ]
    assert load.share(1, hot=True) > 0.99, "a recording moved pages"

    document = replayed(guest, "/root/hand.trace")
    (told,) = document["policies"]
    print({key: told[key] for key in ("hit_ratio", "recorded_hit_ratio", "promoted", "demoted")})
    print(document["trace"], told["resident"])
    assert document["trace"]["complete"]
    assert document["trace"]["cycles"] == CYCLES
    # One cycle says little, it looks at a part of the memory; what moved is judged below.
    assert told["hit_ratio"]["mean"] > told["recorded_hit_ratio"]["mean"]
    assert told["promoted"] >= 0.8 * HOT * MIB
    mine = "system.slice/load-hot.service"
    assert told["resident"]["dram"][mine] >= 0.8 * HOT * MIB
    seen = told["resident"]["dram"][mine] + told["resident"]["cxl"][mine]
    assert 0.7 * 200 * MIB < seen < 1.2 * 200 * MIB


def test_the_daemon_records_while_it_works_and_nobody_beside_it(
    guest: Guest, service: Service
) -> None:
    load = loads.start(guest, "load-hot", 200, HOT)
    load.migrate(0, 1)
    service.policy(POLICY + "trace: {directory: /var/lib/tierd}\n")
    service.start()
    refused = guest.run("tierd record --cycles 1 --out /root/no.trace", timeout=60, check=False)
    assert refused.returncode == 1
    assert "tierd is running already" in refused.stderr
    assert "set trace.directory in its policy" in refused.stderr
    assert service.status()["mode"] == "tier"
    service.wait_cycles(12)
    service.policy(POLICY)
    service.systemctl("reload")
    service.wait_cycles(2)
    (path,) = guest.run("ls /var/lib/tierd/*.trace", check=True).stdout.split()
    assert guest.run(f"stat -c %a {path}", check=True).stdout.strip() == "600"
    assert load.share(0, hot=True) > 0.9

    document = replayed(guest, path)
    (told,) = document["policies"]
    print({key: told[key] for key in ("hit_ratio", "recorded_hit_ratio", "promoted", "demoted")})
    assert document["trace"]["complete"]
    assert document["trace"]["cycles"] >= 10
    # The daemon moved them itself: the recording shows them where they came to be.
    assert told["recorded_hit_ratio"]["last"] > told["series"][1]["recorded_hit_ratio"]
