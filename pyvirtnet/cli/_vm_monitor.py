"""What a guest may ask of its QEMU: NICs pulled, plugged, told to announce; to be paused."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any

from ..errors import Error

# The guest runs what it is given to run: it may do to its NICs what hands do to a machine's.
ALLOWED = ("announce-self", "device_add", "device_del", "set_link")
_PATIENCE = 30.0  # seconds for an answer of QEMU's
_MAX_PAUSE = 10.0


class Monitor:
    """QEMU's monitor (QMP) at `path`, for requests of the guest, a JSON line each:
    {"execute": "set_link", "arguments": {...}}, {"pause": SECONDS} for the whole machine, or
    {"fail": ID} for a fatal PCI error of a device that has aer=on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None
        self._input = b""

    def answer(self, data: bytes) -> bytes:
        """The answers to the requests that `data` ends: QEMU's, or {"error": {"desc": ...}}."""
        *lines, self._input = (self._input + data).split(b"\n")
        return b"".join(json.dumps(self._handle(line)).encode() + b"\n" for line in lines)

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._input = None, b""

    def _handle(self, line: bytes) -> dict[str, Any]:
        try:
            request = json.loads(line)
            if "pause" in request:
                return self._pause(min(float(request["pause"]), _MAX_PAUSE))
            if "fail" in request:
                return self._fail(str(request["fail"]))
            if request["execute"] not in ALLOWED:
                raise Error(f"{request['execute']} is not for guests")
            return self._execute(request["execute"], request.get("arguments", {}))
        except (Error, OSError, ValueError, TypeError, KeyError) as error:
            return {"error": {"desc": f"{type(error).__name__}: {error}"}}

    def _pause(self, seconds: float) -> dict[str, Any]:
        """Stop the guest's processors and devices for so long. What QEMU said meanwhile."""
        self._execute("stop")
        try:
            status = self._execute("query-status")
            time.sleep(seconds)
            return status
        finally:
            self._execute("cont")

    def _fail(self, device: str) -> dict[str, Any]:
        if not device.isalnum():
            raise Error(f"{device!r} is no device's name")
        line = {"command-line": f"pcie_aer_inject_error {device} DLP"}
        return self._execute("human-monitor-command", line)

    def _execute(self, command: str, arguments: dict[str, Any] | None = None) -> dict[str, Any]:
        """QEMU's answer: {"return": ...} or {"error": ...}; its events are dropped."""
        if self._socket is None:
            self._connect()
        self._send({"execute": command, "arguments": arguments or {}})
        while True:
            reply = self._receive()
            if "return" in reply or "error" in reply:
                return reply

    def _connect(self) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_PATIENCE)
        self._socket.connect(str(self._path))
        self._lines = self._socket.makefile("rb")
        self._receive()  # its greeting
        self._execute("qmp_capabilities")

    def _send(self, message: dict[str, Any]) -> None:
        assert self._socket is not None
        self._socket.sendall(json.dumps(message).encode() + b"\n")

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise Error("QEMU's monitor has closed")
        message: dict[str, Any] = json.loads(line)
        return message
