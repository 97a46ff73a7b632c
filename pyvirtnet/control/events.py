"""What a port's device says of itself has changed, and what it asks for."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from threading import RLock
from typing import Any, Literal

from ..errors import DeviceTimeout, NeedsReset
from ..nic import Link, Mac
from ..spec import ANNOUNCE, Command, Feature, NetConfig
from ..wakeup import WakeUp
from .control import Control

_BROADCAST = b"\xff" * 6
_RARP = struct.Struct("!HHBBH")
ANNOUNCE_SECONDS = 1.0
SLICE_SECONDS = 0.1  # of sleep; without an interrupt for changes, between looks at them


@dataclass(frozen=True)
class Event:
    """A change of what the device says: of "link", "mtu" or "mac", with the value it has now.

    Of the others the value is None. "announce": the device asks for `port.announce()`.
    "needs-reset": it met an error, and asks for `port.reset()` (2.1.2).
    """

    what: Literal["link", "mtu", "mac", "announce", "needs-reset"]
    value: Link | int | Mac | None


class Events:
    """Changes of link, MTU and MAC; what the device asks for."""

    _control: Control
    _seen: dict[str, Any]
    _changes: WakeUp | None
    _care: RLock

    @property
    def mac(self) -> Mac:
        """The port's."""
        raise NotImplementedError

    @property
    def link(self) -> Link:
        """The port's."""
        raise NotImplementedError

    @property
    def mtu(self) -> int:
        """The port's."""
        raise NotImplementedError

    def _change_fds(self) -> list[int]:
        """The port's."""
        raise NotImplementedError

    def events(self, *, timeout: float | None = 0.0) -> list[Event]:
        """What has changed since the last call; the first one says how all of it is.

        With a `timeout` it waits so many seconds for a change, or for ever with None, on the
        interrupt for configuration changes. Raises what `link` raises; a device that asks to be
        reset is an event, and NeedsReset from the next call on. ValueError for a timeout below 0.
        """
        if timeout is not None and not timeout >= 0:
            raise ValueError(f"a timeout is None or seconds from 0 up, not {timeout!r}")
        end = time.monotonic() + (inf if timeout is None else timeout)
        while True:
            if self._changes is not None:
                self._changes.drain()  # before it is looked at, so that no change is slept through
            found = self._news()
            left = end - time.monotonic()
            if found or left <= 0:
                return found
            if self._changes is None:
                with self._care:  # whoever resets the device changes its file descriptors
                    self._changes = WakeUp()
                    self._changes.watch(self._change_fds())
                continue  # what has changed since nobody was told of
            self._changes.sleep(min(left, SLICE_SECONDS))

    def _news(self) -> list[Event]:
        now = self._look_round()
        changes = [what for what in now if now[what] != self._seen.get(what)]
        self._seen = now
        return [
            Event(what, None if isinstance(now[what], bool) else now[what])  # type: ignore[arg-type]
            for what in changes
            if now[what] is not False
        ]

    def _look_round(self) -> dict[str, Any]:
        try:
            now = {"link": self.link, "mtu": self.mtu, "mac": self.mac, "announce": False}
        except NeedsReset:
            if "needs-reset" in self._seen:
                raise
            return {**self._seen, "needs-reset": True}
        if self._control.live and self._control.has(Feature.GUEST_ANNOUNCE):
            now["announce"] = bool(self._control.read_number(NetConfig.STATUS, 2) & ANNOUNCE)
        return now

    def announce(self, frames: Sequence[bytes] | None = None) -> None:
        """Tell the network where this NIC is now, then tell the device that it was told.

        frames  what is sent, such as gratuitous ARP; a RARP of `mac`, as hypervisors send, if not
                given
        """
        self._control.require(Command.ANNOUNCE_ACK)
        waiting = list(frames) if frames is not None else [_rarp(self.mac)]
        end = time.monotonic() + ANNOUNCE_SECONDS
        while waiting := waiting[self.send_burst(waiting) :]:
            if time.monotonic() > end:
                raise DeviceTimeout(
                    f"{self._control.name} did not send {len(waiting)} announcements",
                    f"its transmit ring was full for {ANNOUNCE_SECONDS:g} s",
                    "try again",
                )
        self._control.ask(Command.ANNOUNCE_ACK)

    def send_burst(self, frames: Any) -> int:
        """The port's."""
        raise NotImplementedError


def _rarp(mac: Mac) -> bytes:
    """A reverse ARP request for an address, by its owner: switches learn where it is."""
    body = _RARP.pack(1, 0x0800, 6, 4, 3) + mac + bytes(4) + mac + bytes(4)
    return (_BROADCAST + mac + b"\x80\x35" + body).ljust(60, b"\0")
