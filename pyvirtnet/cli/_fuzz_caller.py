"""The careless caller: one random call of the public interface after another."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from threading import get_ident
from typing import Any

import numpy as np

from .._burst import Frame, RxBurst, TxBurst
from .._checksums import checksums_ok, fix_checksums
from .._headers import swap_flows, swap_macs
from ..errors import DeviceBroken, DeviceGone, Error
from ..port import Port
from ._fuzz_arguments import KEPT, SIZES, Arguments
from ._fuzz_evil import EvilArray, EvilIndex, EvilItems, Thrown

ALLOWED = (
    Error,
    TypeError,
    ValueError,
    IndexError,
    OverflowError,
    BufferError,
    MemoryError,
    Thrown,
)
PORTS = 3
MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_broadcast")


class Caller(Arguments):
    """Calls `ports` in ways that follow from `random`; any error but ALLOWED comes through.

    errors   how often each kind of error was raised
    patient  it also waits for frames, for which no replay is exact
    """

    def __init__(
        self, random: Random, ports: list[Port], another: Callable[[], Port | None]
    ) -> None:
        super().__init__(random)
        self.ports, self._another = ports, another
        self.errors: Counter[str] = Counter()
        self.calls = 0
        self.patient = False
        self.quiet = False  # no calls from within others any more
        self._depth = 0
        self._thread = 0  # whose calls these are
        self._acts: dict[Callable[[], object], int] = {
            self.receive: 30,
            self.send: 30,
            self.read: 15,
            self.write: 10,
            self.cut: 15,
            self.drop: 12,
            self.allocate: 4,
            self.turn: 2,
            self.set_lengths: 2,
            self.ask: 3,
            self.command: 1,
            self.reclaim: 4,
            self.wait: 1,
            self.cycle: 2,
            self.reset: 2,
            self.restart: 1,
            self.renew: 1,
        }

    def call(self) -> None:
        """One call, whatever comes of it."""
        self._thread = get_ident()
        (act,) = self.random.choices(list(self._acts), list(self._acts.values()))
        self.calls += 1
        try:
            act()
        except ALLOWED as error:
            self.errors[type(error).__name__] += 1
            if isinstance(error, DeviceBroken | DeviceGone) and self.random.random() < 0.3:
                self._revive()

    def _revive(self) -> None:
        for port in list(self.ports):
            with suppress(Error):
                port.reset()

    def from_within(self) -> None:
        """A call in the middle of another: by a doorbell, an iterator, a finaliser.

        Those run in any thread; what is held may only change in the caller's own.
        """
        if self.quiet or self._depth > 2 or self._thread != get_ident():
            return
        if self.random.random() < 0.3:
            self._depth += 1
            try:
                self.call()
            finally:
                self._depth -= 1

    # ---- what is at hand ---------------------------------------------------------------------

    @property
    def port(self) -> Port:
        return self.random.choice(self.ports)

    # ---- calls -------------------------------------------------------------------------------

    def receive(self) -> None:
        n = self.random.choice((1, 2, 7, 32, 64, 256, 4096, self._number()))
        burst: Any = self._caller("recv_burst")(n)
        if len(burst) and self.random.random() < 0.7:
            self.keep(burst)
        if len(burst) and self.random.random() < 0.5:
            self._read(burst)

    def wait(self) -> None:
        sleeps = (1e-4, 1e-3) if self.patient else ()
        timeout = self.random.choice((0, 0.0, -1, float("nan"), "1", EvilIndex(self), *sleeps))
        self.keep(self._caller("recv_burst")(8, timeout=timeout))

    def send(self) -> None:
        frames = self._frames()
        sent = self._caller("send_burst")(frames)
        if isinstance(frames, RxBurst | TxBurst):
            assert 0 <= sent <= len(frames)
            if self.random.random() < 0.3:
                self.keep(frames[sent:])

    def allocate(self) -> None:
        n = self.random.choice((1, 2, 32, 64, 300, self._number()))
        size = self.random.choice((*SIZES, self._number()))
        if isinstance(n, int) and isinstance(size, int) and 1 << 20 < n * size < 1 << 40:
            n = 1
        self.keep(self.port.alloc_burst(n, size))

    def reclaim(self) -> None:
        assert self._caller("reclaim")() >= 0

    def reset(self) -> None:
        self.port.reset()

    def restart(self) -> None:
        """One queue pair alone, with rings of any size."""
        size: Any = self.random.choice((None, None, 2, 8, 64, self._number()))
        self.port.queues[0].reset(size=size)

    def renew(self) -> None:
        """Close a port, and open another beside it or in its place."""
        old = self.port
        old.close()
        port = self._another() or self._another() or self._another()
        if port is None:
            return
        if len(self.ports) < PORTS or self.random.random() < 0.2:
            self.ports.append(port)
        else:
            self.ports[self.ports.index(old)] = port

    def ask(self) -> None:
        port = self.port
        name = self.random.choice(("stats", "link", "mtu", "mac", "tx_pending", "features", "name"))
        repr(getattr(port, name))
        port.info()

    def command(self) -> None:
        """What goes through the control queue."""
        port = self.port
        kind = self.random.randrange(7)
        if kind < 2:
            setattr(port, self.random.choice(MODES), self.random.random() < 0.5)
        elif kind == 2:
            port.mac_filter = [bytes(self.random.choice((6, 6, 6, 5))) for _ in range(3)]
        elif kind == 3:
            port.mac = self.random.choice((bytes(6), b"\1" * 6, b"", "02:00:00:00:00:01"))
        elif kind == 4:
            port.coalesce(rx_usecs=self.random.choice((0, 50, 1 << 32)))
        elif kind == 5:
            repr(port.device_stats())
        else:
            repr(port.events())
            port.announce([bytes(60)])

    def set_lengths(self) -> None:
        burst = self.any_of(TxBurst)
        if burst is not None:
            lengths: Any = self.random.choice((14, 60, 13, 1 << 40, "60", EvilArray(self), None))
            if lengths is None:
                lengths = [self.random.choice(SIZES) for _ in range(len(burst))]
            burst.set_lengths(lengths)

    def turn(self) -> None:
        """Header work in place."""
        burst = self.any_of(RxBurst, TxBurst)
        self.random.choice((swap_macs, swap_flows, fix_checksums, checksums_ok))(burst)

    def read(self) -> None:
        if self.kept:
            self._read(self.random.choice(self.kept))

    def write(self) -> None:
        thing = self.any_of(RxBurst, TxBurst, Frame, np.ndarray)
        if isinstance(thing, RxBurst):
            thing = self.random.choice((thing.heads, thing.lengths, thing.offload))
        elif isinstance(thing, TxBurst):
            thing = self.random.choice((thing.data, thing.lengths, thing.offload))
        elif isinstance(thing, Frame):
            thing = self.random.choice((thing.head, *thing.frags))
        if thing is not None:
            thing[...] = self.random.randrange(300)

    def cut(self) -> None:
        """Slices, masks, indices; frames, columns and views out of bursts."""
        burst = self.any_of(RxBurst, TxBurst)
        if burst is None:
            return
        piece = burst[self._key(len(burst))]
        if isinstance(piece, Frame) and self.random.random() < 0.5:
            piece = self.random.choice((piece.head, *piece.frags))
        elif isinstance(piece, RxBurst) and self.random.random() < 0.3:
            piece = self.random.choice((piece.heads, piece.lengths, iter(piece)))
        elif isinstance(piece, TxBurst) and self.random.random() < 0.3:
            piece = self.random.choice((piece.data, piece.lengths, iter(piece)))
        if isinstance(piece, np.ndarray) and self.random.random() < 0.3:
            piece = piece.data
        self.keep(piece)

    def drop(self) -> None:
        for _ in range(self.random.choice((1, 1, 4, KEPT))):
            if self.kept:
                self.kept.pop(self.random.randrange(len(self.kept)))

    def cycle(self) -> None:
        """Garbage that refers to itself and to bursts, and calls when it is collected."""
        loop = EvilItems(self, [self.any_of(RxBurst, Frame, np.ndarray)])
        loop.itself = loop
        if self.random.random() < 0.2:
            gc.collect(self.random.randrange(3))

    def _caller(self, name: str) -> Any:
        """A port's method by any of the ways to it."""
        port, way = self.port, self.random.randrange(3)
        if way == 1 and (queues := port.queues):
            return getattr(queues[0], name)
        return getattr(Port, name).__get__(port) if way == 2 else getattr(port, name)

    def _read(self, thing: Any) -> None:
        """Every byte that it shows."""
        if isinstance(thing, Frame):
            content = bytes(thing)
            assert len(content) == len(thing) == len(thing.head) + sum(map(len, thing.frags))
        elif isinstance(thing, RxBurst):
            assert [len(bytes(frame)) for frame in thing] == thing.lengths.tolist()
            assert len(thing.heads.tobytes()) == 128 * len(thing)
        elif isinstance(thing, TxBurst):
            assert [row.nbytes for row in thing] == thing.lengths.tolist()
            thing.data.tobytes()
        elif isinstance(thing, np.ndarray | memoryview):
            thing.tobytes()
        elif isinstance(thing, Iterator):
            next(thing, None)
