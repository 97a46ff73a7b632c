"""What a vhost-user back end does with each message, over the device model; knows no sockets.

Written from the protocol's description; it shares no line with the front end. It maps the memory
whose file descriptors it is sent, and nothing else.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

from vhost_wire import CONFIG, MQ, PROTOCOL_FEATURES, SET_VRING_ADDR, STATUS, Message

from pyvirtnet.testing import MemoryMap, NetDevice, mask


@dataclass
class _Ring:
    size: int = 0
    base: int = 0
    parts: tuple[int, ...] = ()  # descriptors, used ring, available ring: the front end's addresses
    kick: int = -1
    call: int = -1
    enabled: bool = False


class Endpoint:
    """The device's end of a connection.

    agreed  protocol features, once the front end has chosen
    many    more queue pairs than one may be used
    rows    the memory table: address at the device, size, address at the front end, bytes
    """

    def __init__(self, device: NetDevice, protocol: int | None) -> None:
        self.device, self.protocol, self.agreed, self.many = device, protocol, 0, False
        self.rows: list[tuple[int, int, int, memoryview]] = []
        self.memory = MemoryMap()
        self.rings: dict[int, _Ring] = {}
        device.translate = self.memory.translate
        device.prompt_kicks = False
        device.interrupt = self._interrupt

    def let_go(self) -> None:
        """The front end has gone: everything of it is dropped."""
        for index in list(self.rings):
            self._forget(index)
        self.device.write_status(0)
        self.memory.replace(())
        self.rows = []

    def handle(self, message: Message) -> bytes | None:  # noqa: PLR0911
        """Do what it asks for; the payload of the answer, None if it has none."""
        device, payload = self.device, message.payload
        match message.request:
            case 1:  # GET_FEATURES
                extra = 0 if self.protocol is None else PROTOCOL_FEATURES
                return struct.pack("<Q", device.offered | extra)
            case 2:  # SET_FEATURES
                self._accept(struct.unpack("<Q", payload)[0])
            case 3:  # SET_OWNER
                pass
            case 5:  # SET_MEM_TABLE
                self._map(message)
            case 15:  # GET_PROTOCOL_FEATURES
                return struct.pack("<Q", self.protocol)
            case 16:  # SET_PROTOCOL_FEATURES
                (self.agreed,) = struct.unpack("<Q", payload)
                assert not self.agreed & ~(self.protocol or 0)
            case 17:  # GET_QUEUE_NUM
                assert self.agreed & MQ
                return struct.pack("<Q", device.pairs)
            case 24:  # GET_CONFIG
                return self._config(payload)
            case 39:  # SET_STATUS
                assert self.agreed & STATUS
                device.write_status(struct.unpack("<Q", payload)[0])
            case 40:  # GET_STATUS
                return struct.pack("<Q", device.read_status())
            case _:
                return self._ring_message(message)
        return None

    def _ring_message(self, message: Message) -> bytes | None:
        if message.request == SET_VRING_ADDR:
            index, flags, *parts, log = struct.unpack("<IIQQQQ", message.payload)
            assert not flags
            assert not log
            self._ring(index).parts = tuple(parts)
            return None
        index, value = struct.unpack("<II", message.payload)
        ring = self._ring(index)
        match message.request:
            case 8:  # SET_VRING_NUM
                ring.size = value
            case 10:  # SET_VRING_BASE
                ring.base = value
            case 11:  # GET_VRING_BASE
                base = self._forget(index)
                if not self.rings and not self.agreed & STATUS:
                    self.device.write_status(0)
                return struct.pack("<II", index, base)
            case 12:  # SET_VRING_KICK
                (ring.kick,) = map(os.dup, message.fds)
                self._start(index)
            case 13:  # SET_VRING_CALL
                (ring.call,) = map(os.dup, message.fds)
            case 18:  # SET_VRING_ENABLE
                ring.enabled = bool(value)
                self._live_without_status()
            case _:
                raise AssertionError(f"unknown request {message.request}")
        return None

    def _ring(self, index: int) -> _Ring:
        return self.rings.setdefault(index, _Ring())

    def _accept(self, features: int) -> None:
        assert bool(features & PROTOCOL_FEATURES) == (self.protocol is not None)
        self.many = bool(features & mask("mq"))
        features &= ~(PROTOCOL_FEATURES | mask("mq"))  # there is no control queue to go with it
        if self.agreed & STATUS:
            self.device.accept_features(features)
            return
        for status in (0, 1, 3):
            self.device.write_status(status)
        self.device.accept_features(features)
        self.device.write_status(11)
        assert self.device.read_status() == 11

    def _map(self, message: Message) -> None:
        count, zero = struct.unpack_from("<II", message.payload)
        assert zero == 0
        assert 1 <= count <= 8
        assert count == len(message.fds)
        rows = list(struct.iter_unpack("<QQQQ", message.payload[8:]))
        for iova, size, *_ in self.rows:
            if iova not in [row[0] for row in rows]:
                self.device.withdrawn(iova, size)
        self.rows = []
        for (iova, size, address, offset), fd in zip(rows, message.fds, strict=True):
            assert offset == 0
            self.rows.append((iova, size, address, memoryview(mmap.mmap(fd, size))))
        self.memory.replace((iova, view) for iova, _, _, view in self.rows)

    def _config(self, payload: bytes) -> bytes:
        assert self.agreed & CONFIG
        offset, length, flags = struct.unpack_from("<III", payload)
        assert len(payload) == 12 + length
        data = self.device.read_config(offset, length)
        return struct.pack("<III", offset, length, flags) + data

    def _start(self, index: int) -> None:
        ring = self.rings[index]
        desc, used, avail = (self._iova(part) for part in ring.parts)
        start = ring.base & 0xFFFF
        if self.device.accepted & mask("ring_packed"):  # bit 15 is the wrap counter
            assert ring.base >> 16 == start, "used descriptors begin where available ones do"
            start = (start & 0x7FFF) + (0 if start >> 15 else ring.size)
        self.device.start_index = start
        self.device.configure_queue(index, ring.size, desc, avail, used)
        self.device.enable(index)
        if self.protocol is None:
            ring.enabled = True
            self._live_without_status()

    def _live_without_status(self) -> None:
        if self.agreed & STATUS or len(self.device.queues) < 2 * self.device.pairs:
            return
        if all(ring.enabled for ring in self.rings.values()):
            self.device.write_status(15)

    def _forget(self, index: int) -> int:
        """Stop a ring; where its available index stood."""
        ring = self.rings.pop(index)
        for fd in (ring.kick, ring.call):
            if fd >= 0:
                os.close(fd)
        return self.device.queues[index].position if index in self.device.queues else 0

    def _iova(self, address: int) -> int:
        for iova, size, there, _ in self.rows:
            if there <= address < there + size:
                return iova + address - there
        raise AssertionError(f"{address:#x} is not in the memory table")

    def _interrupt(self, index: int | None) -> None:
        ring = self.rings.get(index) if index is not None else None
        if ring is not None and ring.call >= 0:
            os.eventfd_write(ring.call, 1)
