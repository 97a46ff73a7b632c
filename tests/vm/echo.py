"""Run on the host, in a tap's namespace: its kernel's TCP, with a server that sends all back."""

from __future__ import annotations

import socketserver
from contextlib import suppress


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(ConnectionResetError):
            while data := self.request.recv(1 << 16):
                self.request.sendall(data)


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


if __name__ == "__main__":
    with Server(("", 7), Echo) as server:
        server.serve_forever()
