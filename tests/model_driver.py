"""A small driver in plain Python, to prove the device model: it does as told, right or wrong."""

import re
import struct

import pytest
from model_packed_driver import BASE, QUEUE_SPACE, PackedRing

from pyvirtnet.testing import DEFAULT_FEATURES, MemoryMap, NetDevice, Violation, mask

SIZE = 4 << 20
BUFFERS = BASE + 0x40000
FRAMES = BASE + SIZE // 2  # transmitted frames lie here, each at its head's place
PAGE = 4096
NEXT, WRITE, INDIRECT = 1, 2, 4
HEADER = bytes(12)
FRAME = bytes(range(60))
PLAIN = mask("version_1", "access_platform", "mac", "status")
MERGED = PLAIN | mask("mrg_rxbuf")
INDIRECTS = MERGED | mask("indirect_desc")
EVENTS = MERGED | mask("event_idx")
PACKED, ORDERED = mask("ring_packed"), mask("in_order")


class Queue:
    """The driver's half of a split virtqueue."""

    def __init__(self, memory, index, size, start, features=0):
        self.features = features
        self.memory, self.index, self.size = memory, index, size
        self.desc = BASE + index * QUEUE_SPACE
        self.avail = self.desc + 0x4000
        self.used = self.desc + 0x5000
        self.free = list(range(size))
        self.chains = {}
        self.next = self.published = self.reaped = self.considered = start
        self.put16(self.avail + 2, start)
        self.put16(self.used + 2, start)

    def put16(self, address, value):
        struct.pack_into("<H", self.memory, address - BASE, value & 0xFFFF)

    def get16(self, address):
        return struct.unpack_from("<H", self.memory, address - BASE)[0]

    def describe(self, slot, address, length, flags=0, following=0):
        at = self.desc + 16 * slot - BASE
        struct.pack_into("<QIHH", self.memory, at, address, length, flags, following)

    def add(self, *pieces, flags):
        """Expose a chain of (address, length) once `publish` is called; its head."""
        slots = [self.free.pop(0) for _ in pieces]
        for at, (slot, (address, length)) in enumerate(zip(slots, pieces, strict=True)):
            last = at == len(slots) - 1
            self.describe(
                slot, address, length, flags | (0 if last else NEXT), 0 if last else slots[at + 1]
            )
        self.offer(slots[0])
        self.chains[slots[0]] = (slots, pieces, flags)
        return slots[0]

    def offer(self, head):
        self.put16(self.avail + 4 + 2 * (self.next % self.size), head)
        self.next = (self.next + 1) & 0xFFFF

    def publish(self):
        """Move the available index; whether there is anything to kick for."""
        news = self.next != self.published
        self.put16(self.avail + 2, self.next)
        self.published = self.next
        return news

    @property
    def position(self):
        return self.next

    @property
    def room(self):
        return len(self.free)

    def wants_kick(self):
        """What the device asked for, of all that was exposed since this was called last."""
        first, self.considered = self.considered, self.next
        if not self.features & mask("event_idx"):
            return not self.get16(self.used) & 1
        event = self.get16(self.used + 4 + 8 * self.size)
        return (event - first) % 65536 < (self.next - first) % 65536

    def reap(self):
        """(pieces, bytes written) of each buffer used since the last call."""
        done = []
        while self.reaped != self.get16(self.used + 2):
            at = self.used + 4 + 8 * (self.reaped % self.size) - BASE
            head, length = struct.unpack_from("<II", self.memory, at)
            in_order = self.features & ORDERED
            for passed in list(self.chains) if in_order else [head]:
                slots, pieces, flags = self.chains.pop(passed)
                self.free += slots
                whole = sum(size for _, size in pieces) if flags & WRITE else 0
                done.append((pieces, length if passed == head else whole))
                self.reaped = (self.reaped + 1) & 0xFFFF
                if passed == head:
                    break
        return done


class Driver:
    """Brings a `NetDevice` up step by step, posts buffers, sends and receives."""

    def __init__(self, device=None, *, size=8, features=None, **options):
        offered = DEFAULT_FEATURES | (features or 0)
        self.device = device or NetDevice(features=offered, queue_sizes=(size, size), **options)
        self.memory = bytearray(SIZE)
        self.map = MemoryMap([(BASE, memoryview(self.memory))])
        self.device.translate = self.map.translate
        self.size = size
        self.features = self.device.offered if features is None else features
        self.rx, self.tx = self.queue(0), self.queue(1)
        self.next_buffer = BUFFERS
        self.free_pages = []

    def queue(self, index):
        start = self.device.start_index
        if self.features & PACKED:
            in_order = bool(self.features & ORDERED)
            return PackedRing(self.memory, index, size=self.size, start=start, in_order=in_order)
        return Queue(self.memory, index, self.size, start, self.features)

    def kick(self, queue):
        if self.features & mask("notification_data"):
            self.device.notify(queue.index, queue.position)
        else:
            self.device.kick(queue.index)

    def expose(self, queue):
        """Publish, and kick if the device asked for it; whether it did."""
        wanted = queue.publish() and queue.wants_kick()
        if wanted:
            self.kick(queue)
        return wanted

    def steps(self):
        """What 3.1.1 asks for, in order, by name."""
        device = self.device
        return {
            "reset": lambda: device.write_status(0),
            "acknowledge": lambda: device.write_status(1),
            "driver": lambda: device.write_status(3),
            "features": lambda: device.accept_features(self.features),
            "features_ok": lambda: device.write_status(11),
            "read back": device.read_status,
            "queue 0": lambda: self.set_up(self.rx),
            "queue 1": lambda: self.set_up(self.tx),
            "driver_ok": lambda: device.write_status(15),
        }

    def up(self, until=None, without=()):
        for name, step in self.steps().items():
            if name == until:
                break
            if name not in without:
                step()
        return self

    def up_from(self, first):
        """The steps from `first` on."""
        names = list(self.steps())
        return self.up(without=names[: names.index(first)])

    def set_up(self, queue, **changes):
        areas = {"desc": queue.desc, "driver": queue.avail, "device": queue.used}
        self.device.configure_queue(queue.index, **({"size": queue.size} | areas | changes))
        self.device.enable(queue.index)

    def used_entry(self, queue, place):
        """(name, bytes written) as the device wrote it there, or something older."""
        if self.features & PACKED:
            return queue.read(place)[2:0:-1]
        at = queue.used + 4 + 8 * place - BASE
        return struct.unpack_from("<II", self.memory, at)

    def buffer(self, length=PAGE):
        address = self.next_buffer
        self.next_buffer += length
        return address

    def put(self, address, data):
        self.memory[address - BASE : address - BASE + len(data)] = data

    def get(self, address, length):
        return bytes(self.memory[address - BASE : address - BASE + length])

    def post(self, count=1, length=PAGE, kick=True):
        for _ in range(count):
            address = self.free_pages.pop() if self.free_pages else self.buffer(length)
            self.rx.add((address, length), flags=WRITE)
        if self.rx.publish() and kick:
            self.kick(self.rx)

    def send(self, *frames, header=HEADER, kick=True):
        for frame in frames:
            data = header + frame
            address = FRAMES + self.tx.free[0] * (SIZE // 2 // self.size)
            self.put(address, data)
            self.tx.add((address, len(data)), flags=0)
        if self.tx.publish() and kick:
            self.kick(self.tx)

    def receive(self):
        """Frames received, put together from their buffers."""
        frames, parts, left = [], [], 0
        for pieces, length in self.rx.reap():
            address, _ = pieces[0]
            data = self.get(address, length)
            self.free_pages.append(address)
            if not left:
                left, data = struct.unpack_from("<H", data, 10)[0], data[12:]
            parts.append(data)
            left -= 1
            if not left:
                frames.append(b"".join(parts))
                parts = []
        assert not left, "a frame's last buffers are missing"
        return frames


def broken(rule):
    return pytest.raises(Violation, match=re.escape(rule))


def breaks(act, rule, **options):
    """`act` on a driver breaks `rule`, and the device remembers it."""
    driver = Driver(**options)
    with broken(rule):
        act(driver)
    assert rule in str(driver.device.violations[0])
