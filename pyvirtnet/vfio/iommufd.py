"""The kernel's newer way to what containers do: /dev/iommu holds the address space, and every
device has a file of its own (linux/iommufd.h, linux/vfio.h)."""

from __future__ import annotations

import os
import threading
from ctypes import Structure, addressof, c_int32, c_uint32, c_uint64, sizeof
from pathlib import Path

from ..dma import Region, memory
from . import problems, uapi
from .container import DEV, Iommu
from .file import File
from .function import VFIO_DRIVERS, Function
from .problems import Limits

NODE = "/dev/iommu"
BIND, ATTACH = 0x3B76, 0x3B77
IOAS_ALLOC, IOAS_IOVA_RANGES, IOAS_MAP, IOAS_UNMAP = 0x3B81, 0x3B84, 0x3B85, 0x3B86
FIXED, WRITABLE, READABLE = 1, 2, 4
_MAX_RANGES = 64


class BindIommufd(Structure):
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iommufd", c_int32),
        ("out_devid", c_uint32),
    )


class Attach(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32), ("pt_id", c_uint32))


class IoasAlloc(Structure):
    _fields_ = (("size", c_uint32), ("flags", c_uint32), ("out_ioas_id", c_uint32))


class IoasIovaRanges(Structure):
    _fields_ = (
        ("size", c_uint32),
        ("ioas_id", c_uint32),
        ("num_iovas", c_uint32),
        ("reserved", c_uint32),
        ("allowed_iovas", c_uint64),
        ("out_iova_alignment", c_uint64),
    )


class IoasMap(Structure):
    _fields_ = (
        ("size", c_uint32),
        ("flags", c_uint32),
        ("ioas_id", c_uint32),
        ("reserved", c_uint32),
        ("user_va", c_uint64),
        ("length", c_uint64),
        ("iova", c_uint64),
    )


class IoasUnmap(Structure):
    _fields_ = (
        ("size", c_uint32),
        ("ioas_id", c_uint32),
        ("iova", c_uint64),
        ("length", c_uint64),
    )


def device_node(function: Function) -> str | None:
    """The function's own file, of kernels that have them."""
    try:
        found = [name for name in os.listdir(function.path / "vfio-dev") if name.startswith("vfio")]
    except OSError:  # an older kernel, or the function is being taken away
        return None
    return f"{DEV}/devices/{found[0]}" if found and Path(NODE).exists() else None


class AddressSpace(Iommu):
    """One I/O address space for all devices of the process that are opened this way."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._file = File(-1)
        self._id = 0
        self._functions: set[str] = set()
        self._limits = Limits()

    def open_device(self, function: Function) -> File:
        with self._lock:
            node = self._admit(function)
            try:
                if self._file.closed:
                    self._open(function)
                file = self._join(function, node)
                self._functions.add(function.bdf)
            except BaseException:
                self._close_if_idle()
                raise
            return file

    def close_device(self, function: Function) -> None:
        with self._lock:
            self._functions.discard(function.bdf)
            self._close_if_idle()

    def map(self, region: Region) -> None:
        problems.check_mapping(region, self._limits)
        request = IoasMap(
            size=sizeof(IoasMap),
            flags=FIXED | WRITABLE | READABLE,
            ioas_id=self._id,
            user_va=region.address,
            length=region.size,
            iova=region.iova,
        )
        try:
            self._file.ioctl(IOAS_MAP, request)
        except OSError as error:
            raise problems.mapping(region.size, error, by_user=True) from error

    def unmap(self, iova: int, size: int) -> None:
        if not self._file.closed:  # closing it unmapped everything
            request = IoasUnmap(sizeof(IoasUnmap), self._id, iova, size)
            self._file.ioctl(IOAS_UNMAP, request)

    def abandon(self) -> None:
        memory.detach(self)
        self._functions.clear()
        self._file.close()
        self._lock = threading.RLock()  # another thread of the parent may have held it

    def _admit(self, function: Function) -> str:
        if function.group is None or function.noiommu:
            raise problems.no_iommu(function)
        if function.driver not in VFIO_DRIVERS:
            raise problems.not_bound(function)
        if function.bdf in self._functions:
            raise problems.busy_here(function)
        node = device_node(function)
        if node is None:
            raise problems.no_iommufd(function)
        return node

    def _open(self, function: Function) -> None:
        try:
            self._file = File.open(NODE)
        except OSError as error:
            raise problems.node(NODE, error) from error
        request = IoasAlloc(size=sizeof(IoasAlloc))
        try:
            self._file.ioctl(IOAS_ALLOC, request)
        except OSError as error:
            raise problems.attaching(function, error, module="iommufd") from error
        self._id = request.out_ioas_id

    def _join(self, function: Function, node: str) -> File:
        """Bring the device into the address space; the first one brings the memory too."""
        try:
            file = File.open(node)
        except OSError as error:
            raise problems.group(function, node, error) from error
        try:
            bind = BindIommufd(argsz=sizeof(BindIommufd), iommufd=self._file.fd)
            file.ioctl(BIND, bind)
            file.ioctl(ATTACH, Attach(argsz=sizeof(Attach), pt_id=self._id))
            self._limits = self._read_limits()
            if not self._functions:
                memory.attach(self)
        except OSError as error:
            file.close()
            nodes = (node, f"/dev/vfio/{function.group}")
            raise problems.binding(function, nodes, error) from error
        except BaseException:
            file.close()
            raise
        return file

    def _read_limits(self) -> Limits:
        ranges = (uapi.Extent * _MAX_RANGES)()
        request = IoasIovaRanges(
            size=sizeof(IoasIovaRanges),
            ioas_id=self._id,
            num_iovas=_MAX_RANGES,
            allowed_iovas=addressof(ranges),
        )
        self._file.ioctl(IOAS_IOVA_RANGES, request)
        found = [(one.first, one.second) for one in ranges[: request.num_iovas]]
        return Limits(page_sizes=request.out_iova_alignment, ranges=found)

    def _close_if_idle(self) -> None:
        if not self._functions:
            memory.detach(self)
            self._file.close()


address_space = AddressSpace()
