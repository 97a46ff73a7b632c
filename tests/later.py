"""What happens to a port once it waits for frames, however long it takes until it does."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from typing import Any

from vhost_fixtures import SECONDS, until

from pyvirtnet.testing import mask

PACKED, EVENTS = mask("ring_packed"), mask("event_idx")


def asks(queue: Any, features: int) -> bool:
    """Whether the driver wants an interrupt for the next used buffer, as its words say."""
    if features & PACKED:
        return bool(struct.unpack_from("<H", queue._driver_area, 2)[0] != 1)
    if features & EVENTS:
        used_event = struct.unpack_from("<H", queue._avail, 4 + 2 * queue.size)[0]
        return bool(used_event == queue._given)
    return not queue._avail[0] & 1


class Later:
    """A call in a thread, once the driver of `nic.device` waits; it has come back at the end of
    the block."""

    def __init__(self, nic: Any, call: Callable[[], object], index: int = 0) -> None:
        def run() -> None:
            until(lambda: asks(nic.device.queues[index], nic.device.accepted))
            call()

        self.thread = threading.Thread(target=run)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
