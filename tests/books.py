"""What a port should hold and count: kept beside it by the state machine that drives it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from nic import HEAD, HEADER, PAGE


@dataclass(eq=False)
class Parcel:
    """What one burst or one copied frame takes from a port's pool while anybody holds it."""

    pool: Any
    pages: int
    slots: int


@dataclass(eq=False)
class Known:
    """A frame as it should be, and how many descriptors it takes to be sent."""

    parcel: Parcel
    content: bytes
    pieces: int = 1


@dataclass(eq=False)
class Held:
    """Something that a caller kept, its memory, and the frames it should show."""

    thing: Any
    parcel: Parcel
    frames: list[Known]


@dataclass
class Books:
    """Counters as they should be since the port was opened."""

    rx_frames: int = 0
    rx_bytes: int = 0
    rx_runts: int = 0
    rx_lost: int = 0
    tx_frames: int = 0
    tx_bytes: int = 0
    tx_reclaimed: int = 0
    tx_lost: int = 0


@dataclass
class Rings:
    """Frames in the rings: delivered and not received; sent, taken, used and not reclaimed."""

    delivered: deque[bytes] = field(default_factory=deque)
    exposed: deque[Known] = field(default_factory=deque)
    taken: list[Known] = field(default_factory=list)
    used: list[Known] = field(default_factory=list)

    @property
    def outgoing(self) -> list[Known]:
        return [*self.exposed, *self.taken, *self.used]


def copied(pool, content):
    """A frame sent as a copy: in a head slot, in a page, or in a head slot and pages."""
    if len(content) <= HEAD:
        return Known(Parcel(pool, 0, 1), content)
    if len(content) <= PAGE - HEADER:
        return Known(Parcel(pool, 1, 0), content)
    pages = -(-(len(content) - HEAD) // PAGE)
    return Known(Parcel(pool, pages, 1), content, 1 + pages)
