"""The guest's end of its QEMU's monitor: what tests do to the machine they run in."""

import json
import os
from typing import Any

PORT = "/dev/virtio-ports/monitor"


class MonitorError(Exception):
    """QEMU refused."""


def tell(request: dict[str, Any]) -> int:
    """Send a request (pyvirtnet.cli._vm_monitor has them); the descriptor to read its answer of."""
    fd = os.open(PORT, os.O_RDWR)
    os.write(fd, json.dumps(request).encode() + b"\n")
    return fd


def answer(fd: int) -> Any:
    """What came of it; waits for it."""
    data = b""
    while not data.endswith(b"\n"):
        data += os.read(fd, 1 << 16)
    os.close(fd)
    reply = json.loads(data)
    if "error" in reply:
        raise MonitorError(reply["error"]["desc"])
    return reply["return"]


def ask(command: str, **arguments: Any) -> Any:
    return answer(tell({"execute": command, "arguments": arguments}))
