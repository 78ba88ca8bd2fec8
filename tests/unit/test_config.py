# SPDX-License-Identifier: Apache-2.0
"""The policy file: YAML traps, units, drop-ins, and errors that name their line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tierd import config
from tierd.config import ConfigError, Loaded, Mode, Use, load, search
from tierd.config.document import MAX_BYTES, parse

MINIMAL = "version: 1\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def errors(tmp_path: Path, text: str) -> list[str]:
    """The lines of the error that `text` must cause, without the directory."""
    with pytest.raises(ConfigError) as caught:
        load([write(tmp_path / "tierd.yaml", text)])
    return [line.removeprefix(f"{tmp_path}/") for line in str(caught.value).splitlines()]


def loaded(tmp_path: Path, text: str) -> Loaded:
    return load([write(tmp_path / "tierd.yaml", text)])


def test_the_policy_of_the_design(tmp_path: Path) -> None:
    policy = """\
version: 1
mode: tier
tiers:                        # default: from the kernel's memory tiers
  - {name: dram, nodes: [0]}
  - {name: cxl, nodes: [1]}
sampling:
  sources: {page_idle: auto, damon: auto, perf: auto, device: off}   # auto | required | off
  cpu: 3%                     # of one core, kernel time included
migration:
  movers: {move_phys_pages: auto, move_pages: auto}
  promote: 200MiB/s
  demote: 200MiB/s
  headroom: {low: 2%, high: 4%}
  respect_mempolicy: true
classes:                      # first match wins; paths are cgroup globs
  - {match: system.slice/postgresql*, floor: 4GiB, weight: 400}
  - {match: kubepods.slice/*besteffort*, cap: 1GiB}
  - {match: machine.slice/*, never: [demote]}
metrics: {listen: "127.0.0.1:9709"}
"""
    got = loaded(tmp_path, policy).config
    assert got.mode is Mode.TIER
    assert got.tiers is not None
    assert [tier.nodes for tier in got.tiers] == [(0,), (1,)]
    assert got.sampling.sources.device is Use.OFF
    assert got.sampling.cpu == pytest.approx(0.03)
    assert got.migration.promote == 200 * 2**20
    assert got.classes[0].floor == 4 * 2**30
    assert got.classes[2].never == ("demote",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mode: teir", "2: mode: 'teir' is not known here; expected observe or tier"),
        ("sampling: {windw: {}}", "2: sampling.windw: unknown key; did you mean window?"),
        ("headroom: {low: 1%}", "2: headroom: unknown key; did you mean migration.headroom?"),
        (
            "metrics: {zzz: 1}",
            "2: metrics.zzz: unknown key; known here: listen",
        ),
        (
            "migration:\n  promote: 200MB/s",
            "3: migration.promote: '200MB/s' is not valid here; expected a rate with its unit,"
            " such as 200MiB/s",
        ),
        (
            "interval: 1",
            "2: interval: 1 is not valid here; expected a duration with its unit, such as 1s,"
            " 200ms or 5min",
        ),
        (
            "sampling: {cpu: 0.03}",
            "2: sampling.cpu: 0.03 is not valid here; expected a share in percent, such as 3%",
        ),
        ("mode: tier\nmode: tier", "3: mode: given twice, first in line 2; expected each key once"),
        (
            "migration: {precheck: off}",
            "2: migration.precheck: 'off' is not true or false; expected true or false",
        ),
        (
            "sampling: {threads: 010}",
            "2: sampling.threads: '010' is not a whole number; expected a decimal number without"
            " quotes or leading zeros, such as 1",
        ),
        ("sampling: {threads: 17}", "2: sampling.threads: 17 is out of range; expected at most 16"),
        ("classes: {a: b}", "2: classes: a mapping is not a list; expected a list, such as [...]"),
        ("classes: [5]", "2: classes[0]: 5 is not a mapping; expected key: value lines"),
        ("tiers: []", "2: tiers: has too few entries; expected at least 2"),
        ("tiers: [{name: a, nodes: [0]}]", "2: tiers: has too few entries; expected at least 2"),
        (
            "tiers: [{name: a, nodes: [0], target: false}, {name: b, nodes: [1], target: false}]",
            "2: tiers: no tier is a target; expected one at least without target: false",
        ),
        (
            "tiers:\n  - {name: a, nodes: [0, -1]}\n  - {name: b, nodes: [1]}",
            "3: tiers[0].nodes[1]: -1 is out of range; expected at least 0",
        ),
        (
            "tiers:\n  - {name: a, nodes: [0]}\n  - {name: b, nodes: [0]}",
            "4: tiers[1].nodes[0]: node 0 is given twice; expected each node in one tier",
        ),
        (
            "migration:\n  headroom:\n    low: 4%\n    high: 4%",
            "4: migration.headroom.low: not below high; expected less than 4%",
        ),
        (
            "sampling: {window: {min: 40s}}",
            "2: sampling.window.min: not below max; expected less than 30s",
        ),
        (
            "classes:\n  - match: a\n    floor: 2GiB\n    cap: 1GiB",
            "4: classes[0].floor: above cap; expected at most 1GiB",
        ),
        ("classes: [{match: /a}]", "2: classes[0].match: starts with /; expected a path relative"),
        ("interval: 0s", "2: interval: out of range; expected from 50ms to 1h"),
        ("metrics: {listen: 9709}", "2: metrics.listen: 9709 is not text; expected text"),
        ("metrics: {listen: localhost}", "2: metrics.listen: 'localhost' is no address; expected"),
        (
            "mode: tier\nmigration: {movers: {move_phys_pages: off, move_pages: off}}",
            "3: migration.movers: mode is tier and all movers are off; expected at least one",
        ),
        (
            "migration: {precheck: false, movers: {move_phys_pages: off}}",
            "2: migration.precheck: nothing else checks the pages that move_pages moves; expected",
        ),
        (
            "sampling: {sources: {page_idle: off, damon: off, perf: off}}",
            "2: sampling.sources: all sources are off; expected at least one",
        ),
        ("mode: [", "3: not YAML: "),
        ("mode: !!python/name:os.system x", "2: mode: the tag tag:yaml.org,2002:python/name"),
        ("<<: {mode: tier}", "2: <<: unknown key; known here: version, mode"),
        ("a: &a [*a]", "2: a: nested too deeply"),
    ],
)
def test_one_line_with_place_and_remedy(tmp_path: Path, text: str, expected: str) -> None:
    lines = errors(tmp_path, MINIMAL + text + "\n")
    assert len(lines) == 1
    assert lines[0].startswith(f"tierd.yaml:{expected}")
    assert "; " in lines[0]


@pytest.mark.parametrize(
    ("folios", "expected"),
    [
        ("{24KiB: 50%}", ".24KiB: not the size of a folio; expected a power of two from 8KiB to"),
        ("{4KiB: 50%}", ".4KiB: not the size of a folio; expected a power of two from 8KiB to"),
        ("{4MiB: 50%}", ".4MiB: not the size of a folio; expected a power of two from 8KiB to"),
        ("{64: 50%}", ".64: '64' is not valid here; expected a size with its unit, such as"),
        ("{64KiB: 50}", ".64KiB: 50 is not valid here; expected a share in percent, such as 3%"),
        ("{64KiB: 101%}", ".64KiB: '101%' is not valid here; expected a share of at most 100%"),
        ("{64KiB: 60%, 65536B: 1%}", ".65536B: 64KiB is given twice; expected each size once"),
        ("{64KiB: 60%, 2MiB: 50%}", ": more than all of the memory; expected at most 100% in all"),
        ("[64KiB]", ": not a mapping; expected a share for each size, such as {64KiB: 50%"),
    ],
)
def test_folios_are_told_what_is_wrong_with_them(
    tmp_path: Path, folios: str, expected: str
) -> None:
    machine = "simulation:\n  nodes: [{id: 0, size: 1GiB}]\n  workloads:\n"
    load = f"    - kind: zipf\n      size: 1GiB\n      folios: {folios}\n"
    [line] = errors(tmp_path, MINIMAL + machine + load)
    assert line.startswith(f"tierd.yaml:7: simulation.workloads[0].folios{expected}")


def test_all_errors_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "version: 2\nmetrics: {listen: x}\nmode: a\nmode: b\ninterval: 1\n"
    lines = errors(tmp_path, text)
    assert [line.split(":")[1:3] for line in lines] == [
        ["1", " version"],
        ["2", " metrics.listen"],
        ["3", " mode"],
        ["4", " mode"],
        ["5", " interval"],
    ]


def test_a_missing_version_and_odd_files(tmp_path: Path) -> None:
    assert errors(tmp_path, "mode: tier\n") == ["tierd.yaml:1: version: missing; write version: 1"]
    assert errors(tmp_path, "") == ["tierd.yaml:1: version: missing; write version: 1"]
    assert "a list at the top of the file" in errors(tmp_path, "- a\n")[0]
    assert "too large" in errors(tmp_path, "#" * (MAX_BYTES + 1))[0]
    assert errors(tmp_path, "version: 1\n--- \nversion: 1\n")[0].startswith(
        "tierd.yaml:2: not YAML"
    )
    (tmp_path / "latin").write_bytes(b"version: 1\n# \xe9\n")
    with pytest.raises(ConfigError, match="latin:2: not UTF-8 text; save it as UTF-8"):
        load([tmp_path / "latin"])


def test_aliases_cannot_blow_up() -> None:
    bomb = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
        f"{new}: &{new} [*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old},*{old}]\n"
        for old, new in zip("abcdefgh", "bcdefghi", strict=True)
    )
    document = parse(bomb.encode(), "bomb")
    assert document.broken
    assert len(document.problems) == 1


def test_unreadable_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load([tmp_path / "absent.yaml"])
    assert str(caught.value) == (
        f"{tmp_path}/absent.yaml: cannot be read: No such file or directory;"
        " the user that runs tierd must be able to read it"
    )
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load([tmp_path])


def test_without_a_file_it_observes() -> None:
    got = load([])
    assert got.config.mode is Mode.OBSERVE
    assert got.source == "built-in defaults"


@pytest.fixture
def directories(tmp_path: Path) -> tuple[Path, Path, Path]:
    return tmp_path / "etc", tmp_path / "run", tmp_path / "lib"


def test_drop_ins_by_systemds_rule(directories: tuple[Path, Path, Path]) -> None:
    etc, run, lib = directories
    write(lib / "tierd.yaml", "version: 1\nmode: observe\n")
    write(etc / "tierd.yaml", "version: 1\nmode: tier\nclasses: [{match: a}, {match: b}]\n")
    write(lib / "tierd.d/10-vendor.yaml", "interval: 9s\nmigration: {promote: 1MiB/s}\n")
    write(lib / "tierd.d/20-masked.yaml", "interval: 8s\n")
    write(run / "tierd.d/20-masked.yaml", "interval: 7s\n")
    write(lib / "tierd.d/30-gone.yaml", "interval: 6s\n")
    write(run / "tierd.d/05-early.yaml", "migration: {promote: 5MiB/s, demote: 5MiB/s}\n")
    write(etc / "tierd.d/60-admin.yaml", "classes: [{match: c}]\n")
    write(etc / "tierd.d/README", "not yaml: [")
    (etc / "tierd.d/30-gone.yaml").symlink_to("/dev/null")

    found = search(directories)
    assert [path.name for path in found] == [
        "tierd.yaml",
        "05-early.yaml",
        "10-vendor.yaml",
        "20-masked.yaml",
        "60-admin.yaml",
    ]
    got = load(found)
    assert got.config.mode is Mode.TIER
    assert got.config.interval == 7
    assert got.config.migration.promote == 2**20
    assert got.config.migration.demote == 5 * 2**20
    assert [each.match for each in got.config.classes] == ["c"]
    place = got.problem(("migration", "promote"), "x", "y")
    assert (Path(place.file).name, place.line) == ("10-vendor.yaml", 2)
    place = got.problem(("classes", 0, "match"), "x", "y")
    assert Path(place.file).name == "60-admin.yaml"


def test_an_error_of_a_drop_in_names_the_drop_in(directories: tuple[Path, Path, Path]) -> None:
    etc, run, _ = directories
    write(etc / "tierd.yaml", "version: 1\nmigration: {headroom: {low: 2%, high: 4%}}\n")
    write(run / "tierd.d/50-x.yaml", "\n\nmigration: {headroom: {low: 9%}}\n")
    with pytest.raises(ConfigError) as caught:
        load(search(directories))
    assert str(caught.value).startswith(f"{run}/tierd.d/50-x.yaml:3: migration.headroom.low:")


def test_a_main_file_can_be_masked_and_drop_ins_stand_alone(
    directories: tuple[Path, Path, Path],
) -> None:
    etc, _, lib = directories
    write(lib / "tierd.yaml", MINIMAL)
    etc.mkdir()
    (etc / "tierd.yaml").symlink_to("/dev/null")
    assert search(directories) == ()
    write(etc / "tierd.d/50-x.yaml", "version: 1\nmode: tier\n")
    assert load(search(directories)).config.mode is Mode.TIER


def test_nodes_that_do_not_exist_are_placed(tmp_path: Path) -> None:
    text = "version: 1\ntiers:\n- {name: a, nodes: [0]}\n- name: b\n  nodes:\n  - 1\n  - 7\n"
    problems = loaded(tmp_path, text).node_problems([0, 1])
    assert [str(each) for each in problems] == [
        f"{tmp_path}/tierd.yaml:7: tiers[1].nodes[1]: node 7 does not exist here or has no memory;"
        " nodes with memory: 0, 1"
    ]


def test_print_loads_to_the_same_policy(tmp_path: Path) -> None:
    text = """\
version: 1
tiers: [{name: a, nodes: [0, 2], target: false}, {name: b, nodes: [1]}]
interval: 1500ms
sampling: {sources: {device: off}, cpu: 2.5%}
classes: [{match: "a*", floor: 1536MiB, never: [promote, demote]}]
metrics: {listen: null}
simulation:
  nodes: [{id: 0, size: 1GiB, latency: 90ms}]
  workloads: [{kind: zipf, size: 1GiB, folios: {2MiB: 12.5%, 64KiB: 50%}}]
"""
    first = loaded(tmp_path, text)
    shown = config.show(first)
    assert "never: [promote, demote]" in shown
    assert "# tierd.yaml:3" in shown
    assert "folios: {64KiB: 50%, 2MiB: 12.5%}" in shown
    assert "# default" in shown
    assert loaded(tmp_path, shown).config == first.config


def test_schema_is_in_step() -> None:
    committed = Path(__file__).parents[2] / "config" / "tierd.schema.json"
    assert committed.read_text() == config.schema_text(), (
        "run: tierd schema > config/tierd.schema.json"
    )


def test_schema_says_what_the_models_say() -> None:
    schema: dict[str, Any] = json.loads(config.schema_text())
    text = json.dumps(schema)
    assert "$defs" not in text
    assert "prefixItems" not in text
    assert schema["definitions"]["Use"]["enum"] == ["auto", "required", "off"]
    assert schema["additionalProperties"] is False
    for name, model in schema["definitions"].items():
        for key, value in model.get("properties", {}).items():
            assert value.get("description"), f"{name}.{key} is not described"


sizes = st.integers(min_value=0, max_value=2**50)


@given(sizes)
def test_sizes_and_rates_round_trip(value: int) -> None:
    assert config.parse_size(config.format_size(value)) == value
    assert config.parse_rate(config.format_rate(value)) == value


@given(st.integers(min_value=1, max_value=10**7))
def test_durations_round_trip(value: int) -> None:
    seconds = value / 1000
    assert config.parse_duration(config.format_duration(seconds)) == pytest.approx(
        seconds, rel=1e-5
    )


@given(st.binary(max_size=200))
def test_no_bytes_make_the_parser_raise(raw: bytes) -> None:
    document = parse(raw, "x")
    assert document.problems or not document.broken


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:9709", ("127.0.0.1", 9709)),
        ("[::1]:0", ("::1", 0)),
        ("::1:9709", None),
        (":9709", None),
        ("a:70000", None),
        ("a:٣", None),
    ],
)
def test_listen(text: str, expected: tuple[str, int] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="expected"):
            config.parse_listen(text)
    else:
        assert config.parse_listen(text) == expected


@pytest.mark.parametrize("digits", ["9" * 8, "9" * 400])
def test_a_size_that_no_machine_has_is_an_error_in_one_line(tmp_path: Path, digits: str) -> None:
    """Nothing past the parser has to count in more than 64 bits."""
    text = f"version: 1\nclasses:\n  - {{match: a, cap: {digits}TiB}}\n"
    (line,) = errors(tmp_path, text)
    assert line.startswith("tierd.yaml:3: classes[0].cap: ")
    assert line.endswith("expected at most 1048576TiB")
    (line,) = errors(tmp_path, f"version: 1\nmigration:\n  demote: {digits}TiB/s\n")
    assert line.startswith("tierd.yaml:3: migration.demote: ")
    assert line.endswith("expected at most 1048576TiB/s")
