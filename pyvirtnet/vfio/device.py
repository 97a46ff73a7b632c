"""A PCI function through VFIO: registers, a mapped doorbell page, interrupts, reset."""

from __future__ import annotations

import mmap
import os
import struct
from contextlib import suppress
from ctypes import addressof, c_char, sizeof
from dataclasses import dataclass
from errno import EINVAL, EIO, ENODEV

from ..errors import DeviceGone, Error, OutOfMemory, PortClosed, mend_of
from . import problems, uapi
from .container import Iommu
from .file import File, capabilities, extents, query
from .function import Function

BARS = range(6)
_COMMAND = 0x04  # PCI command register
_COMMAND_DECODE = 1 << 0 | 1 << 1  # I/O ports and memory
_COMMAND_BUS_MASTER = 1 << 2
_BAR0 = 0x10  # first base address register; bit 0 set means I/O ports
_FORMATS = {1: "<B", 2: "<H", 4: "<I"}
_EVENTFD = os.EFD_NONBLOCK | os.EFD_CLOEXEC
_GONE = (ENODEV, EIO)  # what the kernel answers about a function that it has taken away
_ALARMS = {  # interrupts that end a device's life here, and what each says
    uapi.PCI_REQ_IRQ: "the kernel wants it back: it is being unplugged, or unbound from vfio-pci",
    uapi.PCI_ERR_IRQ: "it reported an uncorrectable PCI error (AER)",
}


@dataclass(frozen=True)
class Bar:
    """A region of the device file. `windows`: the (offset, size) pieces that can be mapped."""

    size: int
    offset: int
    windows: tuple[tuple[int, int], ...]


NO_REGION = Bar(0, 0, ())


class Device:
    """An open function. Every access is of exactly the width asked for (4.1.3.1)."""

    def __init__(self, function: Function, iommu: Iommu) -> None:
        self.bdf = function.bdf
        self._function, self._iommu = function, iommu
        self._pages: dict[tuple[int, int], tuple[mmap.mmap, int]] = {}
        self.eventfds: list[int] = []
        self._alarms: dict[str, int] = {}  # eventfds, by what they say
        self._lost: DeviceGone | None = None
        self.bars: list[Bar] = []
        self._config = NO_REGION
        self._flags = 0
        self._file: File = iommu.open_device(function)
        self._ours = True
        try:
            answer = query(self._file, uapi.DEVICE_GET_INFO, uapi.DeviceInfo())
            self._flags = uapi.DeviceInfo.from_buffer(answer).flags
            self.bars = [self._region(index) for index in BARS]
            self._config = self._region(uapi.PCI_CONFIG_REGION)
            self.vectors = self._interrupts(uapi.PCI_MSIX_IRQ)
            self._set_alarms()
        except OSError as error:
            self.close()
            raise self._refused(error) from error
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        return self._file.closed

    def check(self) -> None:
        """Raise DeviceGone if an alarm has rung, now or before."""
        for why, alarm in self._alarms.items():
            with suppress(BlockingIOError):
                os.eventfd_read(alarm)
                self._lost = self._gone(why)
        self._check_lost()

    def alarm_fds(self) -> list[int]:
        return list(self._alarms.values())

    def read(self, bar: int, offset: int, width: int) -> int:
        """A BAR register of 1, 2 or 4 bytes."""
        return self._read(self.bars[bar], offset, width)

    def write(self, bar: int, offset: int, width: int, value: int) -> None:
        self._write(self.bars[bar], offset, width, value)

    def read_pci(self, offset: int, width: int) -> int:
        """A field of PCI configuration space."""
        return self._read(self._config, offset, width)

    def is_memory(self, bar: int) -> bool:
        """Whether this BAR exists and is memory, not I/O ports."""
        return self.bars[bar].size > 0 and not self.read_pci(_BAR0 + 4 * bar, 4) & 1

    def address(self, bar: int, offset: int, length: int) -> int | None:
        """Where a piece of a BAR is mapped in this process; None if it can't be mapped.

        It stays mapped until `close()`. Only the pages in question are mapped.
        """
        first = offset & -mmap.PAGESIZE
        last = (offset + length - 1) & -mmap.PAGESIZE
        size = last + mmap.PAGESIZE - first
        windows = self.bars[bar].windows
        if not any(low <= first and first + size <= low + extent for low, extent in windows):
            return None
        if (bar, first) not in self._pages:
            try:
                page = self._file.mmap(size, self.bars[bar].offset + first)
            except OSError as error:
                raise self._refused(error) from error
            self._pages[bar, first] = page, addressof(c_char.from_buffer(page))
        return self._pages[bar, first][1] + offset - first

    def set_dma(self, enabled: bool) -> None:
        """Bus mastering: without it the device reaches no memory and raises no MSI-X."""
        command = self.read_pci(_COMMAND, 2) | _COMMAND_DECODE
        command &= ~_COMMAND_BUS_MASTER
        command |= _COMMAND_BUS_MASTER if enabled else 0
        self._write(self._config, _COMMAND, 2, command)

    def enable_interrupts(self, count: int) -> None:
        """Give MSI-X vectors 0 to `count` - 1 an eventfd each, all in one call.

        Fewer, where the processors have no more left: then the kernel sets none, and says how many.
        """
        if count == 0:
            return
        try:
            for _ in range(count):
                self.eventfds.append(os.eventfd(0, _EVENTFD))
            while left := self._set_irqs(uapi.PCI_MSIX_IRQ, self.eventfds):
                while len(self.eventfds) > left:
                    os.close(self.eventfds.pop())
        except OSError as error:
            if error.errno in _GONE:
                raise self._gone(error.strerror) from error
            raise OutOfMemory(
                f"cannot set up {count} interrupts of {self.bdf}",
                error.strerror or str(error),
                mend_of(error, problems.LOG),
            ) from error

    def disable_interrupts(self) -> None:
        if self.eventfds:
            self._set_irqs(uapi.PCI_MSIX_IRQ, [])

    def reset(self) -> None:
        """Function-level reset, where the device has one."""
        if self._flags & uapi.DEVICE_CAN_RESET:
            self._file.ioctl(uapi.DEVICE_RESET)

    def close(self) -> None:
        """Stop the device by every means there is, then let go of it. May be called again.

        The kernel gives a device away, and ends an unplugging, only after this.
        """
        if not self._file.closed:
            for stop in (self.disable_interrupts, lambda: self.set_dma(False), self.reset):
                with suppress(OSError, Error, ValueError):  # gone, or never quite there
                    stop()
            self._release()
        if self._ours:  # not with the file: Ctrl-C may come in between, and close() again
            self._iommu.close_device(self._function)
            self._ours = False

    def lose(self, why: DeviceGone) -> None:
        """It has gone, or is wanted back: let go of it, and say so from now on."""
        self._lost = why
        self.close()

    def abandon(self) -> None:
        """After fork, in the child: close what was inherited, without touching the device."""
        self._release()
        self._iommu.abandon()

    def _release(self) -> None:
        for page, _ in self._pages.values():
            page.close()
        self._pages.clear()
        while self.eventfds:
            os.close(self.eventfds.pop())
        while self._alarms:
            os.close(self._alarms.popitem()[1])
        self._file.close()

    def _region(self, index: int) -> Bar:
        try:
            answer = query(self._file, uapi.DEVICE_GET_REGION_INFO, uapi.RegionInfo(index=index))
        except OSError as error:
            if error.errno != EINVAL:
                raise
            return NO_REGION
        info = uapi.RegionInfo.from_buffer(answer)
        windows = [(0, info.size)] if info.flags & uapi.REGION_MMAP else []
        chain = info.cap_offset if info.flags & uapi.REGION_CAPS else 0
        for kind, offset in capabilities(answer, chain):
            if kind == uapi.REGION_CAP_SPARSE_MMAP:
                head = uapi.SparseMmap.from_buffer(answer, offset)
                windows = extents(answer, offset + sizeof(head), head.nr_areas)
        return Bar(info.size, info.offset, tuple(windows))

    def _interrupts(self, kind: int) -> int:
        """How many interrupts of a kind the kernel will give eventfds for."""
        info = uapi.IrqInfo(index=kind)
        answer = uapi.IrqInfo.from_buffer(query(self._file, uapi.DEVICE_GET_IRQ_INFO, info))
        return int(answer.count) if answer.flags & uapi.IRQ_EVENTFD else 0

    def _set_alarms(self) -> None:
        for kind, why in _ALARMS.items():
            with suppress(OSError):  # errors are reported of PCI Express devices only
                if self._interrupts(kind):
                    self._alarms[why] = os.eventfd(0, _EVENTFD)
                    self._set_irqs(kind, [self._alarms[why]])

    def _set_irqs(self, kind: int, fds: list[int]) -> int:
        """Interrupts of a kind go to these eventfds; none of them to any if there are none.

        Not 0: nothing was set, and so many could be had.
        """
        data = uapi.IRQ_SET_DATA_EVENTFD if fds else uapi.IRQ_SET_DATA_NONE
        flags = data | uapi.IRQ_SET_ACTION_TRIGGER
        request = uapi.IrqSet(flags=flags, index=kind, count=len(fds))
        payload = struct.pack(f"{len(fds)}i", *fds)
        request.argsz = sizeof(request) + len(payload)
        fewer = self._file.ioctl(uapi.DEVICE_SET_IRQS, bytearray(request) + payload)
        return fewer if 0 < fewer < len(fds) else 0

    def _read(self, region: Bar, offset: int, width: int) -> int:
        self._check(region, offset, width)
        try:
            data = self._file.pread(width, region.offset + offset)
        except OSError as error:
            raise self._gone(error.strerror) from error
        if len(data) != width:
            raise self._gone()
        return int(struct.unpack(_FORMATS[width], data)[0])

    def _write(self, region: Bar, offset: int, width: int, value: int) -> None:
        self._check(region, offset, width)
        try:
            self._file.pwrite(struct.pack(_FORMATS[width], value), region.offset + offset)
        except OSError as error:
            raise self._gone(error.strerror) from error

    def _check(self, region: Bar, offset: int, width: int) -> None:
        if self._file.closed:
            self._check_lost()
            raise PortClosed(f"cannot reach {self.bdf}", "it is closed", "open it again")
        if offset % width or not 0 <= offset <= region.size - width:
            raise ValueError(f"{width}-byte access at {offset:#x} of {region.size:#x} bytes")

    def _check_lost(self) -> None:
        if self._lost:
            raise self._lost.copy()

    def _refused(self, error: OSError) -> Error:
        if error.errno in _GONE:
            return self._gone(error.strerror)
        return problems.refused(self.bdf, error)

    def _gone(self, why: str | None = None) -> DeviceGone:
        return DeviceGone(
            f"lost {self.bdf}",
            why or "its registers no longer answer",
            f"dmesg tells more. Once it is back: tools/bind {self.bdf}, then port.reset()",
        )
