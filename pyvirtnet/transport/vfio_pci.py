"""The virtio-pci transport over VFIO: modern registers, queues and MSI-X (VIRTIO 1.3, 4.1)."""

from __future__ import annotations

from functools import partial

from .. import spec
from ..errors import DeviceGone, DeviceTimeout, NoIommu
from ..spec import CommonCfg, Feature, PciCap
from .base import Doorbell, QueueAddresses
from .pci_caps import NOWHERE, find_windows
from .pci_function import PciTransport

GENERATION_TRIES = 32

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


class VfioPciTransport(PciTransport):
    """A virtio-net function with the registers of virtio 1.0 and later."""

    def reset(self) -> None:
        self._accepted = 0
        super().reset()

    def status(self) -> int:
        return self._read(CommonCfg.DEVICE_STATUS)

    def offered_features(self) -> int:
        features = 0
        for select in (0, 1):
            self._write(CommonCfg.DEVICE_FEATURE_SELECT, select)
            features |= self._read(CommonCfg.DEVICE_FEATURE) << 32 * select
        if self._common.length < CommonCfg.QUEUE_RESET + 2:  # no register for it, no such feature
            features &= ~(1 << Feature.RING_RESET)
        return features

    def accept_features(self, features: int) -> None:
        if not features >> Feature.ACCESS_PLATFORM & 1 and not self._iommu.physical:
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
        if index >= self._queue_count():
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
        self._write(CommonCfg.QUEUE_SIZE, size)
        if self._read(CommonCfg.QUEUE_SIZE) != size:
            raise self._broken(f"queue {index} did not take a size of {size}")
        self._set_vectors(index)
        parts = (addresses.descriptors, addresses.driver, addresses.device)
        for field, address in zip(_ADDRESS_PARTS, parts, strict=True):
            self._write_address(field, address)
        doorbell = self._doorbell(index)
        self._write(CommonCfg.QUEUE_ENABLE, 1)  # last: everything else is set (4.1.4.3.2)
        return doorbell

    def reset_queue(self, index: int) -> None:
        self._write(CommonCfg.QUEUE_SELECT, index)
        self._write(CommonCfg.QUEUE_RESET, 1)
        what = f"cannot reset queue {index} of {self.name}"
        self._await_zero(partial(self._read, CommonCfg.QUEUE_RESET), what, "queue_reset")

    def _find_registers(self) -> None:
        windows = find_windows(self._device)
        self._common, self._notify = windows[PciCap.COMMON], windows[PciCap.NOTIFY]
        self._net = windows.get(PciCap.DEVICE, NOWHERE)

    def _queue_count(self) -> int:
        return self._read(CommonCfg.NUM_QUEUES)

    def _write_status(self, status: int) -> None:
        self._write(CommonCfg.DEVICE_STATUS, status)

    def _write_vector(self, index: int | None, vector: int) -> int:
        field = CommonCfg.CONFIG_MSIX_VECTOR if index is None else CommonCfg.QUEUE_MSIX_VECTOR
        self._write(field, vector)
        return self._read(field)

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
