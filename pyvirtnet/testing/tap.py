"""A device whose cable ends in a tap interface: at its other end is the kernel's TCP/IP."""

from __future__ import annotations

import os
import select
import struct
from collections import deque
from contextlib import suppress
from fcntl import ioctl
from threading import Thread
from typing import Any

from .net import NetDevice

_TUNSETIFF, _TAP, _NO_HEADER = 0x400454CA, 0x0002, 0x1000
_MOST = 65536  # bytes of a frame, and more than there are
_BATCH = 64
_PAUSE = 0.1  # seconds between looks while frames wait for receive buffers


class TapDevice(NetDevice):
    """Frames sent go to the interface `name` when the driver kicks; a thread waits for others.

    The interface is made if it is not there, which takes CAP_NET_ADMIN; else that of
    `ip tuntap add NAME mode tap user USER` is enough. Raises OSError. `unplug()` ends it.
    `dropped` counts frames sent while the interface was down.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(**options)
        self._backlog: deque[bytes] = deque()
        self.dropped = 0
        self._tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            ioctl(
                self._tap, _TUNSETIFF, struct.pack("16sH22x", os.fsencode(name), _TAP | _NO_HEADER)
            )
        except BaseException:
            os.close(self._tap)
            raise
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self.on_kick = self.poll
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def poll(self) -> None:
        """Carry all that can be carried, both ways."""
        with self.lock:
            for pair in range(self.pairs):
                if self.running(2 * pair + 1):
                    frames = self.take(pair=pair)
                    self.complete(pair=pair)
                    for frame in frames:
                        self._to_tap(frame)
            while self._from_tap() and self._hand_over():
                pass

    def unplug(self) -> None:
        """Let go of the interface; one that was made for the device is gone."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        with self.lock:
            self.on_kick = None
            self.abandon()

    def abandon(self) -> None:
        """In a forked child, which has no thread: its copies of the files go."""
        os.close(self._tap)
        os.close(self._end)

    def _to_tap(self, frame: bytes) -> None:
        try:
            os.write(self._tap, frame)
        except OSError:  # the interface is down
            self.dropped += 1

    def _from_tap(self) -> bool:
        """Whether there are frames for the driver."""
        with suppress(OSError):  # nothing there, or the interface is down
            while len(self._backlog) < _BATCH:
                self._backlog.append(os.read(self._tap, _MOST))
        return bool(self._backlog)

    def _hand_over(self) -> bool:
        """Whether the driver had room for any."""
        if not self.running(0):
            return False
        taken = self.deliver_some(self._backlog)
        for _ in range(taken):
            self._backlog.popleft()
        return taken > 0

    def _listen(self) -> None:
        """The thread: frames come by the tap, until `unplug()`."""
        while True:
            waiting = [self._end] if self._backlog else [self._end, self._tap]
            ready = select.select(waiting, [], [], _PAUSE if self._backlog else None)[0]
            if self._end in ready:
                return
            self.poll()
