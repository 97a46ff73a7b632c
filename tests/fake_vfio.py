"""A virtio-net function behind a VFIO device file, in Python: strict, and hostile when told to.

Written from the virtio specification, with constants of its own. It stands where the device's
file descriptor is, records every access, and lists each broken rule in `violations`.
"""

import mmap
import os
import struct
from contextlib import suppress

from fake_pci_config import DEVICE, NOTIFY, make_config, standard_capabilities

from pyvirtnet.vfio.container import Iommu

REGION_SHIFT = 40  # region i begins at i << 40 in the device file, as with vfio-pci
CONFIG_REGION = 7
BAR_SIZE = 0x4000

# struct virtio_pci_common_cfg: offset -> (width, name, may be written)
COMMON_FIELDS = {
    0x00: (4, "device_feature_select", True),
    0x04: (4, "device_feature", False),
    0x08: (4, "driver_feature_select", True),
    0x0C: (4, "driver_feature", True),
    0x10: (2, "config_msix_vector", True),
    0x12: (2, "num_queues", False),
    0x14: (1, "device_status", True),
    0x15: (1, "config_generation", False),
    0x16: (2, "queue_select", True),
    0x18: (2, "queue_size", True),
    0x1A: (2, "queue_msix_vector", True),
    0x1C: (2, "queue_enable", True),
    0x1E: (2, "queue_notify_off", False),
    0x20: (4, "queue_desc_lo", True),
    0x24: (4, "queue_desc_hi", True),
    0x28: (4, "queue_driver_lo", True),
    0x2C: (4, "queue_driver_hi", True),
    0x30: (4, "queue_device_lo", True),
    0x34: (4, "queue_device_hi", True),
    0x3A: (2, "queue_reset", True),
}
QUEUE_FIELDS = {name for _, name, _ in COMMON_FIELDS.values() if name.startswith("queue_")}
# widths of the fields of struct virtio_net_config by offset
NET_FIELDS = dict.fromkeys(range(6), 1) | {6: 2, 8: 2, 10: 2, 12: 4, 16: 1, 17: 1, 18: 2}
NET_CONFIG = bytes.fromhex("525400000001 0100 0200 dc05 10270000 01 00 0000")


class FakeVfio:
    """The device file. Attributes may be changed before or while a driver is at it."""

    def __init__(self, capabilities=None):
        self.fd = 1000
        self.features = 1 << 33 | 1 << 32 | 1 << 5 | 1 << 15 | 1 << 16
        self.queue_sizes = [256, 256, 64]
        self.notify_offs = [0, 1, 2]
        self.msix_count = 4
        self.can_reset = True
        self.mappable = True
        self.windows = None  # sparse mmap areas of BAR 4
        self.gone = False
        self.stuck_reset = self.unsettled = False
        self.refuse_vectors = self.fixed_sizes = False
        self.queue_resets = 1  # reads of queue_reset that still say 1
        self.events, self.accesses, self.violations = [], [], []
        self.pages = []  # what was mapped
        self.vectors = []  # the eventfds of SET_IRQS, for MSI-X
        self.free_vectors = 2048  # that the processors have left
        self.express = True  # and so can report errors
        self.alarms = {}  # the eventfds for errors (3) and for the kernel's wish (4)
        self.memory = os.memfd_create("bar4")
        os.ftruncate(self.memory, BAR_SIZE)
        os.pwrite(self.memory, NET_CONFIG, DEVICE)
        self.config = make_config(standard_capabilities() if capabilities is None else capabilities)
        self._virtio_reset()

    @property
    def closed(self):
        return self.fd < 0

    def close(self):
        if not self.closed:
            self.events.append("close")
        self.fd = -1

    def mmap(self, length, offset):
        self.events.append(("mmap", offset & (1 << REGION_SHIFT) - 1, length))
        self.pages.append(mmap.mmap(self.memory, length, offset=offset & (1 << REGION_SHIFT) - 1))
        return self.pages[-1]

    def notified(self, offset):
        """The 16 bits at an offset into the notification structure."""
        return struct.unpack("<H", os.pread(self.memory, 2, NOTIFY + offset))[0]

    def queue(self, index):
        return self._queues[index]

    def trigger(self, vector):
        os.eventfd_write(self.vectors[vector], 1)

    def alarm(self, index):
        os.eventfd_write(self.alarms[index], 1)

    # --- system calls -----------------------------------------------------------------------

    def pread(self, length, position):
        region, offset = position >> REGION_SHIFT, position & (1 << REGION_SHIFT) - 1
        self.accesses.append(("read", region, offset, length))
        if self.gone:
            return b"\xff" * length
        if region == CONFIG_REGION:
            return bytes(self.config[offset : offset + length])
        return self._bar_read(region, offset, length)

    def pwrite(self, data, position):
        region, offset = position >> REGION_SHIFT, position & (1 << REGION_SHIFT) - 1
        self.accesses.append(("write", region, offset, len(data)))
        value = int.from_bytes(data, "little")
        if region == CONFIG_REGION:
            if (offset, len(data)) != (4, 2):
                self.violations.append(f"write to PCI config offset {offset:#x}")
            self.config[offset : offset + len(data)] = data
            self.events.append("dma on" if value & 4 else "dma off")
        elif not self.gone:
            self._bar_write(region, offset, len(data), value)
        return len(data)

    def ioctl(self, request, argument=0):
        if request == 0x3B6F:
            self.events.append("reset")
            return 0
        view = memoryview(argument).cast("B")
        if request == 0x3B6B:  # VFIO_DEVICE_GET_INFO
            struct.pack_into("<III", view, 4, 2 | self.can_reset, 9, 5)
        elif request == 0x3B6C:
            self._region_info(view)
        elif request == 0x3B6D:  # VFIO_DEVICE_GET_IRQ_INFO
            self._irq_info(view)
        elif request == 0x3B6E:
            return self._set_irqs(view)
        else:
            raise AssertionError(f"ioctl {request:#x}")
        return 0

    def _region_info(self, view):
        (room, _, index) = struct.unpack_from("<III", view)
        size = {1: 0x1000, 4: BAR_SIZE, CONFIG_REGION: 256}.get(index, 0)
        flags = 3 | (4 if index == 4 and self.mappable else 0)
        chain = b""
        if index == 4 and self.windows is not None:
            flags |= 8
            areas = b"".join(struct.pack("<QQ", *area) for area in self.windows)
            chain = struct.pack("<HHIII", 1, 1, 0, len(self.windows), 0) + areas
        struct.pack_into("<IIII", view, 0, 32 + len(chain), flags, index, 0)
        struct.pack_into("<QQ", view, 16, size, index << REGION_SHIFT)
        if chain and room >= 32 + len(chain):
            struct.pack_into("<I", view, 12, 32)
            view[32 : 32 + len(chain)] = chain

    def _irq_info(self, view):
        (index,) = struct.unpack_from("<I", view, 8)
        assert index in (2, 3, 4), "MSI-X, errors, the kernel's wish to have it back"
        if index == 3 and not self.express:
            raise OSError(22, "Invalid argument")
        struct.pack_into("<I4xI", view, 4, 1 | 8, self.msix_count if index == 2 else 1)

    def _set_irqs(self, view):
        room, flags, index, start, count = struct.unpack_from("<IIIII", view)
        assert start == 0
        assert flags in (0x20 | 1, 0x20 | 4)
        assert room == len(view)
        if index in (3, 4):
            assert count == 1
            (self.alarms[index],) = struct.unpack_from("<i", view, 20)
            return 0
        assert index == 2
        assert count <= self.msix_count
        if count > self.free_vectors:
            return self.free_vectors
        self.vectors = list(struct.unpack_from(f"<{count}i", view, 20))
        self.events.append(f"irqs {count}")
        return 0

    # --- registers --------------------------------------------------------------------------

    def _bar_read(self, region, offset, width):
        assert region == 4
        if offset < 0x3C:
            return self._common_read(offset, width).to_bytes(width, "little")
        if DEVICE <= offset < DEVICE + len(NET_CONFIG):
            if NET_FIELDS.get(offset - DEVICE) != width:
                self.violations.append(f"{width}-byte read of net config at {offset - DEVICE}")
            return os.pread(self.memory, width, offset)
        raise AssertionError(f"read of BAR 4 at {offset:#x}")

    def _common_read(self, offset, width):
        return self._value(self._field(offset, width, "read")) & (1 << 8 * width) - 1

    def _value(self, name):
        state = self._state
        if name == "device_feature":
            return self.features >> 32 * state["device_feature_select"] & 0xFFFFFFFF
        if name == "num_queues":
            return len(self.queue_sizes)
        if name == "config_generation":
            state[name] = (state[name] + self.unsettled) & 0xFF
        if name == "queue_reset":
            return self._reset_progress()
        if name in QUEUE_FIELDS and name != "queue_select":
            return self._selected().get(name, 0)
        return state[name]

    def _reset_progress(self):
        """1 while the queue is being reset; with the first 0 it is as it was at first."""
        left = self._selected().get("queue_reset", 0)
        if not left:
            return 0
        self._selected()["queue_reset"] = left - 1
        if left == 1:
            index = self._state["queue_select"]
            self._queues[index] = self._fresh_queue(index)
            self.events.append(f"queue {index} reset")
        return int(left > 1)

    def _bar_write(self, region, offset, width, value):
        assert region == 4
        if offset >= NOTIFY:
            os.pwrite(self.memory, value.to_bytes(width, "little"), offset)
            return
        if DEVICE <= offset < DEVICE + len(NET_CONFIG):
            self.violations.append(f"write to net config at {offset - DEVICE}")
            return
        name = self._field(offset, width, "write")
        self._check_write(name, value)
        if name == "device_status":
            self._write_status(value)
        elif name == "queue_select":
            if value < len(self._queues):  # else it stays at the queue that was selected last
                self._state[name] = value
        elif name == "queue_size" and self.fixed_sizes:
            pass
        elif name == "queue_reset":
            self._selected()[name] = self.queue_resets + 1
        elif name.endswith("msix_vector"):
            target = self._selected() if name in QUEUE_FIELDS else self._state
            target[name] = 0xFFFF if self.refuse_vectors else value
        elif name in QUEUE_FIELDS:
            self._selected()[name] = value
        elif name == "driver_feature":
            shift = 32 * self._state["driver_feature_select"]
            self._state[name] |= value << shift
        else:
            self._state[name] = value

    def _check_write(self, name, value):
        queue = self._selected()
        if name == "queue_enable" and value != 1:
            self.violations.append("queue_enable written with other than 1")
        elif name == "queue_size" and (
            value == 0 or (value & value - 1 and not self._accepted(34))
        ):
            self.violations.append(f"queue_size {value}")
        elif name.endswith("msix_vector") and value != 0xFFFF and value >= self.msix_count:
            self.violations.append(f"vector {value} is past the table")
        if name == "queue_reset":
            if value != 1 or not queue.get("queue_enable") or not self._accepted(40):
                self.violations.append(f"queue_reset written with {value}")
        elif name in QUEUE_FIELDS and name != "queue_select" and queue.get("queue_enable"):
            self.violations.append(f"{name} written after queue_enable")

    def _accepted(self, bit):
        return self._state["driver_feature"] >> bit & 1

    def _write_status(self, value):
        if value == 0:
            self.events.append("virtio reset")
            if not self.stuck_reset:
                self._virtio_reset()
        else:
            if self._state["device_status"] & ~value:
                self.violations.append(f"status bits cleared: {value:#x}")
            self._state["device_status"] = value

    def _virtio_reset(self):
        self._state = {name: 0 for _, name, _ in COMMON_FIELDS.values()}
        self._state["config_msix_vector"] = 0xFFFF
        self._state["device_status"] = 0
        self._queues = [self._fresh_queue(index) for index in range(len(self.queue_sizes))]

    def _fresh_queue(self, index):
        size, place = self.queue_sizes[index], self.notify_offs[index]
        return {"queue_size": size, "queue_notify_off": place, "queue_msix_vector": 0xFFFF}

    def power(self, status):
        """Put the status somewhere: a device that a former driver left running."""
        self._state["device_status"] = status

    def state(self, name):
        return self._state[name]

    def _selected(self):
        with suppress(IndexError):
            return self._queues[self._state["queue_select"]]
        return {}

    def _field(self, offset, width, access):
        known = COMMON_FIELDS.get(offset)
        if known is None or known[0] != width:
            self.violations.append(f"{width}-byte {access} of common config at {offset:#x}")
            return known[1] if known else "device_status"
        if access == "write" and not known[2]:
            self.violations.append(f"write to {known[1]}")
        return known[1]


class FakeIommu(Iommu):
    """Hands out a FakeVfio and keeps no memory."""

    def __init__(self, file):
        self.file = file

    def open_device(self, function):
        self.file.events.append("open")
        return self.file

    def close_device(self, function):
        self.file.events.append("leave group")

    def abandon(self):
        self.file.events.append("abandon")

    def map(self, region):
        raise AssertionError("no memory here")

    def unmap(self, iova, size):
        raise AssertionError("no memory here")
