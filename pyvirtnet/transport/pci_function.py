"""A virtio PCI function through VFIO: its life and its interrupts, whatever its registers are."""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress

from .. import spec
from ..errors import DeviceBroken, DeviceGone, DeviceTimeout, Error, NotVirtioNet
from ..spec import Status
from ..vfio.container import Iommu, container
from ..vfio.device import Device
from ..vfio.function import Function, find
from .base import Transport, check_status

RESET_SECONDS = 2.0
MAX_VECTORS = 129  # 64 queue pairs and configuration changes; more queues share


class PciTransport(Transport):
    """A virtio-net function that this process took from the kernel."""

    def __init__(self, name: str, iommu: Iommu = container) -> None:
        function = find(name)
        _check_identity(function)
        self.name = function.bdf
        self._iommu = iommu
        self._take(function)

    def _take(self, function: Function) -> None:
        self._live = False  # DRIVER_OK was set, and no reset since
        self._found = False  # its registers are where they can be reached
        self._config_vector_set = False
        self._device = Device(function, self._iommu)
        try:
            self._find_registers()
            self._found = True
            self.reset()
            self._device.set_dma(True)
            queues = self._queue_count()
            self._device.enable_interrupts(min(self._device.vectors, queues + 1, MAX_VECTORS))
        except BaseException:
            self.close()
            raise

    @abstractmethod
    def _find_registers(self) -> None:
        """Look for the registers, once the function is open."""

    @abstractmethod
    def _queue_count(self) -> int:
        """How many queues the device has."""

    @abstractmethod
    def _write_status(self, status: int) -> None: ...

    @abstractmethod
    def _write_vector(self, index: int | None, vector: int) -> int:
        """Map a queue's interrupts, or those of configuration changes, to an MSI-X vector.

        The queue has been selected. What the device then says that it is.
        """

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

    def alarm_fds(self) -> Sequence[int]:
        return self._device.alarm_fds()

    def let_go(self, why: DeviceGone) -> None:
        self._device.lose(why)

    def revive(self, seconds: float | None = None) -> None:
        if not self._device.closed:
            try:
                self._device.check()
                self.status()
                return
            except DeviceGone as gone:  # unseen until now, and another may be in its place
                self._device.lose(gone)
        function = find(self.name)
        _check_identity(function)
        self._take(function)

    def reset(self) -> None:
        self._live = False
        self._write_status(0)
        self._config_vector_set = False
        self._await_zero(self.status, f"cannot reset {self.name}", "its status")

    def _await_zero(self, read: Callable[[], int], what: str, register: str) -> None:
        """Wait until the device says that a reset is done (4.1.4.3.2)."""
        end = time.monotonic() + RESET_SECONDS
        while read() != 0:
            if time.monotonic() > end:
                raise DeviceTimeout(
                    what,
                    f"{register} was not 0 after {RESET_SECONDS:g} s (4.1.4.3.2)",
                    "restart the virtual machine or its network back end",
                )
            time.sleep(0.001)

    def add_status(self, bits: int) -> None:
        self._write_status(self.status() | bits)
        self._live |= bool(bits & Status.DRIVER_OK)

    def interrupt_fd(self, index: int | None) -> int:
        vector = self._vector(index)
        return -1 if vector == spec.NO_VECTOR else self._device.eventfds[vector]

    def close(self) -> None:
        try:
            if self._found and not self._device.closed:
                with suppress(Error):  # gone, or stuck: the PCI function's reset ends its DMA
                    self.reset()
        finally:  # Ctrl-C in the middle included
            self._device.close()

    def abandon(self) -> None:
        """After fork, in the child: close what was inherited, without touching the device."""
        self._device.abandon()

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

    def _set_vectors(self, index: int) -> None:
        """Of a queue; of configuration changes too, once after each reset, which unmaps all."""
        if self._device.vectors == 0:  # without MSI-X there is nothing to map
            return
        if not self._config_vector_set:
            self._set_vector(None)
            self._config_vector_set = True
        self._set_vector(index)

    def _set_vector(self, index: int | None) -> None:
        vector = self._vector(index)
        if self._write_vector(index, vector) != vector:  # NO_VECTOR: it failed (4.1.5.1.2.2)
            raise self._broken(f"it could not map MSI-X vector {vector}")

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
