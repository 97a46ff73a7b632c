"""What this process's ports count, told to `pyvirtnet top` over a Unix socket, on request only."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .errors import Error
from .life import open_ports
from .port import Port


def folder() -> Path:
    """Where this user's processes have their sockets."""
    if "PYVIRTNET_RUN" in os.environ:
        return Path(os.environ["PYVIRTNET_RUN"])
    if os.geteuid() == 0:
        return Path("/run/pyvirtnet/top")
    home = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/pyvirtnet-{os.geteuid()}"
    return Path(home) / "pyvirtnet/top"


def publish() -> Publication:
    """Lets `pyvirtnet top` watch the ports of this process, until `close()` or the `with` ends.

    A thread of its own waits for those who ask; the hot path has no part in it. Only this user,
    and root, can ask. Once a process: a second one raises Error, as does a folder that cannot be
    had.
    """
    return Publication()


class Publication:
    """A Unix socket, and the thread that answers at it."""

    def __init__(self) -> None:
        place = folder()
        self._path, self._pid = place / f"{os.getpid()}.sock", os.getpid()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
            if place.stat().st_uid != os.geteuid():
                raise PermissionError(1, "it belongs to another user")
            self._bind()
        except OSError as error:
            self._socket.close()
            why = str(error.strerror or error)
            mend = "close what publishes already, or set PYVIRTNET_RUN to a folder of your own"
            raise Error(f"cannot publish under {place}", why, mend) from None
        threading.Thread(target=self._serve, name="pyvirtnet-publish", daemon=True).start()

    def _bind(self) -> None:
        """A file of that name may be what a process left that was killed."""
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
            other.connect(str(self._path))
            raise Error("cannot publish twice", "this process does already", "close the other one")
        unheard = self._path.with_suffix(".new")  # who asks before it listens takes it for dead
        unheard.unlink(missing_ok=True)
        self._socket.bind(str(unheard))
        unheard.chmod(0o600)
        self._socket.listen()
        unheard.rename(self._path)

    def close(self) -> None:
        """May be called twice."""
        if os.getpid() == self._pid and self._socket.fileno() >= 0:
            self._path.unlink(missing_ok=True)
            with suppress(OSError):  # wakes the thread
                self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _serve(self) -> None:
        while True:
            try:
                asker, _ = self._socket.accept()
            except OSError:
                return
            with suppress(OSError), asker:
                asker.settimeout(1.0)
                asker.sendall(json.dumps(snapshot()).encode() + b"\n")


def snapshot() -> dict[str, Any]:
    """What an asker is told, in a line of JSON."""
    ports = [_port(port) for port in open_ports() if isinstance(port, Port)]
    program = Path(sys.argv[0]).name if sys.argv else ""
    program = " ".join([program, *sys.argv[1:3]]) if program == "pyvirtnet" else program
    return {"pid": os.getpid(), "program": program, "time": time.monotonic(), "ports": ports}


def _port(port: Port) -> dict[str, Any]:
    info = port.info()
    sizes = info["ring_sizes"]
    queues = [
        {
            **queue.counters(),
            "rx_ring": sizes[2 * queue.index],
            "tx_ring": sizes[2 * queue.index + 1],
            "rx_posted": queue.posted,
            "tx_pending": queue.tx_pending,
        }
        for queue in port.queues
    ]
    pages = {name: info[name] for name in ("pages", "free_pages")}
    return {"name": port.name, "mac": info["mac"], **pages, "queues": queues}
