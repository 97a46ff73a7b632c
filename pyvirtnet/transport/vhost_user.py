"""The vhost-user front end: DPDK, OVS-DPDK or VPP as the device, over a Unix socket.

The back end maps this process's DMA memory by its file descriptors and answers eventfds. It has
few registers: what others would say of status and features is kept here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from .. import dma
from ..errors import DeviceBroken, DeviceGone, DeviceTimeout, Error, FeatureMissing, OutOfMemory
from ..spec import MAX_SPLIT_QUEUE, Feature, Status
from .base import Doorbell, QueueAddresses, Transport
from .vhost_messages import MAX_CONFIG, Connection, Protocol, Request
from .vhost_socket import parse
from .vhost_table import MAX_REGIONS, MemoryTable

PROTOCOL_FEATURES = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES
WANTED_PROTOCOL = (Protocol.MQ, Protocol.REPLY_ACK, Protocol.CONFIG, Protocol.STATUS)
MAX_PAIRS = 0x8000  # 5.1.4.2
NO_CONTROL = (
    "a vhost-user back end moves frames and takes no commands: DPDK's virtio-user answers them "
    "itself, and changes nothing"
)
# Features that are read from a configuration space, which needs Protocol.CONFIG, and those that
# need an IOTLB, which this front end does not serve, or a control queue, which no back end does.
NEED_CONFIG = (Feature.MAC, Feature.STATUS, Feature.MTU, Feature.SPEED_DUPLEX)
NEVER = (
    Feature.ACCESS_PLATFORM,
    Feature.NOTIFICATION_DATA,
    Feature.CTRL_VQ,
    Feature.RING_RESET,
)
_EVENTFD = os.EFD_CLOEXEC | os.EFD_NONBLOCK


@dataclass
class _State:
    """What a reset forgets."""

    status: int = 0
    started: list[int] = field(default_factory=list)  # virtqueues


@dataclass(frozen=True)
class _Events:
    """The eventfds of a virtqueue. They outlive resets, so that nobody waits on a stale one."""

    kick: int
    call: int


class VhostUserTransport(Transport, dma.Mapper):
    """A port whose device is a process at the other end of a Unix socket."""

    default_ring_size = 256
    reconnects = True
    maps_files = True
    no_control_queue = NO_CONTROL

    def __init__(self, address: str) -> None:
        self._meeting = parse(address)
        self.name = f"vhost-user:{self._meeting.path}"
        self.reconnect = self._meeting.reconnect
        self._state = _State()
        self._closed = False
        self._claimed = 1
        self._coming: Connection | None = None  # asked, and has not answered yet
        self._events: dict[int, _Events] = {}
        self._table = MemoryTable()
        try:
            self._link = self._connect()
            dma.memory.attach(self)
        except BaseException:
            self._let_go()
            self._meeting.close()
            raise

    def _connect(self, seconds: float | None = None) -> Connection:
        """Who has not answered yet is asked no second time: the next call looks for the answer."""
        if seconds is None or (self._coming is not None and self._coming.overdue):
            self._forget_coming()
        link = self._coming or self._approach(self._meeting.wait if seconds is None else seconds)
        if seconds is not None and link.waits(seconds):
            raise link.silent()
        try:
            self._introduce(link)
        except BaseException:
            link.close()
            raise
        finally:
            self._coming = None
        return link

    def _approach(self, seconds: float) -> Connection:
        link = Connection(self._meeting.link(seconds), self._meeting.path)
        try:
            link.ask_ahead(Request.GET_FEATURES)
        except BaseException:
            link.close()
            raise
        self._coming = link
        return link

    def _introduce(self, link: Connection) -> None:
        """Agree on the protocol; none of it can be changed later."""
        self._offered = link.ask_u64(Request.GET_FEATURES)
        self._protocol = frozenset[Protocol]()
        self._max_pairs = 1
        if self._offered & PROTOCOL_FEATURES:
            bits = link.ask_u64(Request.GET_PROTOCOL_FEATURES)
            self._protocol = frozenset(p for p in WANTED_PROTOCOL if bits >> p & 1)
            link.tell_u64(Request.SET_PROTOCOL_FEATURES, sum(1 << p for p in self._protocol))
            link.acknowledged = Protocol.REPLY_ACK in self._protocol
        link.tell(Request.SET_OWNER)
        if Protocol.MQ in self._protocol:
            self._max_pairs = link.ask_u64(Request.GET_QUEUE_NUM)
            if not 1 <= self._max_pairs <= MAX_PAIRS:
                raise DeviceBroken(
                    f"{self.name} cannot be set up", f"it claims {self._max_pairs} queue pairs"
                )

    @property
    def max_pairs(self) -> int:  # type: ignore[override]
        return self._max_pairs

    def claim_pairs(self, pairs: int) -> None:
        self._claimed = pairs

    def check(self) -> None:
        self._link.check()

    def alarm_fds(self) -> Sequence[int]:
        return (self._link.fileno(),)  # it hangs up when the back end dies

    def may_write(self, error: Error) -> bool:
        """It maps our memory, and whether we still talk to it is nothing to it."""
        return not self._link.hung_up

    def let_go(self, why: DeviceGone) -> None:
        self._forget_coming()

    def _forget_coming(self) -> None:
        link, self._coming = self._coming, None
        if link is not None:
            link.close()

    def revive(self, seconds: float | None = None) -> None:
        with suppress(Error):
            self._link.check()
            return
        self._link.close()
        self._state = _State()
        self._link = self._connect(seconds)
        try:
            if len(self._table):
                self._link.tell_composed(Request.SET_MEM_TABLE, self._table.compose)
        except BaseException:
            self._link.close()  # or it would pass for one that knows the memory
            raise

    # Memory

    def map(self, region: dma.Region) -> None:
        if len(self._table) >= MAX_REGIONS:
            raise OutOfMemory(
                f"{self.name} cannot be shown more DMA memory",
                f"a vhost-user memory table has {MAX_REGIONS} regions, and all are in use",
                "drop bursts, open fewer ports in this process, or allocate fewer, larger bursts",
            )
        self._table.add(region)
        if self._link.interrupted:  # by a signal handler, which cannot wait for what it interrupted
            self._link.tell_soon(Request.SET_MEM_TABLE, self._table.compose)
            return
        try:
            self._link.tell_composed(Request.SET_MEM_TABLE, self._table.compose)
        except (DeviceGone, DeviceTimeout, DeviceBroken):
            # This port will say so; others go on. `revive` sends the whole table, unless it was
            # only that other threads took too long.
            if self._link.failure is None:
                self._link.tell_soon(Request.SET_MEM_TABLE, self._table.compose)
        except BaseException:
            self._table.remove(region.iova)
            raise

    def unmap(self, iova: int, size: int) -> None:
        self._table.remove(iova)
        if len(self._table):
            self._link.tell_soon(Request.SET_MEM_TABLE, self._table.compose)

    # Registers

    def reset(self) -> None:
        state, self._state = self._state, _State()
        for index in state.started:
            # The answer comes once the back end has stopped the ring.
            self._link.ask_vring_state(Request.GET_VRING_BASE, index)
        if Protocol.STATUS in self._protocol:
            self._link.tell_u64(Request.SET_STATUS, 0)

    def status(self) -> int:
        if Protocol.STATUS not in self._protocol:
            return self._state.status
        status = self._link.ask_u64(Request.GET_STATUS)
        if status > 0xFF:
            raise DeviceBroken(f"{self.name} cannot be set up", f"its status reads {status:#x}")
        return status

    def add_status(self, bits: int) -> None:
        self._state.status |= bits
        if Protocol.STATUS in self._protocol:
            self._link.tell_u64(Request.SET_STATUS, self._state.status)
        if bits & Status.DRIVER_OK and self._offered & PROTOCOL_FEATURES:
            for index in self._state.started:
                self._link.tell_vring_state(Request.SET_VRING_ENABLE, index, 1)

    def offered_features(self) -> int:
        hidden = NEVER if Protocol.CONFIG in self._protocol else NEED_CONFIG + NEVER
        return self._offered & ~PROTOCOL_FEATURES & ~sum(1 << feature for feature in hidden)

    def accept_features(self, features: int) -> None:
        self._packed = bool(features >> Feature.RING_PACKED & 1)
        kept = PROTOCOL_FEATURES
        if self._claimed > 1:  # a back end that is told nothing of MQ may drop all pairs but one
            kept |= 1 << Feature.MQ
        self._link.tell_u64(Request.SET_FEATURES, features | self._offered & kept)

    def read_config(self, offset: int, length: int) -> bytes:
        if Protocol.CONFIG not in self._protocol or offset + length > MAX_CONFIG:
            raise FeatureMissing(
                f"{self.name} has no configuration space",
                "its back end does not offer VHOST_USER_PROTOCOL_F_CONFIG",
            )
        return self._link.get_config(offset, length)

    # Queues

    def queue_max_size(self, index: int) -> int:
        return MAX_SPLIT_QUEUE if index < 2 * self._max_pairs else 0

    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        link, events = self._link, self._events_of(index)
        link.tell_vring_state(Request.SET_VRING_NUM, index, addresses.size)
        base = self.start_index
        if self._packed:  # place and wrap counter, of the available side and again of the used one
            laps, place = divmod(base, addresses.size)
            base = (place | (0 if laps & 1 else 1 << 15)) * 0x10001
        link.tell_vring_state(Request.SET_VRING_BASE, index, base)
        parts = (addresses.descriptors, addresses.device, addresses.driver)
        link.set_vring_addr(index, *(self._table.address(part) for part in parts))
        link.set_vring_fd(Request.SET_VRING_CALL, index, events.call)
        self._state.started.append(index)
        link.set_vring_fd(Request.SET_VRING_KICK, index, events.kick)  # this starts the ring
        return Doorbell("eventfd", events.kick, index)

    def interrupt_fd(self, index: int | None) -> int:
        return self._events[index].call if index in self._events else -1

    def _events_of(self, index: int) -> _Events:
        if index not in self._events:
            self._events[index] = _Events(os.eventfd(0, _EVENTFD), os.eventfd(0, _EVENTFD))
        events = self._events[index]
        for fd in (events.kick, events.call):
            with suppress(OSError):  # of a life before a reset; the back end may have made it block
                os.preadv(fd, [bytearray(8)], -1, os.RWF_NOWAIT)
        return events

    # Life

    def close(self) -> None:
        if self._closed:
            return
        with suppress(Error):
            self.reset()
        dma.memory.detach(self)
        self._let_go()
        self._meeting.close()

    def abandon(self) -> None:
        self._let_go()
        self._meeting.abandon()

    def _let_go(self) -> None:
        self._closed = True
        for link in (getattr(self, "_link", None), self._coming):
            if link is not None:
                link.close()
        while self._events:  # each closed once, even if another thread forks in between
            _, events = self._events.popitem()
            os.close(events.kick)
            os.close(events.call)
        self._table.close()
