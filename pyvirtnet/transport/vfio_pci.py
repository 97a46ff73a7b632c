"""The virtio-pci transport over VFIO: modern registers, queues and MSI-X (VIRTIO 1.3, 4.1)."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial

from .. import spec
from ..errors import DeviceBroken, DeviceGone, DeviceTimeout, Error, NoIommu, NotVirtioNet
from ..spec import CommonCfg, Feature, PciCap, Status
from ..vfio.container import Iommu, container
from ..vfio.device import Device
from ..vfio.function import Function, find
from .base import Doorbell, QueueAddresses, Transport, check_status
from .pci_caps import NOWHERE, find_windows

RESET_SECONDS = 2.0
GENERATION_TRIES = 32
MAX_VECTORS = 129  # 64 queue pairs and configuration changes; more queues share

_WIDTHS = {  # of the common configuration's fields, 4.1.4.3
    CommonCfg.DEVICE_FEATURE_SELECT: 4,
    CommonCfg.DEVICE_FEATURE: 4,
    CommonCfg.DRIVER_FEATURE_SELECT: 4,
    CommonCfg.DRIVER_FEATURE: 4,
    CommonCfg.DEVICE_STATUS: 1,
    CommonCfg.CONFIG_GENERATION: 1,
}
_ADDRESS_PARTS = (CommonCfg.QUEUE_DESC, CommonCfg.QUEUE_DRIVER, CommonCfg.QUEUE_DEVICE)

# end offset and width of the fields of struct virtio_net_config, in runs of one width (5.1.4)
_CONFIG_RUNS = ((6, 1), (12, 2), (16, 4), (18, 1), (20, 2), (28, 4))


class VfioPciTransport(Transport):
    """A virtio-net function that this process took from the kernel."""

    def __init__(self, name: str, iommu: Iommu = container) -> None:
        function = find(name)
        _check_identity(function)
        self.name = function.bdf
        self._iommu = iommu
        self._take(function)

    def _take(self, function: Function) -> None:
        self._live = False  # DRIVER_OK was set, and no reset since
        self._accepted = 0
        self._config_vector_set = False
        self._common = self._notify = self._net = NOWHERE
        self._device = Device(function, self._iommu)
        try:
            self._find_structures()
            self.reset()
            self._device.set_dma(True)
            queues = self._read(CommonCfg.NUM_QUEUES)
            self._device.enable_interrupts(min(self._device.vectors, queues + 1, MAX_VECTORS))
        except BaseException:
            self.close()
            raise

    def check(self) -> None:
        self._device.check()
        if not self._live:
            return
        status = self.status()
        check_status(self.name, status)
        if not status & Status.DRIVER_OK:
            raise DeviceGone(
                f"lost {self.name}",
                f"its status reads {status:#x}: it was unplugged, or reset by somebody else",
                "port.reset() sets it up again, if it is there",
            )

    def let_go(self, why: DeviceGone) -> None:
        self._device.lose(why)

    def revive(self, seconds: float | None = None) -> None:
        if not self._device.closed:
            return
        function = find(self.name)
        _check_identity(function)
        self._take(function)

    def reset(self) -> None:
        self._live = False
        self._write(CommonCfg.DEVICE_STATUS, 0)
        self._config_vector_set = False
        self._accepted = 0
        end = time.monotonic() + RESET_SECONDS
        while self.status() != 0:
            if time.monotonic() > end:
                raise DeviceTimeout(
                    f"cannot reset {self.name}",
                    f"its status was not 0 after {RESET_SECONDS:g} s (4.1.4.3.2)",
                    "restart the virtual machine or its network back end",
                )
            time.sleep(0.001)

    def status(self) -> int:
        return self._read(CommonCfg.DEVICE_STATUS)

    def add_status(self, bits: int) -> None:
        self._write(CommonCfg.DEVICE_STATUS, self.status() | bits)
        self._live |= bool(bits & Status.DRIVER_OK)

    def offered_features(self) -> int:
        features = 0
        for select in (0, 1):
            self._write(CommonCfg.DEVICE_FEATURE_SELECT, select)
            features |= self._read(CommonCfg.DEVICE_FEATURE) << 32 * select
        return features

    def accept_features(self, features: int) -> None:
        if not features >> Feature.ACCESS_PLATFORM & 1:
            raise NoIommu(
                f"cannot drive {self.name}",
                "without ACCESS_PLATFORM the device goes past the IOMMU, and would take the "
                "addresses it is given for physical ones (6)",
                "QEMU: iommu_platform=on,disable-legacy=on for the NIC; leave access_platform on",
            )
        for select in (0, 1):
            self._write(CommonCfg.DRIVER_FEATURE_SELECT, select)
            self._write(CommonCfg.DRIVER_FEATURE, features >> 32 * select & 0xFFFFFFFF)
        self._accepted = features

    def read_config(self, offset: int, length: int) -> bytes:
        size = min(self._net.length, _CONFIG_RUNS[-1][0])
        if offset + length > size:
            raise self._broken(
                f"its configuration has {size} bytes, and byte {offset + length - 1} is needed"
            )
        for _ in range(GENERATION_TRIES):
            before = self._read(CommonCfg.CONFIG_GENERATION)
            data = self._config_fields(offset, length)
            if self._read(CommonCfg.CONFIG_GENERATION) == before:
                return data
        raise DeviceTimeout(
            f"cannot read the configuration of {self.name}",
            f"it changed in each of {GENERATION_TRIES} tries (2.5.1)",
            "open the port again; if it stays so, the device is broken",
        )

    def queue_max_size(self, index: int) -> int:
        if index >= self._read(CommonCfg.NUM_QUEUES):
            return 0
        self._write(CommonCfg.QUEUE_SELECT, index)
        size = self._read(CommonCfg.QUEUE_SIZE)
        if size > spec.MAX_SPLIT_QUEUE:
            raise self._broken(f"queue {index} claims {size} entries, more than 32768 (2.7)")
        return size

    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        size = addresses.size
        if size < 1 or (size & size - 1 and not self._accepted >> Feature.RING_PACKED & 1):
            raise ValueError(f"a split queue of {size} entries; it takes a power of two")
        largest = self.queue_max_size(index)
        if size > largest:
            raise self._broken(f"queue {index} has {largest} entries, and {size} are needed")
        self._set_config_vector()
        self._write(CommonCfg.QUEUE_SELECT, index)
        self._write(CommonCfg.QUEUE_SIZE, size)
        if self._read(CommonCfg.QUEUE_SIZE) != size:
            raise self._broken(f"queue {index} did not take a size of {size}")
        self._set_vector(CommonCfg.QUEUE_MSIX_VECTOR, self._vector(index))
        parts = (addresses.descriptors, addresses.driver, addresses.device)
        for field, address in zip(_ADDRESS_PARTS, parts, strict=True):
            self._write_address(field, address)
        doorbell = self._doorbell(index)
        self._write(CommonCfg.QUEUE_ENABLE, 1)  # last: everything else is set (4.1.4.3.2)
        return doorbell

    def interrupt_fd(self, index: int | None) -> int:
        vector = self._vector(index)
        return -1 if vector == spec.NO_VECTOR else self._device.eventfds[vector]

    def close(self) -> None:
        try:
            if self._common.length and not self._device.closed:
                with suppress(Error):  # gone, or stuck: the PCI function's reset ends its DMA
                    self.reset()
        finally:  # Ctrl-C in the middle included
            self._device.close()

    def abandon(self) -> None:
        """After fork, in the child: close what was inherited, without touching the device."""
        self._device.abandon()

    def _find_structures(self) -> None:
        windows = find_windows(self._device)
        self._common, self._notify = windows[PciCap.COMMON], windows[PciCap.NOTIFY]
        self._net = windows.get(PciCap.DEVICE, NOWHERE)

    def _vector(self, index: int | None) -> int:
        """The MSI-X vector of a queue, or of configuration changes (None)."""
        count = len(self._device.eventfds)
        if count == 0:
            return spec.NO_VECTOR
        if index is None or count == 1:
            return 0
        # An even count of queue vectors keeps receive queues apart from transmit queues.
        spare = count - 1 if count < 3 else count - 1 & ~1
        return index + 1 if index + 1 < count else 1 + index % spare

    def _set_config_vector(self) -> None:
        """Once after each reset, which unmaps all vectors (4.1.5.1.2)."""
        if not self._config_vector_set:
            self._set_vector(CommonCfg.CONFIG_MSIX_VECTOR, self._vector(None))
            self._config_vector_set = True

    def _set_vector(self, field: CommonCfg, vector: int) -> None:
        if self._device.vectors == 0:  # without MSI-X there is nothing to map
            return
        self._write(field, vector)
        if self._read(field) != vector:  # NO_VECTOR says that it failed (4.1.5.1.2.2)
            raise self._broken(f"it could not map MSI-X vector {vector}")

    def _doorbell(self, index: int) -> Doorbell:
        """Where queue_notify_off leads (4.1.4.4), checked to lie inside the capability."""
        notify = self._notify
        with_data = bool(self._accepted >> Feature.NOTIFICATION_DATA & 1)
        width = 4 if with_data else 2  # 4.1.5.2
        offset = self._read(CommonCfg.QUEUE_NOTIFY_OFF) * notify.multiplier
        if offset + width > notify.length or (notify.offset + offset) % width:
            raise self._broken(
                f"queue {index}'s doorbell at {offset:#x} is not in the {notify.length:#x} bytes "
                "of its notification structure"
            )
        address = self._device.address(notify.bar, notify.offset + offset, width)
        if address is not None:
            return Doorbell("mmio16", address, index, with_data)
        ring = partial(self._device.write, notify.bar, notify.offset + offset, width)
        return Doorbell("call", ring, index, with_data)

    def _config_fields(self, offset: int, length: int) -> bytes:
        """The fields that overlap the range, each read in its own width (4.1.3.1)."""
        data, start, position = b"", offset, 0
        bar, base = self._net.bar, self._net.offset
        for end, width in _CONFIG_RUNS:
            while position < min(end, offset + length):
                if position + width > offset:
                    start = position if not data else start
                    value = self._device.read(bar, base + position, width)
                    data += value.to_bytes(width, "little")
                position += width
        return data[offset - start : offset - start + length]

    def _read(self, field: CommonCfg) -> int:
        width = _WIDTHS.get(field, 2)
        value = self._device.read(self._common.bar, self._common.offset + field, width)
        self._check_present(value == (1 << 8 * width) - 1)
        return value

    def _write(self, field: CommonCfg, value: int) -> None:
        width = _WIDTHS.get(field, 2)
        self._device.write(self._common.bar, self._common.offset + field, width, value)

    def _write_address(self, field: CommonCfg, address: int) -> None:
        """A 64-bit field takes two 32-bit accesses (4.1.3.1)."""
        offset = self._common.offset + field
        self._device.write(self._common.bar, offset, 4, address & 0xFFFFFFFF)
        self._device.write(self._common.bar, offset + 4, 4, address >> 32)

    def _check_present(self, all_ones: bool) -> None:
        """Reads from a function that has gone give ones; a status of ones is never valid."""
        if not all_ones:
            return
        offset = self._common.offset + CommonCfg.DEVICE_STATUS
        if self._device.read(self._common.bar, offset, 1) == 0xFF:
            raise DeviceGone(
                f"lost {self.name}",
                "its registers read as all ones: it was unplugged, or its bridge is off",
                "when it is back: port.reset(), or close the port and open it again",
            )

    def _broken(self, why: str) -> DeviceBroken:
        return DeviceBroken(f"cannot drive {self.name}", why, "the device breaks the virtio rules")


def _check_identity(function: Function) -> None:
    """Vendor and device as in 4.1.2; any revision and any subsystem will do."""
    known = (spec.PCI_DEVICE_NET, spec.PCI_DEVICE_NET_TRANSITIONAL)
    if function.vendor != spec.PCI_VENDOR or function.device not in known:
        raise NotVirtioNet(
            f"cannot open {function.bdf}",
            f"it is {function.vendor:04x}:{function.device:04x}, not a virtio network device "
            "(1af4:1041 or 1af4:1000)",
            "tools/bind status lists the network functions of this machine",
        )
