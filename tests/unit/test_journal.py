# SPDX-License-Identifier: Apache-2.0
"""Journal records over a real datagram socket that stands in for journald's."""

from __future__ import annotations

import array
import io
import logging
import os
import re
import socket
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tierd import journal
from tierd.journal import Event, JournalHandler, NativeTransport, StderrHandler, encode
from unit.journald import decode


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "journal"))
        listener.settimeout(5)
        yield listener


@pytest.fixture
def native(journald: socket.socket) -> Iterator[NativeTransport]:
    transport = NativeTransport(Path(journald.getsockname()))
    yield transport
    transport.close()


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The package's logger, as it was afterwards."""
    log = logging.getLogger(journal.ROOT)
    before = log.handlers[:], log.level, log.propagate
    yield log
    log.handlers[:], log.level, log.propagate = before


def test_ids_are_unique_journal_ids() -> None:
    assert all(re.fullmatch("[0-9a-f]{32}", event.value) for event in Event)
    assert len({event.value for event in Event}) == len(Event)


def test_a_record_carries_its_fields(
    journald: socket.socket, native: NativeTransport, logger: logging.Logger
) -> None:
    journal.install(JournalHandler(native))
    journal.record(
        Event.CONFIG_REJECTED, logging.ERROR, "line %d\nis wrong", 7, file="/etc/x", line=7
    )
    fields = decode(journald.recv(65536))
    assert fields["MESSAGE"] == "line 7\nis wrong"
    assert fields["MESSAGE_ID"] == Event.CONFIG_REJECTED.value
    assert fields["PRIORITY"] == "3"
    assert fields["SYSLOG_IDENTIFIER"] == "tierd"
    assert fields["TIERD_FILE"] == "/etc/x"
    assert fields["TIERD_LINE"] == "7"
    assert fields["CODE_FILE"] == __file__
    assert fields["CODE_FUNC"] == "test_a_record_carries_its_fields"
    allowed = re.compile("MESSAGE|MESSAGE_ID|PRIORITY|SYSLOG_IDENTIFIER|CODE_.*|TIERD_.*")
    assert all(allowed.fullmatch(name) for name in fields)


def test_large_records_go_in_a_sealed_file(
    journald: socket.socket, native: NativeTransport
) -> None:
    text = "x" * 2_000_000
    native.send([("MESSAGE", text)])
    handles = array.array("i")
    _, ancillary, _, _ = journald.recvmsg(65536, socket.CMSG_LEN(handles.itemsize))
    handles.frombytes(ancillary[0][2])
    with open(handles[0], "rb") as file:
        file.seek(0)  # the offset is shared with the sender; journald maps the file
        assert decode(file.read()) == {"MESSAGE": text}


def test_any_text_survives() -> None:
    value = "a=b\n\x00\u20ac \udcff"
    assert decode(encode([("MESSAGE", value), ("TIERD_X", "")])) == {
        "MESSAGE": value.encode("utf-8", "backslashreplace").decode(),
        "TIERD_X": "",
    }
    with pytest.raises(ValueError, match="not a journal field name"):
        encode([("_TRUSTED", "x")])


def test_without_a_journald_the_line_is_not_lost(
    tmp_path: Path, logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    transport = NativeTransport(tmp_path / "nobody")
    journal.install(JournalHandler(transport))
    logger.warning("still here")
    transport.close()
    assert capsys.readouterr().err == "<4>still here\n"


class _Recording:
    def __init__(self) -> None:
        self.sent: list[dict[str, str]] = []

    def send(self, fields: Sequence[tuple[str, str]]) -> None:
        self.sent.append(dict(fields))


def test_exceptions_are_part_of_the_message(logger: logging.Logger) -> None:
    recording = _Recording()
    journal.install(JournalHandler(recording))
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("cannot go on")
    assert recording.sent[0]["MESSAGE"].startswith("cannot go on\nTraceback")
    assert recording.sent[0]["MESSAGE"].endswith("KeyError: 'gone'")


def test_lines_for_terminals_and_for_pipes() -> None:
    entry = logging.LogRecord("tierd", logging.INFO, "f", 1, "two\nlines", (), None)
    for prefix, expected in ((True, "<6>two\n<6>lines\n"), (False, "tierd: two\ntierd: lines\n")):
        stream = io.StringIO()
        StderrHandler(prefix, stream).emit(entry)
        assert stream.getvalue() == expected


def test_the_way_is_chosen_by_what_is_there(tmp_path: Path) -> None:
    with (tmp_path / "err").open("w") as file:
        stat = os.fstat(file.fileno())
        stream = {"JOURNAL_STREAM": f"{stat.st_dev}:{stat.st_ino}"}
        assert journal.under_journald(stream, file.fileno())
        assert not journal.under_journald({"JOURNAL_STREAM": "1:2"}, file.fileno())
        assert not journal.under_journald({"JOURNAL_STREAM": "nonsense"}, file.fileno())
        assert not journal.under_journald({}, file.fileno())
    assert isinstance(journal.choose({}), StderrHandler)
    assert isinstance(journal.choose({"TIERD_JOURNAL": "stderr"}), StderrHandler)
    chosen = journal.choose({"TIERD_JOURNAL": "native"}, tmp_path / "journal")
    assert isinstance(chosen, JournalHandler)
    assert isinstance(chosen.transport, NativeTransport)
    chosen.transport.close()


def test_systemd_python_gets_whole_fields(
    monkeypatch: pytest.MonkeyPatch, logger: logging.Logger
) -> None:
    """Its sendv takes NAME=value, newlines and all; its send() would want CODE_LINE as a number."""
    sent: list[tuple[bytes, ...]] = []
    module = types.ModuleType("systemd.journal")
    module.sendv = lambda *fields: sent.append(fields)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "systemd", types.ModuleType("systemd"))
    monkeypatch.setitem(sys.modules, "systemd.journal", module)
    handler = journal.choose({"TIERD_JOURNAL": "systemd"})
    journal.install(handler)
    journal.record(Event.STOPPED, logging.INFO, "two\nlines", cycles=7)
    (fields,) = sent
    assert fields[0] == b"MESSAGE=two\nlines"
    assert f"MESSAGE_ID={Event.STOPPED.value}".encode() in fields
    assert b"TIERD_CYCLES=7" in fields
