"""A legacy virtio-net function behind a VFIO device file (VIRTIO 4.1.4.10), strict."""

import struct

from fake_vfio import FakeVfio

SIZE = 0x40
ANY_LAYOUT = 27
# offset -> (width, name, may be written); device configuration follows at 20, or 24 with MSI-X
REGISTERS = {
    0: (4, "device_features", False),
    4: (4, "driver_features", True),
    8: (4, "pfn", True),
    12: (2, "queue_size", False),
    14: (2, "select", True),
    16: (2, "notify", True),
    18: (1, "status", True),
    20: (2, "config_vector", True),
    22: (2, "queue_vector", True),
}
NET_CONFIG = bytes.fromhex("525400000001 0100")  # MAC address, link up


class FakeLegacy(FakeVfio):
    def __init__(self):
        super().__init__(capabilities=[])
        self.features = 1 << 5 | 1 << 15 | 1 << 16 | 1 << ANY_LAYOUT
        self.queue_sizes = [256, 256]
        self.notifications = []
        self.answers = None  # called when the control queue is notified
        self.net_config = bytearray(NET_CONFIG)
        self.unsettled = False
        self._reset()

    def _reset(self):
        self.registers = dict.fromkeys((name for _, name, _ in REGISTERS.values()), 0)
        self.pfns = [0] * len(self.queue_sizes)
        self.queue_vectors = [0xFFFF] * len(self.queue_sizes)
        self.registers["config_vector"] = 0xFFFF

    def _region_info(self, view):
        if struct.unpack_from("<I", view, 8) != (0,):
            super()._region_info(view)
            return
        struct.pack_into("<IIIIQQ", view, 0, 32, 3, 0, 0, SIZE, 0)

    def _bar_read(self, region, offset, width):
        assert region == 0
        config = offset - (24 if self.vectors else 20)
        if config >= 0:
            if self.unsettled:
                self.registers["notify"] += 1
                return bytes([self.registers["notify"] & 0xFF])
            return bytes(self.net_config[config : config + width]).ljust(width, b"\0")
        return self._value(self._name(offset, width, "read")).to_bytes(width, "little")

    def _value(self, name):
        queue = self.registers["select"]
        there = queue < len(self.queue_sizes)
        if name == "device_features":
            return self.features
        if name == "queue_size":
            return self.queue_sizes[queue] if there else 0
        if name == "pfn":
            return self.pfns[queue]
        if name == "queue_vector":
            return 0xFFFF if self.refuse_vectors else self.queue_vectors[queue]
        return self.registers[name]

    def _bar_write(self, region, offset, width, value):
        assert region == 0
        config = offset - (24 if self.vectors else 20)
        if config >= 0:
            self.net_config[config : config + width] = value.to_bytes(width, "little")
            return
        name = self._name(offset, width, "write")
        queue = self.registers["select"]
        if name == "pfn":
            if self.pfns[queue]:
                self.violations.append(f"queue {queue} was in use")
            self.pfns[queue] = value
        elif name == "queue_vector":
            self.queue_vectors[queue] = value
        elif name == "notify":
            self.notifications.append(value)
            if self.answers is not None and value == 2:
                self.answers()
        elif name == "status" and value == 0:
            self.events.append("virtio reset")
            self._reset()
        else:
            if name == "status" and (self.registers[name] & ~value or value & 8):
                self.violations.append(f"status {value:#x}: bits taken back, or FEATURES_OK")
            self.registers[name] = value

    def _name(self, offset, width, access):
        expected, name, writable = REGISTERS[offset]
        if width != expected or (access == "write" and not writable):
            self.violations.append(f"{width}-byte {access} of {name}")
        if name.endswith("_vector") and not self.vectors:
            self.violations.append(f"{access} of {name} without MSI-X")
        return name
