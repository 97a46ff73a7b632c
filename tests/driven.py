"""A driver's user beside a hostile device: every call there is, and only typed errors."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nic import HEADER, PAGE, Nic, frame, frames

from pyvirtnet import Error, Port
from pyvirtnet._ring import ring_bytes
from pyvirtnet.testing import HostileDevice

_SIZES = (14, 60, 128, 129, 1514, 4085, 9014)
_STRIDE = PAGE + 64  # from one page to the next
_SLOT = 192
_LEAD = 52  # bytes of the pool in front of its first page


def page_of(nic: Nic, fragment: Any) -> int:
    """The page that a fragment lies in, all of it."""
    pool, info = nic.port.queues[0].pool, nic.port.info()
    packed, tables = info["ring_format"] == "packed", "indirect_desc" in info["features"]
    receive, transmit = info["ring_sizes"]
    rings = ring_bytes(receive, packed=packed)
    headers = "csum" in info["features"]
    rings += ring_bytes(transmit, packed=packed, tables=tables, headers=headers)
    first = pool.region.address + rings + _SLOT * pool.slots + _LEAD
    page, offset = divmod(fragment.ctypes.data - first, _STRIDE)
    assert 0 <= page < pool.pages, "a fragment outside the pool"
    assert offset + fragment.nbytes <= PAGE, "a fragment past its page"
    return page


@dataclass
class Kept:
    """Something of a burst that is held, and the pages of that burst."""

    thing: Any
    pool: Any
    pages: frozenset[int]


class User:
    """Calls a port at random, holds some of what it got, and looks at every byte of it."""

    def __init__(self, nic: Nic, seed: int) -> None:
        self.nic, self.rng = nic, random.Random(seed)
        self.held: list[Kept] = []
        self.errors: list[Error] = []

    @property
    def port(self) -> Port:
        return self.nic.port

    def act(self) -> None:
        """One call; what it raises is one of pyvirtnet's own errors, with a mend."""
        calls = (
            self.receive, self.receive, self.send_copies, self.forward, self.send_again,
            self.let_go, self.look,
        )  # fmt: skip
        self.attempt(self.rng.choice(calls))

    def attempt(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Error as caught:
            self.errors.append(caught.with_traceback(None))  # which would hold bursts
            missing = [part for part in ("what", "why", "mend") if not getattr(caught, part)]
            assert not missing, f"an error without its {missing}"

    def receive(self) -> None:
        burst = self.port.recv_burst(self.rng.choice([1, 3, 64]))
        parts = [burst, burst.heads, burst[::-1], *burst[:1], *(one.frags for one in burst[:1])]
        self.check(burst, [self.rng.choice(parts)] if self.rng.random() < 0.5 else ())

    def check(self, burst: Any, keep: Sequence[Any]) -> None:
        """Every byte is there, in pages that nobody else has; keep some of it."""
        pages: list[int] = []
        for one in burst:
            assert len(bytes(one)) == len(one) >= 14
            assert len(one.head) + sum(part.nbytes for part in one.frags) == len(one)
            pages += [page_of(self.nic, part) for part in one.frags]
        pool = self.port.queues[0].pool
        others = [kept.pages for kept in self.held if kept.pool is pool]
        assert len(set(pages).union(*set(others))) == len(pages) + sum(map(len, set(others)))
        self.held += [Kept(part, pool, frozenset(pages)) for part in keep if len(part)]

    def send_copies(self) -> None:
        sizes = [size for size in _SIZES if size <= self.port.max_frame]
        self.port.send_burst(
            [frame(self.rng.choice(sizes), i) for i in range(self.rng.choice((1, 9)))]
        )

    def forward(self) -> None:
        burst = self.port.recv_burst(8)
        if len(burst) and int(burst.lengths.max()) <= self.port.max_frame:
            self.port.send_burst(burst)

    def send_again(self) -> None:
        burst = self.port.alloc_burst(4, 60)
        self.port.send_burst(burst)
        self.port.reclaim()

    def let_go(self) -> None:
        if self.held:
            del self.held[self.rng.randrange(len(self.held))]

    def look(self) -> None:
        assert self.port.info()["pages"] >= 0
        assert self.port.mtu >= 0
        self.port._look()  # what a port does when it idles for long
        _ = self.port.link


def conserved(nic: Nic) -> None:
    """No page is in two places, none is nowhere."""
    info = nic.port.info()
    assert 0 <= nic.held_pages <= info["pages"]
    assert info["free_pages"] >= 0
    assert info["posted_pages"] >= 0


def comes_back(user: User) -> None:
    """With an honest device and a reset, everything works, and nothing was lost."""
    nic, device = user.nic, user.nic.device
    assert isinstance(device, HostileDevice)
    device.heal()
    nic.port.reset()
    assert not device.tainted
    user.held.clear()
    nic.port.reclaim()
    if nic.held_pages or nic.held_slots:
        gc.collect()  # bursts in cycles
    assert (nic.held_pages, nic.held_slots, nic.port.tx_pending) == (0, 0, 0)
    info = nic.port.info()
    ring = min(info["ring_sizes"])
    largest = {"mergeable": ring, "big": 17, "small": 1}[info["receive_mode"]] * PAGE - HEADER
    nic.pass_through([*frames(40), *(frame(min(9014, largest), i) for i in range(4))])
    sent = nic.port.send_burst(frames(8))
    assert sent == min(8, ring)
    assert nic.transmitted() == frames(sent)
    nic.port.reclaim()
    nic.check()
