"""The device under the fuzzed port: its registers here, its rings in C, its memory mapped apart."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from threading import RLock

from .. import dma
from ..dma import Region
from ..errors import DeviceGone, DeviceTimeout
from ..spec import Feature, NetConfig, Status
from ..testing._liar import Liar
from ..transport.base import Doorbell, QueueAddresses, Transport

LIKELY = (Feature.MAC, Feature.STATUS, Feature.MTU, Feature.SPEED_DUPLEX, Feature.MRG_RXBUF)
COMMANDS = (
    Feature.CTRL_RX,
    Feature.CTRL_RX_EXTRA,
    Feature.CTRL_MAC_ADDR,
    Feature.GUEST_ANNOUNCE,
    Feature.MQ,
    Feature.RSS,
    Feature.NOTF_COAL,
    Feature.VQ_NOTF_COAL,
    Feature.DEVICE_STATS,
)
AT_TIMES = (
    Feature.CTRL_VQ,
    Feature.RING_PACKED,
    Feature.IN_ORDER,
    Feature.EVENT_IDX,
    Feature.INDIRECT_DESC,
    Feature.NOTIFICATION_DATA,
    Feature.RING_RESET,
)
ON_REQUEST = (
    Feature.CSUM,
    Feature.HOST_TSO4,
    Feature.HOST_USO,
    Feature.GUEST_CSUM,
    Feature.GUEST_TSO4,
    Feature.GUEST_USO6,
    Feature.HASH_REPORT,
)
CONTROL = 2  # the control queue's place, whatever its index is
LEGACY = 0.1  # of devices
STARTS = (0, 0xFFF0, 0x7FFF)
BELLS = ("call", "eventfd", "mmio16")


class FuzzDevice(Transport, dma.Mapper):
    """A device that lies with a chance of `lies` a step, and with a hundredth of that in registers.

    liar        serves the rings, a few steps at a time
    accomplice  writes memory at the same time, in a thread of its own, if anybody lets it
    on_kick     called in the middle of the driver's call, where the doorbell is a call
    """

    def __init__(self, random: Random, lies: float) -> None:
        self.name = "fuzz:device"
        self.start_index = random.choice((*STARTS, random.randrange(1 << 16)))
        self.liar = Liar(random.getrandbits(64), lies)
        self.accomplice = Liar(random.getrandbits(64), 0.9, polite=random.random() < 0.7)
        self._lock, self._aside = RLock(), RLock()  # of either one's idea of memory
        self.on_kick: Callable[[], object] | None = None
        self.closed = self._resting = False
        self._lies, self._random = lies, Random(random.random())
        self._whims = Random(random.random())  # of answers to what is asked at times
        self._bits = _features(random)
        if random.random() < LEGACY:
            self._become_legacy()
        self._size = 1 << random.choice((1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 10))
        if self._bits >> Feature.RING_PACKED & 1:
            self._size += random.randrange(self._size)
        self._mtu = random.choice((68, 1500, 9000, 65535))
        self._pairs = random.choice((1, 1, 2, 0x8000))
        self._bell = random.choice(BELLS)
        self._bar = ctypes.c_uint32()  # what an mmio16 doorbell stores to
        self._accepted = self._status = 0
        self._maps: dict[int, mmap.mmap] = {}
        self._fds: dict[int | None, int] = {}
        dma.memory.attach(self)

    def _become_legacy(self) -> None:
        """Registers and rings as before virtio 1.0: 32 features, used rings begin a page."""
        self._bits = self._bits & 0xFFFFFFFF | 1 << Feature.VERSION_1
        self.ring_alignment, self.plain_header_bytes, self.writable_mac = 4096, 10, True

    def act(self, turns: int) -> None:
        """So many turns of the device, and an interrupt at times."""
        with self._lock:
            self.liar.act(turns)
            if (fd := self._fds.get(0)) is not None and self._random.random() < 0.1:
                os.eventfd_write(fd, 1)

    def meddle(self, turns: int, pause: int) -> None:
        """So many turns of the accomplice, with up to `pause` moments of idleness after each."""
        with self._aside:
            self.accomplice.act(turns, pause)

    def rest(self) -> None:
        """Answer truly from now on, and do nothing else."""
        self._lies = 0.0
        self._resting = True

    @contextmanager
    def _liars(self) -> Iterator[tuple[Liar, Liar]]:
        with self._lock, self._aside:
            yield self.liar, self.accomplice

    # What the device sees of memory: a mapping of its own, as behind an IOMMU.

    def map(self, region: Region) -> None:
        memory = mmap.mmap(region.fd, region.size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        with self._liars() as liars:
            for liar in liars:
                liar.map(region.iova, region.size, address)
            self._maps[region.iova] = memory

    def unmap(self, iova: int, size: int) -> None:
        with self._liars() as liars:
            for liar in liars:
                liar.unmap(iova)
            self._maps.pop(iova, None)

    # Registers

    def check(self) -> None:
        if self._whims.random() < self._lies / 100:
            raise DeviceGone(f"{self.name} is gone", "it says so", "reset it")

    def reset(self) -> None:
        if self._lie():
            raise DeviceTimeout(f"{self.name} did not reset", "its status does not read 0")
        with self._liars() as liars:
            for liar in liars:
                liar.disable(0)
                liar.disable(1)
        self._status = 0

    def status(self) -> int:
        return self._random.getrandbits(8) if self._lie() else self._status

    def add_status(self, bits: int) -> None:
        self._status |= bits
        if self._lie():
            self._status &= ~Status.FEATURES_OK

    def offered_features(self) -> int:
        return self._random.getrandbits(64) if self._lie() else self._bits

    def accept_features(self, features: int) -> None:
        self._accepted = features

    def read_config(self, offset: int, length: int) -> bytes:
        config = bytearray(self._random.randbytes(32))
        fixed = {NetConfig.MTU: self._mtu, NetConfig.MAX_QUEUE_PAIRS: self._pairs}
        for at, value in fixed.items():
            config[at : at + 2] = value.to_bytes(2, "little")
        return bytes(config[offset : offset + length])

    def write_config(self, offset: int, data: bytes) -> None:
        """Nothing that is written stays."""

    def queue_max_size(self, index: int) -> int:
        if self._lie():
            return self._random.choice((0, 1, 3, 255, 1 << 16, self._random.getrandbits(16)))
        return self._size

    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        with self._liars() as liars:
            for liar in liars:
                liar.enable(
                    min(index, CONTROL),
                    addresses.size,
                    addresses.descriptors,
                    addresses.driver,
                    addresses.device,
                    start=self.start_index,
                    packed=self._has(Feature.RING_PACKED),
                    in_order=self._has(Feature.IN_ORDER),
                    mergeable=self._has(Feature.MRG_RXBUF),
                    header=self._header_bytes,
                    fields=self._has(Feature.GUEST_CSUM),
                )
        data = self._has(Feature.NOTIFICATION_DATA)
        if self._bell == "call" or index >= CONTROL:
            return Doorbell("call", self._kicked, index, data)
        if self._bell == "eventfd":
            return Doorbell("eventfd", self.interrupt_fd(index + CONTROL), index)
        return Doorbell("mmio16", ctypes.addressof(self._bar), index, data)

    def reset_queue(self, index: int) -> None:
        if self._lie():
            raise DeviceTimeout(f"{self.name} did not reset queue {index}", "queue_reset is not 0")
        with self._liars() as liars:
            for liar in liars:
                liar.disable(min(index, CONTROL))

    def interrupt_fd(self, index: int | None) -> int:
        if self.closed:
            raise DeviceGone(f"{self.name} is closed", "its port was closed", "open it again")
        if index not in self._fds:
            self._fds[index] = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        return self._fds[index]

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            dma.memory.detach(self)
            self._forget()

    def abandon(self) -> None:
        self.closed = True
        self._lock, self._aside = RLock(), RLock()  # whoever held them is not in this process
        self._forget()

    def _forget(self) -> None:
        for iova in list(self._maps):
            self.unmap(iova, 0)
        with self._lock:
            for fd in self._fds.values():
                os.close(fd)
            self._fds.clear()

    def _kicked(self, index: int) -> None:
        if self._resting:
            self.liar.answer()
            return
        self.act(self._random.randrange(8) if index & 0xFFFF < CONTROL else 40)
        if self.on_kick is not None:
            self.on_kick()

    @property
    def _header_bytes(self) -> int:
        if self._has(Feature.HASH_REPORT):
            return 20
        return 12 if self._has(Feature.MRG_RXBUF) else self.plain_header_bytes

    def _has(self, feature: Feature) -> bool:
        return bool(self._accepted >> feature & 1)

    def _lie(self) -> bool:
        return self._random.random() < self._lies / 100


def _features(random: Random) -> int:
    """What a device offers; a driver can take any of it."""
    bits = 1 << Feature.VERSION_1
    for features, chance in ((LIKELY, 0.8), (COMMANDS, 0.8), (AT_TIMES, 0.4), (ON_REQUEST, 0.5)):
        bits |= sum(1 << feature for feature in features if random.random() < chance)
    return bits
