"""The legacy virtio-pci transport: devices from before virtio 1.0, behind BAR 0 (4.1.4.10).

To the rest of the driver it looks like a modern device, and so much is true of it: numbers are
little-endian, as they are in the guests this runs in.
"""

from __future__ import annotations

from enum import IntEnum
from functools import partial

from .. import spec
from ..errors import DeviceGone, DeviceTimeout, FeatureMissing, NoIommu
from ..spec import Feature, Status
from .base import Doorbell, QueueAddresses
from .pci_function import MAX_VECTORS, PciTransport

PAGE = 4096  # queues are addressed by page, and the used ring begins one (2.7.2)
CONFIG_TRIES = 32
_BAR = 0
_GONE = 0xFF  # what a status reads once the function has gone


class Register(IntEnum):
    """Offsets in BAR 0, 4.1.4.10."""

    DEVICE_FEATURES = 0
    DRIVER_FEATURES = 4
    QUEUE_PFN = 8
    QUEUE_SIZE = 12
    QUEUE_SELECT = 14
    QUEUE_NOTIFY = 16
    STATUS = 18
    CONFIG_VECTOR = 20  # these two, only while MSI-X is on
    QUEUE_VECTOR = 22


_CONFIG, _CONFIG_WITH_MSIX = 20, 24
_WIDTHS = {
    Register.DEVICE_FEATURES: 4,
    Register.DRIVER_FEATURES: 4,
    Register.QUEUE_PFN: 4,
    Register.STATUS: 1,
}
_ANY_LAYOUT = 27  # a header may share its descriptor with the frame (6.3)


class VirtioLegacyTransport(PciTransport):
    """A virtio-net function with legacy registers only."""

    ring_alignment = PAGE
    plain_header_bytes = 10  # num_buffers is there with MRG_RXBUF only (5.1.6.1)
    writable_mac = True

    def reset(self) -> None:
        self._features_ok = 0  # a status bit that legacy devices don't have is kept here
        super().reset()

    def status(self) -> int:
        status = self._read(Register.STATUS)
        if status == _GONE:
            raise DeviceGone(
                f"lost {self.name}",
                "its registers read as all ones: it was unplugged, or its bridge is off",
                "when it is back: port.reset(), or close the port and open it again",
            )
        return status | self._features_ok

    def offered_features(self) -> int:
        offered = self._read(Register.DEVICE_FEATURES)
        if not offered >> _ANY_LAYOUT & 1:
            raise FeatureMissing(
                f"{self.name} cannot be driven",
                "it is a legacy device and does not offer any_layout (6.3)",
                "QEMU: any_layout=on; or a modern device, disable-modern=off",
            )
        return offered & ~(1 << _ANY_LAYOUT) | 1 << Feature.VERSION_1

    def accept_features(self, features: int) -> None:
        self._write(Register.DRIVER_FEATURES, features & 0xFFFFFFFF | 1 << _ANY_LAYOUT)

    def read_config(self, offset: int, length: int) -> bytes:
        """There is no generation: twice the same is taken for true (2.5.4)."""
        before = b""
        for _ in range(CONFIG_TRIES):
            data = self._config(offset, length)
            if data == before:
                return data
            before = data
        raise DeviceTimeout(
            f"cannot read the configuration of {self.name}",
            f"it changed in each of {CONFIG_TRIES} tries",
            "open the port again; if it stays so, the device is broken",
        )

    def write_config(self, offset: int, data: bytes) -> None:
        """Byte by byte, so that none is written beside them."""
        start = self._config_start + offset
        for at, byte in enumerate(data):
            self._device.write(_BAR, start + at, 1, byte)

    def queue_max_size(self, index: int) -> int:
        self._write(Register.QUEUE_SELECT, index)
        size = self._read(Register.QUEUE_SIZE)
        if size > spec.MAX_SPLIT_QUEUE:
            raise self._broken(f"queue {index} claims {size} entries, more than 32768 (2.7)")
        return size

    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        size = self.queue_max_size(index)
        if addresses.size != size:
            raise ValueError(f"ring_size={addresses.size}: queues of {self.name} have {size}")
        first = addresses.descriptors
        driver = first + 16 * size
        device = -(-(driver + 6 + 2 * size) // PAGE) * PAGE
        if first % PAGE or first >> 44 or (addresses.driver, addresses.device) != (driver, device):
            raise ValueError(f"queue {index} is not laid out for a legacy device")
        self._set_vectors(index)
        self._write(Register.QUEUE_PFN, first // PAGE)
        ring = partial(self._device.write, _BAR, Register.QUEUE_NOTIFY, 2)
        return Doorbell("call", ring, index)

    def _find_registers(self) -> None:
        if not self._iommu.physical:
            raise NoIommu(
                f"cannot drive {self.name}",
                "a legacy device takes the addresses it is given for physical ones, past any IOMMU",
                "QEMU: disable-modern=off,disable-legacy=on,iommu_platform=on for the NIC",
            )
        if self._device.bars[_BAR].size < _CONFIG_WITH_MSIX + 8:
            raise self._broken("its BAR 0 is too small for the legacy registers")

    def _queue_count(self) -> int:
        """It does not say: there are those that have a size."""
        return next((i for i in range(MAX_VECTORS) if not self.queue_max_size(i)), MAX_VECTORS)

    def add_status(self, bits: int) -> None:
        self._features_ok |= bits & Status.FEATURES_OK
        super().add_status(bits)

    def _write_status(self, status: int) -> None:
        self._write(Register.STATUS, status & ~Status.FEATURES_OK)

    def _write_vector(self, index: int | None, vector: int) -> int:
        register = Register.CONFIG_VECTOR if index is None else Register.QUEUE_VECTOR
        self._write(register, vector)
        return self._read(register)

    def _config(self, offset: int, length: int) -> bytes:
        start = self._config_start + offset
        if start + length > self._device.bars[_BAR].size:
            raise self._broken(f"its configuration ends before byte {offset + length - 1}")
        return bytes(self._device.read(_BAR, at, 1) for at in range(start, start + length))

    @property
    def _config_start(self) -> int:
        return _CONFIG_WITH_MSIX if self._device.eventfds else _CONFIG

    def _read(self, register: Register) -> int:
        return self._device.read(_BAR, register, _WIDTHS.get(register, 2))

    def _write(self, register: Register, value: int) -> None:
        self._device.write(_BAR, register, _WIDTHS.get(register, 2), value)
