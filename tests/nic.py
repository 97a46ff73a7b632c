"""A port with the device model behind it: what the tests of the datapath work with."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path
from struct import Struct

from pyvirtnet import Port
from pyvirtnet.negotiate import parse
from pyvirtnet.testing import DEFAULT_FEATURES, NetDevice, mask
from pyvirtnet.transport.sim import SimTransport

HEADER = 12
HEAD = 128
PAGE = 4096
# Rings as they are without options; test_formats.py has the others.
PLAIN = DEFAULT_FEATURES & ~mask("event_idx", "indirect_desc")
_NOISE = random.Random(2008).randbytes(1 << 17)
_USED_ELEMENT = Struct("<II")
_USED_DESCRIPTOR = Struct("<IHH")
_U16 = Struct("<H")


def frame(size: int, number: int = 0) -> bytes:
    """Content that tells frames and places in a frame apart."""
    start = number * 61 % 65536
    return (number.to_bytes(8, "big") + _NOISE[start : start + size])[:size]


def frames(count: int, size: int = 60, first: int = 0) -> list[bytes]:
    return [frame(size, first + i) for i in range(count)]


def buffers(size: int) -> int:
    """Pages that a frame of `size` bytes takes when each is filled before the next."""
    return -(-(HEADER + size) // PAGE)


class CountedDevice(NetDevice):
    """The model, with a count of the kicks of each queue."""

    def __init__(self, **options) -> None:
        self.kicks: Counter[int] = Counter()
        super().__init__(**options)

    def kick(self, index: int) -> None:
        self.kicks[index] += 1
        super().kick(index)

    def notify(self, index: int, data: int) -> None:
        self.kicks[index] += 1
        super().notify(index, data)

    def complete(self, count=None, *, order="fifo", **options):
        """In the order that the test asks for, unless the device promised to keep it."""
        if self.accepted & mask("in_order"):
            order = "fifo"
        return super().complete(count, order=order, **options)


class Nic:
    """A device, the transport that reaches it, and the port that drives it.

    `offered` are the device's features, `features` the port's switches.
    """

    def __init__(
        self,
        device=None,
        *,
        ring_size=None,
        pages=None,
        features=(),
        offered=PLAIN,
        queue_pairs=1,
        **options,
    ):
        self.device = device or CountedDevice(features=offered, **options)
        self.transport = SimTransport(self.device, "sim:test")
        try:
            self.port = Port(
                self.transport,
                ring_size=ring_size,
                pages=pages,
                wanted=parse(features),
                queue_pairs=queue_pairs,
            )
        except BaseException:
            self.transport.close()
            raise

    def receive(self, n: int = 64) -> list[bytes]:
        """Every frame that waits, copied."""
        got: list[bytes] = []
        while fresh := [bytes(one) for one in self.port.recv_burst(n)]:  # holds no burst
            got += fresh
        return got

    def pass_through(self, content: list[bytes]) -> None:
        """Deliver frames one burst at a time as room allows; each arrives as it was."""
        waiting = list(reversed(content))
        expected = iter(content)
        while waiting:
            while waiting and self.device.deliver(waiting[-1]):
                waiting.pop()
            got = self.receive()
            assert got, "no room to deliver, and nothing received"
            for one in got:
                assert one == next(expected)
        assert next(expected, None) is None

    def transmitted(self, order: str = "fifo") -> list[bytes]:
        """What the device finds in the transmit ring; it has sent it when this returns."""
        taken = self.device.take()
        self.device.complete(order=order)
        return taken

    @property
    def held_pages(self) -> int:
        """Pages that neither lie free nor are posted: bursts and sent frames hold them."""
        info = self.port.info()
        return info["pages"] - info["free_pages"] - info["posted_pages"]

    @property
    def held_slots(self) -> int:
        pools = [queue.pool for queue in self.port.queues]
        return sum(pool.slots - pool.free_slots for pool in pools)

    def calm(self) -> None:
        """The device sends everything, the port takes everything back."""
        self.transmitted()
        self.port.reclaim()
        self.receive()

    def check(self) -> None:
        """Nothing is held any more, and the driver has kept to the rules."""
        self.device.check()
        assert self.held_pages == 0, "pages were lost"
        assert self.held_slots == 0, "head slots were lost"
        assert self.port.tx_pending == 0


def finish(*nics: Nic) -> None:
    """The end of a test: ports that still work have to have all they had."""
    working = [nic for nic in nics if nic.port.queues]
    try:
        for nic in working:
            nic.calm()
        if any(nic.held_pages or nic.held_slots for nic in working):
            gc.collect()  # bursts in cycles
        for nic in working:
            nic.check()
        for nic in nics:
            assert not nic.device.violations
    finally:
        for nic in nics:
            nic.port.close()


class Liar:
    """What a queue's device says it used, written as no device may."""

    def __init__(self, nic: Nic, index: int) -> None:
        self.queue = nic.device.queues[index]
        self.packed = bool(nic.device.accepted & mask("ring_packed"))
        nic.device.fill = False

    def put(self, *entries: tuple[int, int], advance: int | None = None) -> None:
        """Say that buffers (id, length) are used; in a split ring, move its index by `advance`."""
        if self.packed:
            assert advance is None, "there is no index"
            for entry in entries:
                self._mark(*entry)
            return
        queue = self.queue
        for at, entry in enumerate(entries):
            _USED_ELEMENT.pack_into(queue._used, 4 + 8 * ((queue._given + at) % queue.size), *entry)
        queue._given = (queue._given + (len(entries) if advance is None else advance)) & 0xFFFF
        _U16.pack_into(queue._used, 2, queue._given)

    def _mark(self, name: int, length: int) -> None:
        """The next descriptor is used, and all that it stands for."""
        queue = self.queue
        place, lap = queue._given % queue.size, queue._given // queue.size
        _USED_DESCRIPTOR.pack_into(
            queue._table, 16 * place + 8, length, name & 0xFFFF, 0 if lap & 1 else 0x8080
        )
        queue._given += len(queue._in_flight[name].entries) if name in queue._in_flight else 1

    def write(self, data: bytes) -> int:
        """Fill the next posted receive buffer; its id."""
        chain = self.queue.ready.popleft()
        chain.scatter(data)
        return chain.head


def run_python(code: str, timeout: float = 60) -> None:
    """Run a script that has `Nic` and `frame` in a process of its own: it ends well, in silence."""
    script = "from nic import *\n" + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
