# SPDX-License-Identifier: Apache-2.0
"""A guest: QEMU from the cached root, its console in a file, commands over a virtio port."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from rig.artefacts import FLAVOURS, Artefacts, Unavailable
from rig.machine import MACHINES, Machine
from rig.wire import CHUNK, PORT, WINDOW, Decoder, Frame, Kind, encode

T = TypeVar("T")

SILENCE = 90.0
"""Seconds without a word from console and agent after which a guest counts as hung."""

_PING_EVERY = 5.0
_TAIL = 60

_COMPLAINT = re.compile(
    r"BUG: |WARNING: |KASAN: |Oops: |INFO: (?:task|rcu)|UBSAN: |Bad page|possible .* detected"
)
_PANIC = re.compile(r"Kernel panic - not syncing.*")


class GuestError(Exception):
    """Something became of the guest itself. Shows the end of its console."""

    def __init__(self, message: str, guest: Guest) -> None:
        tail = guest.console_tail()
        super().__init__(
            f"{message}\n--- the last lines of the console ({guest.console_path}) ---\n"
            f"{tail}\n--- end of the console ---"
        )
        self.message = message


class GuestPanicked(GuestError):
    """Its kernel panicked."""


class GuestDied(GuestError):
    """QEMU ended, without a panic on the console."""


class GuestHung(GuestError):
    """Neither its console nor its agent gives a sign of life."""


class CommandTimeout(GuestError):
    """A command took too long in a guest that is alive."""


class CommandFailed(Exception):
    """A command that was to succeed ended with another status."""

    def __init__(self, result: Result) -> None:
        super().__init__(
            f"{result.command!r} in the guest: status {result.returncode}\n"
            f"stdout: {result.stdout[-4000:]}\nstderr: {result.stderr[-4000:]}"
        )
        self.result = result


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a command; named like subprocess.CompletedProcess."""

    command: str
    returncode: int
    """As in subprocess: a negative one is the signal that ended it."""
    stdout_bytes: bytes
    stderr_bytes: bytes
    seconds: float

    @property
    def stdout(self) -> str:
        return self.stdout_bytes.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self.stderr_bytes.decode(errors="replace")


class Process:
    """A command that runs in the guest. As a context manager it is killed at the end."""

    def __init__(self, guest: Guest, channel: int, command: str) -> None:
        self._guest = guest
        self._channel = channel
        self.command = command
        self.pid = 0
        self._stdout = bytearray()
        self._stderr = bytearray()
        self._read = 0
        self._under_way = 0
        self._failure: str | None = None
        self._returncode: int | None = None
        self._start = self._end = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._returncode is None and self._guest.alive:
            self.kill()

    def poll(self) -> int | None:
        """The return code; None while it runs."""
        return self._returncode

    def wait(self, timeout: float = 60) -> Result:
        """Wait for its end. With a time-out it keeps running."""
        self._guest.await_(lambda: self._returncode is not None, timeout, repr(self.command))
        assert self._returncode is not None
        return Result(
            self.command,
            self._returncode,
            bytes(self._stdout),
            bytes(self._stderr),
            self._end - self._start,
        )

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to the command and what it started (its process group)."""
        self._guest.send(Kind.SIGNAL, self._channel, json.dumps(int(number)).encode())

    def write(self, data: bytes, timeout: float = 60) -> None:
        """Feed its stdin; returns when all of it is on its way."""
        for at in range(0, len(data), CHUNK):
            chunk = data[at : at + CHUNK]
            self._guest.await_(
                lambda: self._under_way < WINDOW or self._returncode is not None,
                timeout,
                f"{self.command!r} to read its stdin",
            )
            self._under_way += len(chunk)
            self._guest.send(Kind.STDIN, self._channel, chunk)

    def close_stdin(self) -> None:
        self._guest.send(Kind.STDIN_END, self._channel)

    @property
    def stdout(self) -> str:
        """All it has written so far."""
        return self._stdout.decode(errors="replace")

    @property
    def stderr(self) -> str:
        return self._stderr.decode(errors="replace")

    def readline(self, timeout: float = 60) -> str:
        """The next line of its stdout, without the newline; EOFError when it ended before."""
        self._guest.await_(
            lambda: self._returncode is not None or b"\n" in self._stdout[self._read :],
            timeout,
            f"a line from {self.command!r}",
        )
        end = self._stdout.find(b"\n", self._read)
        if end < 0:
            raise EOFError(
                f"{self.command!r} ended with status {self._returncode}: {self.stderr[-2000:]}"
            )
        line = bytes(self._stdout[self._read : end])
        self._read = end + 1
        return line.decode(errors="replace")

    def receive(self, frame: Frame) -> bool:
        """Take a frame from the agent; False when it was the channel's last."""
        match frame.kind:
            case Kind.STARTED:
                self.pid = json.loads(frame.payload)
            case Kind.FAILED:
                self._failure = frame.payload.decode()
            case Kind.STDOUT:
                self._stdout += frame.payload
                self._guest.heard(self, frame)
            case Kind.STDERR:
                self._stderr += frame.payload
                self._guest.heard(self, frame)
            case Kind.TAKEN:
                self._under_way -= json.loads(frame.payload)
            case Kind.EXIT:
                self._end = time.monotonic()
                self._returncode = json.loads(frame.payload)
        return frame.kind not in (Kind.FAILED, Kind.EXIT)

    def await_start(self) -> None:
        what = f"{self.command!r} to start"
        self._guest.await_(lambda: bool(self.pid or self._failure), 60, what)
        if self._failure is not None:
            raise FileNotFoundError(f"{self.command!r} in the guest: {self._failure}")


class Guest:
    """A freshly booted machine; what it writes to its disk is gone with it.

    Time-outs are multiplied by `patience`: the slowness of the kernel and the machine, and
    TIERD_PATIENCE for a host that is busy.
    """

    def __init__(
        self,
        artefacts: Artefacts,
        kernel: str = "release",
        machine: Machine = MACHINES["A"],
        *,
        append: str = "",
        console: Path | None = None,
        qemu_options: Sequence[str] = (),
    ) -> None:
        self.kernel = kernel
        self.machine = machine
        self.patience = (
            FLAVOURS[kernel] * machine.slowness * float(os.environ.get("TIERD_PATIENCE", "1"))
        )
        self.listener: Callable[[Process, Frame], None] | None = None
        """Called with every frame of output as it comes, in a thread of the guest's."""
        self._artefacts = artefacts
        self._append = append
        self._options = tuple(qemu_options)
        self._scratch = tempfile.TemporaryDirectory(prefix="tierd-guest-")
        self.console_path = console or Path(self._scratch.name, "console.log")
        self._changed = threading.Condition(threading.RLock())
        self._sending = threading.Lock()
        self._processes: dict[int, Process] = {}
        self._next_channel = 1
        self._release: str | None = None
        self._over = False
        self._console_size = 0
        self._silent = 0.0
        self._last_check = self._last_ping = time.monotonic()
        self._qemu: subprocess.Popen[bytes] | None = None
        self._lifeline = -1
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        try:
            self.boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # Its life.

    def boot(self) -> None:
        """Power on; returns when the system is up and takes commands."""
        mine, theirs = socket.socketpair()
        self._socket = mine
        self.console_path.write_bytes(b"")
        self._silent = 0.0
        self._qemu, self._lifeline = start_qemu(
            self._artefacts,
            self.kernel,
            self.machine,
            append=f"rig.agent {self._append}",
            options=(
                f"-serial file:{self.console_path}",
                "-device virtio-serial-pci,bus=pcie.0",
                f"-chardev socket,id=agent,fd={theirs.fileno()}",
                f"-device virtserialport,chardev=agent,name={PORT}",
                *self._options,
            ),
            passed=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        threading.Thread(target=self._listen, args=(mine,), daemon=True).start()
        self.await_(lambda: self._release is not None, 240, "the guest to come up")

    def close(self) -> None:
        """Pull the plug."""
        if self._lifeline >= 0:
            os.close(self._lifeline)
            self._lifeline = -1
        if self._qemu is not None:
            self._qemu.wait(30)
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
        self._over = True
        self._scratch.cleanup()

    @property
    def artefacts(self) -> Artefacts:
        """What it was made from."""
        return self._artefacts

    @property
    def alive(self) -> bool:
        return not self._over and self._release is not None

    @property
    def release(self) -> str:
        """The kernel's release."""
        assert self._release is not None
        return self._release

    # What tests do with it.

    def run(
        self,
        command: str | Sequence[str],
        *,
        stdin: str | bytes = b"",
        timeout: float = 60,
        check: bool = True,
        cwd: str = "/root",
        env: Mapping[str, str] | None = None,
    ) -> Result:
        """Run a command (a string goes to sh) and wait for it.

        A background process that it leaves behind must not keep its stdout or stderr."""
        with self.popen(command, cwd=cwd, env=env) as process:
            if stdin:
                process.write(stdin.encode() if isinstance(stdin, str) else stdin, timeout)
            process.close_stdin()
            result = process.wait(timeout)
        if check and result.returncode != 0:
            raise CommandFailed(result)
        return result

    def popen(
        self,
        command: str | Sequence[str],
        *,
        cwd: str = "/root",
        env: Mapping[str, str] | None = None,
    ) -> Process:
        """Start a command (a string goes to sh); any number may run at once."""
        argv = ["/bin/sh", "-c", command] if isinstance(command, str) else list(command)
        shown = command if isinstance(command, str) else shlex.join(command)
        with self._changed:
            channel = self._next_channel
            self._next_channel += 1
            process = self._processes[channel] = Process(self, channel, shown)
        request = {"argv": argv, "cwd": cwd, "env": dict(env or {})}
        self.send(Kind.SPAWN, channel, json.dumps(request).encode())
        process.await_start()
        return process

    def put(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Write a file, making the directories above it."""
        script = (
            'mkdir -p "${1%/*}/" && cat > "$1.part" && chmod "$2" "$1.part" && mv "$1.part" "$1"'
        )
        self.run(["/bin/sh", "-c", script, "put", path, f"{mode:o}"], stdin=data, timeout=120)

    def get(self, path: str) -> bytes:
        """Read a file."""
        return self.run(["cat", path], timeout=120).stdout_bytes

    def wait_until(
        self,
        condition: str | Callable[[], T],
        *,
        timeout: float = 120,
        interval: float = 0.2,
        what: str | None = None,
    ) -> T:
        """Poll until the command succeeds or the callable returns something true."""
        deadline = time.monotonic() + timeout * self.patience
        while True:
            if isinstance(condition, str):
                met = self.run(condition, check=False).returncode == 0
            else:
                met = condition()  # type: ignore[assignment]
            if met:
                return met  # type: ignore[return-value]
            if time.monotonic() > deadline:
                raise CommandTimeout(
                    f"after {timeout * self.patience:.0f} s still not: {what or condition}", self
                )
            time.sleep(interval)

    @contextlib.contextmanager
    def without_python_package(self, name: str) -> Iterator[None]:
        """Within, `import NAME` fails in the guest as where the package is not installed."""
        path = f"/usr/lib/python3/dist-packages/{name}"
        self.run(["mv", path, f"/var/tmp/{name}.hidden"])
        try:
            yield
        finally:
            if self.alive:
                self.run(["mv", f"/var/tmp/{name}.hidden", path])

    @property
    def console(self) -> str:
        try:
            text = self.console_path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return ""
        # Colours and cursor movements of systemd and of the firmware.
        text = re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|c|\][^\x07]*\x07)", "", text)
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def complaints(self) -> list[str]:
        """Lines of the console in which the kernel says that something is wrong with it."""
        return [line for line in self.console.split("\n") if _COMPLAINT.search(line)]

    def console_tail(self, lines: int = _TAIL) -> str:
        return "\n".join(self.console.rstrip().split("\n")[-lines:])

    # What a Process and the CLI need.

    def heard(self, process: Process, frame: Frame) -> None:
        if self.listener is not None:
            self.listener(process, frame)

    def send(self, kind: Kind, channel: int, payload: bytes = b"") -> None:
        assert self._socket is not None
        data = memoryview(encode(Frame(kind, channel, payload)))
        with self._sending:
            while data:
                try:
                    data = data[self._socket.send(data, socket.MSG_DONTWAIT) :]
                except BlockingIOError:
                    select.select([], [self._socket], [], 1)
                    self._check()
                except OSError:
                    self._end()
                    self._check()

    def await_(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait for something that the agent's frames bring about, while the guest lives."""
        start = time.monotonic()
        deadline = start + timeout * self.patience
        with self._changed:
            while not condition():
                self._check()
                if self._release is not None and time.monotonic() - self._last_ping > _PING_EVERY:
                    self._last_ping = time.monotonic()
                    self.send(Kind.PING, 0)
                if time.monotonic() > deadline:
                    raise CommandTimeout(
                        f"waited {time.monotonic() - start:.0f} s for {what}", self
                    )
                self._changed.wait(0.5)

    # Within.

    def _listen(self, channel: socket.socket) -> None:
        decoder = Decoder()
        while True:
            try:
                data = channel.recv(1 << 20)
            except OSError:
                data = b""
            if not data:
                break
            frames = decoder.feed(data)
            with self._changed:
                self._silent = 0.0
                for frame in frames:
                    self._receive(frame)
                self._changed.notify_all()
        self._end()
        channel.close()

    def _receive(self, frame: Frame) -> None:
        if frame.kind is Kind.HELLO:
            self._release = frame.payload.decode()
        process = self._processes.get(frame.channel)
        if process is not None and not process.receive(frame):
            del self._processes[frame.channel]

    def _end(self) -> None:
        if self._qemu is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._qemu.wait(10)
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def _check(self) -> None:
        """Raise when the guest is gone or gives no sign of life."""
        if self._over:
            panic = _PANIC.search(self.console)
            if panic:
                raise GuestPanicked(f"the guest panicked: {panic.group()}", self)
            status = self._qemu.poll() if self._qemu is not None else None
            raise GuestDied(f"QEMU ended with status {status}", self)
        size = self.console_path.stat().st_size
        # Only time that we watched counts, and not that of a host that stood still.
        now = time.monotonic()
        self._silent += min(now - self._last_check, 2.0)
        self._last_check = now
        if size != self._console_size:
            self._console_size = size
            self._silent = 0.0
        if self._silent > SILENCE * self.patience:
            raise GuestHung(
                f"the guest hangs: nothing on its console and no answer from its agent for "
                f"{self._silent:.0f} s",
                self,
            )


def _words(*options: str) -> list[str]:
    return [word for option in options for word in option.split()]


_ACCELERATORS = {
    "kvm": "-accel kvm",
    "tcg": "-accel tcg,thread=multi",
    "icount": "-accel tcg,thread=single -icount shift=0,sleep=off",
}
"""By TIERD_QEMU_ACCEL. With icount each instruction takes a nanosecond of the guest's time,
whatever it takes here."""


def start_qemu(
    artefacts: Artefacts,
    kernel: str,
    machine: Machine,
    *,
    append: str,
    options: Sequence[str],
    passed: Sequence[int] = (),
    stdin: int | None = None,
) -> tuple[subprocess.Popen[bytes], int]:
    """Start QEMU under its supervisor; it lives as long as the returned pipe end is open here.

    An option is a string of words, so no path in it may have a space."""
    root = artefacts.qemu
    libraries = root / "usr/lib/x86_64-linux-gnu"
    files = artefacts.kernels[kernel]
    initrd = files / "initrd"
    accel = os.environ.get("TIERD_QEMU_ACCEL") or "tcg"
    if accel not in _ACCELERATORS:
        known = ", ".join(_ACCELERATORS)
        raise Unavailable(f"TIERD_QEMU_ACCEL is {accel!r}; it can be one of {known}")
    # Emulating more than user space needs (x86-64-v2) costs a third of the boot.
    processor = "host" if accel == "kvm" else "qemu64,+ssse3,+sse4.1,+sse4.2,+popcnt"
    if kernel == "stock":
        # No kernel makes a CXL region where it cannot flush the CPU caches, and it takes it
        # that a virtual machine cannot. Ours have CXL_REGION_INVALIDATION_TEST against that.
        processor += ",-hypervisor"
    words = [
        *_words(
            f"{_ACCELERATORS[accel]} -cpu {processor}",
            "-nodefaults -no-user-config -no-reboot -display none",
            *machine.options,
        ),
        *("-kernel", str(files / "bzImage")),
        *(("-initrd", str(initrd)) if initrd.exists() else ()),
        *(
            "-append",
            f"root=/dev/vda rw console=ttyS0 loglevel=5 oops=panic panic=-1 {append}".strip(),
        ),
        *_words(
            f"-drive file={artefacts.image},if=none,id=root,format=raw,snapshot=on,cache=unsafe",
            "-device virtio-blk-pci,drive=root,bus=pcie.0",
            "-object rng-random,id=rng,filename=/dev/urandom",
            "-device virtio-rng-pci,rng=rng,bus=pcie.0",
            *options,
        ),
    ]
    read, write = os.pipe()
    try:
        qemu = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(Path(__file__).with_name("supervise.py"))),
                *(str(read), ",".join(map(str, passed))),
                # The other root's own loader and libraries, so neither chroot nor mounts.
                *(str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", str(libraries)),
                str(root / "usr/bin/qemu-system-x86_64"),
                *("-L", str(root / "usr/share/qemu"), "-L", str(root / "usr/share/seabios")),
                *words,
            ],
            stdin=stdin,
            pass_fds=(read, *passed),
            env=os.environ | {"QEMU_MODULE_DIR": str(libraries / "qemu")},
            start_new_session=stdin is not None,
        )
    except BaseException:
        os.close(write)
        raise
    finally:
        os.close(read)
    return qemu, write
