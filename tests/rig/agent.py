# SPDX-License-Identifier: Apache-2.0
"""Runs in the guest: starts the commands that come over the port and sends back what they say.

One thread and one selector. Needs nothing but the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import selectors
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rig.wire import CHUNK, PORT, Decoder, Frame, Kind, encode


def find_port() -> Path:
    """The device of our port; without udev nobody makes the link with its name."""
    for entry in Path("/sys/class/virtio-ports").iterdir():
        if (entry / "name").read_text().strip() == PORT:
            return Path("/dev", entry.name)
    raise FileNotFoundError(f"no virtio-serial port named {PORT}")


class Command:
    """One running command; ends its channel with EXIT."""

    def __init__(self, agent: Agent, channel: int, request: dict[str, object]) -> None:
        self._agent = agent
        self._channel = channel
        self._input: deque[bytes] = deque()
        self._ended = False
        env = request["env"]
        assert isinstance(env, dict)
        self.process = subprocess.Popen(  # type: ignore[call-overload]
            request["argv"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=request["cwd"],
            env=os.environ | env,
            start_new_session=True,
            bufsize=0,
        )
        # The agent itself must outlive a guest without memory (its unit says so); they need not.
        with contextlib.suppress(ProcessLookupError):
            Path(f"/proc/{self.process.pid}/oom_score_adj").write_text("0")
        self._stdin = self.process.stdin.fileno()
        self._outputs = {
            self.process.stdout.fileno(): Kind.STDOUT,
            self.process.stderr.fileno(): Kind.STDERR,
        }
        for fd in (self._stdin, *self._outputs):
            os.set_blocking(fd, False)
        for fd in self._outputs:
            agent.watch(fd, selectors.EVENT_READ, functools.partial(self._read, fd))
        self._pidfd = os.pidfd_open(self.process.pid)
        agent.watch(self._pidfd, selectors.EVENT_READ, self._exited)

    def feed(self, data: bytes) -> None:
        if self._stdin < 0:
            self._taken(len(data))
            return
        if not self._input:
            self._agent.watch(self._stdin, selectors.EVENT_WRITE, self._write)
        self._input.append(data)

    def end_input(self) -> None:
        self._ended = True
        if not self._input:
            self._close_stdin()

    def signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _write(self) -> None:
        data = self._input.popleft()
        try:
            count = os.write(self._stdin, data)
        except BlockingIOError:
            count = 0
        except BrokenPipeError:
            self._taken(len(data) + sum(map(len, self._input)))
            self._input.clear()
            self._close_stdin()
            return
        self._taken(count)
        if count < len(data):
            self._input.appendleft(data[count:])
        if not self._input:
            self._agent.forget(self._stdin)
            if self._ended:
                self._close_stdin()

    def _taken(self, count: int) -> None:
        self._agent.send(Kind.TAKEN, self._channel, json.dumps(count).encode())

    def _close_stdin(self) -> None:
        if self._stdin >= 0:
            self._agent.forget(self._stdin)
            self._stdin = -1
            assert self.process.stdin is not None
            self.process.stdin.close()

    def _read(self, fd: int) -> bool:
        """Pass on what is there; False when nothing more will come now."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            self._agent.forget(fd)
            return False
        self._agent.send(self._outputs[fd], self._channel, data)
        return True

    def _exited(self) -> None:
        status = self.process.wait()
        self._agent.forget(self._pidfd)
        os.close(self._pidfd)
        self._close_stdin()
        # What the command itself wrote is in the pipes. A child that it left behind may hold
        # them open for ever and is not waited for.
        for fd in self._outputs:
            while self._read(fd):
                pass
            self._agent.forget(fd)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        self._agent.send(Kind.EXIT, self._channel, json.dumps(status).encode())
        del self._agent.commands[self._channel]


class Agent:
    def __init__(self, port: int) -> None:
        self._port = port
        self._selector = selectors.DefaultSelector()
        self._decoder = Decoder()
        self.commands: dict[int, Command] = {}

    def watch(self, fd: int, events: int, callback: Callable[[], object]) -> None:
        self._selector.register(fd, events, callback)

    def forget(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(fd)

    def send(self, kind: Kind, channel: int, payload: bytes = b"") -> None:
        data = memoryview(encode(Frame(kind, channel, payload)))
        while data:
            data = data[os.write(self._port, data) :]

    def run(self) -> None:
        self.watch(self._port, selectors.EVENT_READ, self._receive)
        self.send(Kind.HELLO, 0, os.uname().release.encode())
        while True:
            for key, _ in self._selector.select():
                # A callback may have forgotten a descriptor that was ready as well.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()

    def _receive(self) -> None:
        data = os.read(self._port, CHUNK)
        if not data:
            sys.exit("the host closed the port")
        for frame in self._decoder.feed(data):
            self._handle(frame)

    def _handle(self, frame: Frame) -> None:
        if frame.kind is Kind.PING:
            self.send(Kind.PONG, 0)
            return
        if frame.kind is Kind.SPAWN:
            try:
                command = Command(self, frame.channel, json.loads(frame.payload))
            except OSError as error:
                self.send(Kind.FAILED, frame.channel, str(error).encode())
                return
            self.commands[frame.channel] = command
            pid = json.dumps(command.process.pid).encode()
            self.send(Kind.STARTED, frame.channel, pid)
            return
        running = self.commands.get(frame.channel)
        if running is None:  # it ended while the frame was under way
            return
        if frame.kind is Kind.STDIN:
            running.feed(frame.payload)
        elif frame.kind is Kind.STDIN_END:
            running.end_input()
        elif frame.kind is Kind.SIGNAL:
            running.signal(json.loads(frame.payload))


def main() -> None:
    port = os.open(find_port(), os.O_RDWR | os.O_CLOEXEC)
    Agent(port).run()


if __name__ == "__main__":
    main()
