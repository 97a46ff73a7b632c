"""The driver's half of a packed virtqueue in plain Python, to prove the device model with."""

import struct

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 1 << 7, 1 << 15
ENABLE, DISABLE, DESC = 0, 1, 2
BASE = 0x1_0000_0000  # address of the driver's memory at the device
QUEUE_SPACE = 0x8000


class PackedRing:
    """Exposes and reaps as `model_driver.Queue` does; positions count descriptors without end."""

    def __init__(self, memory, index, *, size, start, in_order):
        self.memory, self.index, self.size = memory, index, size
        self.desc = BASE + index * QUEUE_SPACE
        self.avail, self.used = self.desc + 0x4000, self.desc + 0x5000  # the event structures
        self.free = list(range(size))
        self.chains = {}  # id: (descriptors, pieces, flags)
        self.pending = []  # flags of the first descriptors, to be written at last
        self.next = self.published = self.reaped = self.considered = start
        self.in_order = in_order

    # Raw memory

    def wrap(self, position):
        return 1 - position // self.size % 2

    def available(self, position):
        return AVAIL if self.wrap(position) else USED

    def address(self, position):
        return self.desc + 16 * (position % self.size) - BASE

    def describe(self, position, address, length, name, flags):
        """Write a whole descriptor, flags just as given."""
        struct.pack_into("<QIHH", self.memory, self.address(position), address, length, name, flags)

    def put_flags(self, position, flags):
        struct.pack_into("<H", self.memory, self.address(position) + 14, flags)

    def read(self, position):
        return struct.unpack_from("<QIHH", self.memory, self.address(position))

    def put16(self, address, value):
        struct.pack_into("<H", self.memory, address - BASE, value & 0xFFFF)

    def event(self, position, flags=DESC):
        """When to interrupt: the driver event suppression structure."""
        place = position % self.size | self.wrap(position) << 15
        struct.pack_into("<HH", self.memory, self.avail - BASE, place, flags)

    # What a driver does

    @property
    def position(self):
        return self.next % self.size | self.wrap(self.next) << 15

    @property
    def room(self):
        return self.size - (self.next - self.reaped)

    def add(self, *pieces, flags):
        """Expose a chain of (address, length) once `publish` is called; its id."""
        name = self.free.pop(0)
        self.chains[name] = (len(pieces), pieces, flags)
        for at, (address, length) in enumerate(pieces):
            own = flags | self.available(self.next) | (NEXT if at < len(pieces) - 1 else 0)
            if at == 0:
                self.pending.append((self.next, own))
                own = self.read(self.next)[3]
            self.describe(self.next, address, length, name, own)
            self.next += 1
        return name

    def publish(self):
        """Write the flags held back, first ones last; whether there is anything to kick for."""
        news = self.next != self.published
        for position, flags in reversed(self.pending):
            self.put_flags(position, flags)
        self.pending.clear()
        self.published = self.next
        return news

    def wants_kick(self):
        """What the device asked for, of all that was exposed since this was called last."""
        place, flags = struct.unpack_from("<HH", self.memory, self.used - BASE)
        first, self.considered = self.considered, self.next
        if flags == DESC:
            places = ((at % self.size) | self.wrap(at) << 15 for at in range(first, self.next))
            return place in places
        return flags == ENABLE

    def reap(self):
        """(pieces, bytes written) of each buffer used since the last call."""
        done = []
        while self.chains:
            _, length, name, flags = self.read(self.reaped)
            if flags & (AVAIL | USED) != (AVAIL | USED if self.wrap(self.reaped) else 0):
                break
            for passed in list(self.chains) if self.in_order else [name]:
                count, pieces, own = self.chains.pop(passed)
                self.free.append(passed)
                self.reaped += count
                whole = sum(size for _, size in pieces) if own & WRITE else 0
                written = length if flags & WRITE else 0
                done.append((pieces, written if passed == name else whole))
                if passed == name:
                    break
        return done
