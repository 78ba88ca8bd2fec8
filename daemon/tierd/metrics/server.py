# SPDX-License-Identifier: Apache-2.0
"""The HTTP endpoint: /metrics, /-/healthy, /-/ready and a landing page."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6, SHUT_RDWR
from socketserver import TCPServer
from typing import Any, Final

from tierd import __version__
from tierd.config import parse_listen

_CLIENT_TIMEOUT: Final = 10.0
MAX_CLIENTS: Final = 16
"""Connections served at once; further ones are closed."""


class ListenError(OSError):
    """The address of `metrics.listen` cannot be used; the message says which and why."""


class Server(ThreadingHTTPServer):
    """One thread per scrape, at most `MAX_CLIENTS` of them: idle clients cannot use up a
    root daemon's threads."""

    daemon_threads = True
    # With the default of 5, a few clients that connect at once wait for a retransmission.
    request_queue_size = 64
    # A thread that waits for a silent client must not hold up the daemon's stop.
    block_on_close = False

    def __init__(
        self, listen: str, text: Callable[[str], tuple[bytes, str]], ready: Callable[[], bool]
    ) -> None:
        """Bind `listen` or raise `ListenError`. `text` gives the exposition and its content
        type for an Accept header; `ready` is the answer of /-/ready."""
        try:
            host, port = parse_listen(listen)
        except ValueError as error:
            raise ListenError(f"metrics.listen: {error}, not {listen!r}") from None
        self.address_family = AF_INET6 if ":" in host else AF_INET
        self.text = text
        self.ready = ready
        self._slots = threading.BoundedSemaphore(MAX_CLIENTS)
        self._stopping = False
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise ListenError(
                f"metrics.listen: cannot listen on {listen}: {error.strerror or error}"
            ) from error

    def serve(self) -> None:
        """Serve until `stop`, without the wake-ups of serve_forever, which polls for its end."""
        while not self._stopping:
            self.handle_request()

    def stop(self) -> None:
        """Let `serve` end, from another thread."""
        self._stopping = True
        self.socket.shutdown(SHUT_RDWR)  # wakes it: there will be no more clients

    def server_bind(self) -> None:
        # HTTPServer.server_bind looks the host's name up in DNS, which can block a start.
        TCPServer.server_bind(self)
        host, port = self.server_address[:2]
        self.server_name, self.server_port = str(host), int(port)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no more threads: this client's bad luck
            self._slots.release()
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no event worth a line in the journal."""


class _Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = _CLIENT_TIMEOUT
    server_version = f"tierd/{__version__}"
    sys_version = ""

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            body, content_type = self.server.text(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, body, content_type)
        elif path == "/-/healthy":
            self._answer(HTTPStatus.OK, b"tierd is healthy.\n")
        elif path == "/-/ready" and self.server.ready():
            self._answer(HTTPStatus.OK, b"tierd is ready.\n")
        elif path == "/-/ready":
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, b"No cycle has ended yet.\n")
        elif path == "/":
            self._answer(HTTPStatus.OK, _LANDING, "text/html; charset=utf-8")
        else:
            self._answer(HTTPStatus.NOT_FOUND, b"Not found. The metrics are at /metrics.\n")

    do_HEAD = do_GET

    def _answer(
        self, status: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """One line per scrape would bury the journal."""


_LANDING: Final = f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>tierd</title></head><body>
<h1>tierd {__version__}</h1>
<p>System-wide memory tiering for Linux hosts with CXL memory.</p>
<ul>
<li><a href="/metrics">/metrics</a>: metrics for Prometheus</li>
<li><a href="/-/healthy">/-/healthy</a>: the process answers</li>
<li><a href="/-/ready">/-/ready</a>: a cycle has ended</li>
</ul>
</body></html>
""".encode()
