"""The vhost-user front end: DPDK, OVS-DPDK or VPP as the device, over a Unix socket.

The back end maps this process's DMA memory by its file descriptors and answers eventfds. It has
no registers: what a status or a feature register would say is kept here.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field

from .. import dma
from ..errors import DeviceGone, FeatureMissing, OutOfMemory
from ..spec import Feature, Status
from .base import Doorbell, QueueAddresses, Transport
from .vhost_messages import Connection, Protocol, Request

PROTOCOL_FEATURES = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES
WANTED_PROTOCOL = (Protocol.MQ, Protocol.REPLY_ACK, Protocol.CONFIG, Protocol.STATUS)
MAX_REGIONS = 8  # a memory table has no more
# Features that are read from a configuration space, which needs Protocol.CONFIG, and those that
# need an IOTLB, which this front end does not serve.
NEED_CONFIG = (Feature.MAC, Feature.STATUS, Feature.MTU, Feature.SPEED_DUPLEX)
NEVER = (Feature.ACCESS_PLATFORM,)


@dataclass
class _Ring:
    """What one virtqueue has at the back end."""

    kick: int
    call: int
    started: bool = False


@dataclass
class _State:
    """What registers would hold."""

    status: int = 0
    features: int = 0
    rings: dict[int, _Ring] = field(default_factory=dict)


class VhostUserTransport(Transport, dma.Mapper):
    """A port whose device is a process at the other end of a Unix socket."""

    default_ring_size = 256

    def __init__(self, path: str) -> None:
        self.name = f"vhost-user:{path}"
        self._state = _State()
        self._closed = False
        self._table: list[dma.Region] = []
        self._connection = Connection(path)
        try:
            self._introduce()
            dma.memory.attach(self)
        except BaseException:
            self._connection.close()
            raise

    def _introduce(self) -> None:
        """Agree on the protocol; none of it can be changed later."""
        link = self._connection
        self._offered = link.ask_u64(Request.GET_FEATURES)
        self._protocol = frozenset[Protocol]()
        if self._offered & PROTOCOL_FEATURES:
            bits = link.ask_u64(Request.GET_PROTOCOL_FEATURES)
            self._protocol = frozenset(p for p in WANTED_PROTOCOL if bits >> p & 1)
            link.tell_u64(Request.SET_PROTOCOL_FEATURES, sum(1 << p for p in self._protocol))
            link.acknowledged = Protocol.REPLY_ACK in self._protocol
        link.tell(Request.SET_OWNER)

    # Memory

    def map(self, region: dma.Region) -> None:
        if len(self._table) >= MAX_REGIONS:
            raise OutOfMemory(
                f"{self.name} cannot be shown more DMA memory",
                f"a vhost-user memory table has {MAX_REGIONS} regions",
                "open fewer ports in this process, or allocate fewer large bursts",
            )
        self._table.append(region)
        self._send_table()

    def unmap(self, iova: int, size: int) -> None:
        self._table = [region for region in self._table if region.iova != iova]
        with suppress(DeviceGone):  # a back end that has gone has nothing mapped
            self._send_table()

    def _send_table(self) -> None:
        if self._table:
            self._connection.set_mem_table(self._table)

    # Registers

    def reset(self) -> None:
        for index, ring in self._state.rings.items():
            if ring.started:
                # The reply comes once the back end has stopped the ring.
                self._connection.ask_vring_state(Request.GET_VRING_BASE, index)
            os.close(ring.kick)
            os.close(ring.call)
        self._state = _State()
        if Protocol.STATUS in self._protocol:
            self._connection.tell_u64(Request.SET_STATUS, 0)

    def status(self) -> int:
        return self._state.status

    def add_status(self, bits: int) -> None:
        self._state.status |= bits
        if Protocol.STATUS in self._protocol:
            self._connection.tell_u64(Request.SET_STATUS, self._state.status)
        if bits & Status.DRIVER_OK and self._offered & PROTOCOL_FEATURES:
            for index in self._state.rings:
                self._connection.tell_vring_state(Request.SET_VRING_ENABLE, index, 1)

    def offered_features(self) -> int:
        hidden = NEVER if Protocol.CONFIG in self._protocol else NEED_CONFIG + NEVER
        return self._offered & ~PROTOCOL_FEATURES & ~sum(1 << feature for feature in hidden)

    def accept_features(self, features: int) -> None:
        self._state.features = features
        self._connection.tell_u64(
            Request.SET_FEATURES, features | (self._offered & PROTOCOL_FEATURES)
        )

    def read_config(self, offset: int, length: int) -> bytes:
        if Protocol.CONFIG not in self._protocol:
            raise FeatureMissing(
                f"{self.name} has no configuration space",
                "its back end does not offer VHOST_USER_PROTOCOL_F_CONFIG",
            )
        return self._connection.get_config(offset, length)

    # Queues

    def queue_max_size(self, index: int) -> int:
        return 32768 if index < 2 else 0

    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        link = self._connection
        ring = _Ring(os.eventfd(0, _EVENTFD), os.eventfd(0, _EVENTFD))
        self._state.rings[index] = ring
        link.tell_vring_state(Request.SET_VRING_NUM, index, addresses.size)
        link.tell_vring_state(Request.SET_VRING_BASE, index, self.start_index)
        here = [self._address(part) for part in _parts(addresses)]
        link.set_vring_addr(index, *here)
        link.set_vring_fd(Request.SET_VRING_CALL, index, ring.call)
        link.set_vring_fd(Request.SET_VRING_KICK, index, ring.kick)
        ring.started = True
        return Doorbell("eventfd", ring.kick, index)

    def _address(self, iova: int) -> int:
        """Rings are named by their address in this process, buffers by their IOVA."""
        for region in self._table:
            if region.iova <= iova < region.iova + region.size:
                return region.address + iova - region.iova
        raise AssertionError(f"{iova:#x} is no DMA memory")

    def interrupt_fd(self, index: int | None) -> int:
        ring = self._state.rings.get(index) if index is not None else None
        return ring.call if ring else -1

    # Life

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(DeviceGone):
            self.reset()
        dma.memory.detach(self)
        self._table = []
        self._connection.close()

    def abandon(self) -> None:
        self._closed = True
        for ring in self._state.rings.values():
            os.close(ring.kick)
            os.close(ring.call)
        self._state = _State()
        self._table = []
        self._connection.close()


_EVENTFD = os.EFD_CLOEXEC | os.EFD_NONBLOCK


def _parts(addresses: QueueAddresses) -> tuple[int, int, int]:
    """In the order of VHOST_USER_SET_VRING_ADDR: descriptors, used, available."""
    return addresses.descriptors, addresses.device, addresses.driver
