"""The rules of a network device: what its buffers may look like (VIRTIO 1.3, 5.1.6)."""

from __future__ import annotations

import random
from functools import lru_cache

from .chain import Chain
from .control import ControlUnit
from .device import Device, examined
from .layout import (
    CTRL_VQ,
    ETHERNET_HEADER,
    GUEST_SEGMENTS,
    HASH_REPORT,
    HASHED_HEADER,
    LARGEST_FRAME,
    MANY_QUEUES,
    MRG_RXBUF,
    MTU,
    NET_HEADER,
    mask,
)
from .queue import Virtqueue
from .violation import Violation, Where, words

HEADER = NET_HEADER.size
DEFAULT_FEATURES = mask(
    "version_1", "access_platform", "mac", "status", "mrg_rxbuf", "indirect_desc", "event_idx"
)
# What the model can act on once the driver has accepted it
SPOKEN = DEFAULT_FEATURES | mask(
    "order_platform", "ring_packed", "in_order", "notification_data", "ring_reset",
    "mtu", "speed_duplex", "csum", "guest_csum", "guest_tso4", "guest_tso6",
    "guest_ecn", "guest_ufo", "guest_uso4", "guest_uso6", "guest_hdrlen",
    "host_tso4", "host_tso6", "host_ecn", "host_ufo", "host_uso",
    "ctrl_vq", "ctrl_rx", "ctrl_rx_extra", "ctrl_vlan", "ctrl_mac_addr", "guest_announce", "mq",
    "rss", "ctrl_guest_offloads", "notf_coal", "vq_notf_coal", "device_stats", "hash_report",
)  # fmt: skip


@lru_cache(64)
def _pattern(length: int) -> bytes:
    return random.Random(length).randbytes(length)


class NetRules(Device):
    """A device that looks at every buffer with a network device's eyes, and moves none.

    mtu      what the configuration says
    fill     overwrite every posted receive buffer with a pattern, to see the driver write into it
    pairs    queue pairs that it has
    control  what it does by command
    """

    mtu: int | None = None
    pairs = 1
    control_size = 64
    control: ControlUnit
    fill = True
    _mtu_limit: int | None = None  # the MTU, if it was negotiated

    @property
    def header_bytes(self) -> int:
        """Of the virtio header before each frame, 5.1.6."""
        return HASHED_HEADER if self.accepted & HASH_REPORT else HEADER

    @property
    def control_index(self) -> int | None:
        """The number of the control queue, as negotiated (5.1.2)."""
        if not self.accepted & CTRL_VQ:
            return None
        return 2 * self.pairs if self.accepted & MANY_QUEUES else 2

    def queue_max_size(self, index: int) -> int:
        if index == self.control_index:
            return self.control_size
        return super().queue_max_size(index)

    def admit(self, queue: Virtqueue, chain: Chain) -> None:
        where = where_is(queue, chain)
        if queue.index == self.control_index:
            self._admit_command(chain, where)
        elif queue.index % 2:
            if self.accepted & MANY_QUEUES and queue.index // 2 >= self.control.pairs:
                rule = "a transmit queue is used once a command has turned it on"
                raise Violation(rule, "5.1.6.5.6.1", words(where))
            self._admit_transmit(chain, where)
        else:
            self._admit_receive(chain, where)

    def _admit_transmit(self, chain: Chain, where: Where) -> None:
        if chain.readable < len(chain.spans):
            raise Violation("transmit buffers are only read by the device", "5.1.6.2", words(where))
        for address, length in chain.spans:
            self._ledger.lend_shared(address, length, where)

    def _admit_command(self, chain: Chain, where: Where) -> None:
        for at, (address, length) in enumerate(chain.spans):
            if at < chain.readable:
                self._ledger.lend_shared(address, length, where)
            else:
                self._ledger.lend_exclusive(address, length, where)

    def _admit_receive(self, chain: Chain, where: Where) -> None:
        if chain.readable:
            seen = words(where)
            raise Violation("receive buffers are all written by the device", "5.1.6.3", seen)
        least = self._smallest_buffer()
        if chain.capacity < least:
            seen = f"{words(where)}: {chain.capacity} bytes"
            raise Violation(f"a receive buffer has {least} bytes at least", "5.1.6.3.1", seen)
        for (address, length), view in zip(chain.spans, chain.views, strict=True):
            self._ledger.lend_exclusive(address, length, where)
            if self.fill:
                view[:] = _pattern(length)

    def _smallest_buffer(self) -> int:
        if self.accepted & MRG_RXBUF:
            return self.header_bytes
        if self.accepted & GUEST_SEGMENTS:
            return self.header_bytes + LARGEST_FRAME
        payload = max(1500, self._mtu_limit or 0)
        return self.header_bytes + ETHERNET_HEADER + payload

    def _check_untouched(self, queue: Virtqueue, chain: Chain) -> None:
        if not self.fill:
            return
        for (address, length), view in zip(chain.spans, chain.views, strict=True):
            if bytes(view) != _pattern(length):
                seen = f"{words(where_is(queue, chain))}: {address:#x} + {length} was written"
                raise Violation("a posted receive buffer is left alone", "2.7.13, 3.3.1", seen)

    @examined
    def check(self) -> None:
        super().check()
        for index, queue in self.queues.items():
            receives = index % 2 == 0 and index != self.control_index
            for chain in queue.ready if receives else ():
                self._check_untouched(queue, chain)

    def release(self, queue: Virtqueue, chain: Chain) -> None:
        ledger = self._ledger
        for at, (address, length) in enumerate(chain.spans):
            if at < chain.readable:
                ledger.give_back_shared(address, length)
            else:
                ledger.give_back_exclusive(address, length)

    def _go_live(self) -> None:
        unspoken = self.accepted & ~SPOKEN
        if unspoken:
            raise NotImplementedError(f"the model does not act on features {unspoken:#x}")
        if not {0, 1} <= self.queues.keys():
            seen = f"enabled: {sorted(self.queues)}"
            raise Violation("the first queue pair is set up before DRIVER_OK", "5.1.5", seen)
        self._mtu_limit = self.mtu if self.accepted & MTU else None

    def _drop(self, index: int) -> None:
        super()._drop(index)
        self.control.forget(index)

    def _live(self, index: int) -> Virtqueue:
        if not self.running(index):
            raise RuntimeError(f"queue {index} does not run: no DRIVER_OK, or it was reset")
        return self.queues[index]

    def _give_back(self, queue: Virtqueue, done: list[tuple[Chain, int]]) -> None:
        wanted = queue.put(done)
        for chain, _ in done:
            self.release(queue, chain)
        if wanted:
            self.raise_interrupt(queue.index)


def where_is(queue: Virtqueue, chain: Chain) -> Where:
    return ("queue", queue.index, "index", chain.position, "head", chain.head)
