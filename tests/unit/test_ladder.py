# SPDX-License-Identifier: Apache-2.0
"""Which rungs are taken, and what is said of the others."""

import pytest

from tierd.config import Config, Mode
from tierd.host import Capability, CapabilitySet, Feature
from tierd.ladder import Ladder, RequiredMissing, choose


def kernel(*missing: Feature) -> CapabilitySet:
    return CapabilitySet(
        tuple(
            Capability(name, name not in missing, f"{name} is missing" if name in missing else "ok")
            for name in Feature
        )
    )


def policy(mode: str = "tier", **keys: str) -> Config:
    sources = {k: v for k, v in keys.items() if k in ("page_idle", "damon", "perf", "device")}
    movers = {k: v for k, v in keys.items() if k in ("move_phys_pages", "move_pages")}
    return Config.model_validate(
        {
            "version": 1,
            "mode": mode,
            "sampling": {"sources": sources},
            "migration": {"movers": movers},
        }
    )


def reason(ladder: Ladder, kind: str, name: str) -> str:
    (found,) = [rung for rung in ladder.rungs if (rung.kind, rung.name) == (kind, name)]
    assert not found.chosen
    return found.reason


def test_a_full_kernel_gives_the_best_rungs() -> None:
    ladder = choose(kernel(), policy())
    assert ladder.samplers == ("page_idle",)
    assert ladder.mover == "move_phys_pages"
    assert ladder.degraded == ()
    assert reason(ladder, "cold", "damon") == "not built into this version"
    assert all(rung.reason for rung in ladder.rungs)
    kinds = [(rung.kind, rung.name) for rung in ladder.rungs]
    assert len(kinds) == len(set(kinds)) == 8


def test_a_missing_feature_gives_its_own_reason_and_not_that_of_the_version() -> None:
    ladder = choose(kernel(Feature.DAMON, Feature.MOVE_PHYS_PAGES), policy())
    assert reason(ladder, "cold", "damon") == "damon is missing"
    assert reason(ladder, "mover", "move_phys_pages") == "move_phys_pages is missing"
    assert ladder.mover is None
    assert len(ladder.degraded) == 1
    assert "observing only" in ladder.degraded[0]


def test_nothing_is_degraded_when_the_policy_only_observes() -> None:
    assert choose(kernel(Feature.MOVE_PHYS_PAGES), policy(mode=Mode.OBSERVE)).degraded == ()


def test_without_page_flags_huge_pages_cannot_be_folded() -> None:
    ladder = choose(kernel(Feature.KPAGEFLAGS), policy())
    assert ladder.samplers == ()
    assert "needs kpageflags" in reason(ladder, "hot", "page_idle")
    assert len(ladder.degraded) == 3


def test_what_is_off_stays_off() -> None:
    ladder = choose(kernel(), policy(page_idle="off", move_phys_pages="off"))
    assert reason(ladder, "hot", "page_idle") == "switched off in the policy"
    assert ladder.samplers == ()
    assert ladder.mover is None


@pytest.mark.parametrize(
    ("missing", "keys", "name"),
    [
        ((Feature.PAGE_IDLE,), {"page_idle": "required"}, "page_idle"),
        ((Feature.MOVE_PHYS_PAGES,), {"move_phys_pages": "required"}, "move_phys_pages"),
        ((), {"damon": "required"}, "damon"),
        ((), {"move_pages": "required"}, "move_pages"),
        ((Feature.PERF,), {"perf": "required"}, "perf"),
    ],
)
def test_required_and_missing_is_an_error(
    missing: tuple[Feature, ...], keys: dict[str, str], name: str
) -> None:
    with pytest.raises(RequiredMissing) as caught:
        choose(kernel(*missing), policy(**keys))
    assert caught.value.name == name
    assert caught.value.reason in (f"{name} is missing", "not built into this version")


def test_required_and_there_is_taken() -> None:
    ladder = choose(kernel(), policy(page_idle="required", move_phys_pages="required"))
    assert ladder.samplers == ("page_idle",)
    assert {r.reason for r in ladder.rungs if r.chosen} == {"required by the policy"}
