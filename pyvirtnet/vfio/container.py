"""The VFIO container: one per process, so that every port's device sees all DMA memory."""

from __future__ import annotations

import threading
from abc import abstractmethod
from ctypes import sizeof
from dataclasses import dataclass, field

from ..dma import Mapper, Region, memory
from . import problems, uapi
from .file import File, capabilities, extents, query
from .function import VFIO_DRIVERS, Function
from .problems import Limits

DEV = "/dev/vfio"


class Iommu(Mapper):
    """Who opens functions and makes memory visible to them."""

    @abstractmethod
    def open_device(self, function: Function) -> File:
        """The device file of `function`, its group taken and all DMA memory mapped."""

    @abstractmethod
    def close_device(self, function: Function) -> None:
        """Give the function up; the caller has reset it and closed its file."""

    @abstractmethod
    def abandon(self) -> None:
        """After fork, in the child: close files, and leave devices and mappings alone."""


@dataclass
class _Group:
    file: File
    functions: set[str] = field(default_factory=set)


class Container(Iommu):
    """Groups behind the type 1 IOMMU driver."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._file = File(-1)
        self._groups: dict[int, _Group] = {}
        self._limits = Limits()

    def open_device(self, function: Function) -> File:
        with self._lock:
            number = self._admit(function)
            group = self._groups.get(number) or self._join(function, number)
            try:
                fd = group.file.ioctl(uapi.GROUP_GET_DEVICE_FD, function.bdf.encode() + b"\0")
            except OSError as error:
                self._leave(number)
                raise problems.device(function, self._node(number), error) from error
            group.functions.add(function.bdf)
            return File(fd)

    def close_device(self, function: Function) -> None:
        with self._lock:
            # not by its group's number: sysfs may not show the function any more, nor the books yet
            for number, group in list(self._groups.items()):
                group.functions.discard(function.bdf)
                self._leave(number)

    def map(self, region: Region) -> None:
        problems.check_mapping(region, self._limits)
        request = uapi.DmaMap(
            argsz=sizeof(uapi.DmaMap),
            flags=uapi.DMA_READ | uapi.DMA_WRITE,
            vaddr=region.address,
            iova=region.iova,
            size=region.size,
        )
        try:
            self._file.ioctl(uapi.IOMMU_MAP_DMA, request)
        except OSError as error:
            raise problems.mapping(region.size, error) from error
        self._limits.mappings -= 1

    def unmap(self, iova: int, size: int) -> None:
        if self._file.closed:  # closing the container unmapped everything
            return
        request = uapi.DmaUnmap(argsz=sizeof(uapi.DmaUnmap), iova=iova, size=size)
        self._file.ioctl(uapi.IOMMU_UNMAP_DMA, request)
        self._limits.mappings += 1

    def abandon(self) -> None:
        memory.detach(self)
        for group in self._groups.values():
            group.file.close()
        self._groups.clear()
        self._file.close()
        self._lock = threading.RLock()  # another thread of the parent may have held it

    def _admit(self, function: Function) -> int:
        """The group's number, if the function is VFIO's to give and not ours already."""
        number = self._check_group(function)
        if function.driver not in VFIO_DRIVERS:
            raise problems.not_bound(function)
        group = self._groups.get(number)
        if group is not None and function.bdf in group.functions:
            raise problems.busy_here(function)
        return number

    def _check_group(self, function: Function) -> int:
        number = function.group
        if number is None or function.noiommu:
            raise problems.no_iommu(function)
        return number

    def _join(self, function: Function, number: int) -> _Group:
        """Take the group into the container; the first one brings the IOMMU with it."""
        if self._file.closed:
            self._open(function)
        path = self._node(number)
        try:
            self._groups[number] = group = _Group(File.open(path))
            self._attach(function, group.file)
        except OSError as error:
            self._leave(number)
            raise problems.group(function, path, error) from error
        except BaseException:
            self._leave(number)
            raise
        return group

    def _open(self, function: Function) -> None:
        path = f"{DEV}/vfio"
        try:
            self._file = File.open(path)
            version = self._file.ioctl(uapi.GET_API_VERSION)
        except OSError as error:
            self._file.close()
            raise problems.node(path, error) from error
        if version != uapi.API_VERSION:
            self._file.close()
            raise problems.wrong_api(function, version)

    def _attach(self, function: Function, group: File) -> None:
        answer = query(group, uapi.GROUP_GET_STATUS, uapi.GroupStatus())
        if not uapi.GroupStatus.from_buffer(answer).flags & uapi.GROUP_VIABLE:
            raise problems.not_viable(function)
        first = len(self._groups) == 1
        kind = self._kind(function)
        try:
            group.ioctl(uapi.GROUP_SET_CONTAINER, self._file.fd.to_bytes(4, "little"))
            if first:
                self._file.ioctl(uapi.SET_IOMMU, kind)
        except OSError as error:
            raise problems.attaching(function, error) from error
        self._limits = self._read_limits()
        if first:
            memory.attach(self)

    def _node(self, number: int) -> str:
        return f"{DEV}/{number}"

    def _kind(self, function: Function) -> int:
        """VFIO's number of the IOMMU driver to use."""
        for kind in (uapi.TYPE1V2_IOMMU, uapi.TYPE1_IOMMU):
            if self._file.ioctl(uapi.CHECK_EXTENSION, kind):
                return kind
        raise problems.no_type1(function)

    def _read_limits(self) -> Limits:
        answer = query(self._file, uapi.IOMMU_GET_INFO, uapi.IommuInfo())
        info = uapi.IommuInfo.from_buffer(answer)
        limits = Limits()
        if info.flags & uapi.IOMMU_PAGE_SIZES:
            limits.page_sizes = info.page_sizes
        if not info.flags & uapi.IOMMU_CAPS:
            return limits
        for kind, offset in capabilities(answer, info.cap_offset):
            if kind == uapi.IOMMU_CAP_IOVA_RANGE:
                head = uapi.IovaRanges.from_buffer(answer, offset)
                limits.ranges = extents(answer, offset + sizeof(head), head.nr_iovas)
            elif kind == uapi.IOMMU_CAP_DMA_AVAIL:
                limits.mappings = uapi.DmaAvail.from_buffer(answer, offset).avail
        return limits

    def _leave(self, number: int) -> None:
        """Let go of a group without functions; the last one takes the container with it."""
        group = self._groups.get(number)
        if group is not None and not group.functions:
            group.file.close()
            del self._groups[number]
        if not self._groups:
            memory.detach(self)
            self._file.close()


container = Container()  # opened by the first device, closed by the last
