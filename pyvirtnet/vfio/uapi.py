"""The kernel's VFIO interface (linux/vfio.h): ioctl numbers, flags and structures, nothing else."""

from __future__ import annotations

from ctypes import Structure, c_uint16, c_uint32, c_uint64

API_VERSION = 0

# ioctl requests: type ';', number 100 and up, no size encoded
GET_API_VERSION = 0x3B64
CHECK_EXTENSION = 0x3B65
SET_IOMMU = 0x3B66
GROUP_GET_STATUS = 0x3B67
GROUP_SET_CONTAINER = 0x3B68
GROUP_UNSET_CONTAINER = 0x3B69
GROUP_GET_DEVICE_FD = 0x3B6A
DEVICE_GET_INFO = 0x3B6B
DEVICE_GET_REGION_INFO = 0x3B6C
DEVICE_GET_IRQ_INFO = 0x3B6D
DEVICE_SET_IRQS = 0x3B6E
DEVICE_RESET = 0x3B6F
IOMMU_GET_INFO = 0x3B70
IOMMU_MAP_DMA = 0x3B71
IOMMU_UNMAP_DMA = 0x3B72

TYPE1_IOMMU = 1
TYPE1V2_IOMMU = 3
NOIOMMU_IOMMU = 8

GROUP_VIABLE = 1 << 0

DEVICE_CAN_RESET = 1 << 0
DEVICE_IS_PCI = 1 << 1

PCI_CONFIG_REGION = 7  # BARs are regions 0 to 5, the expansion ROM is 6
PCI_MSIX_IRQ = 2
PCI_ERR_IRQ = 3  # the device reported an uncorrectable error
PCI_REQ_IRQ = 4  # the kernel asks for the device back

REGION_READ = 1 << 0
REGION_WRITE = 1 << 1
REGION_MMAP = 1 << 2
REGION_CAPS = 1 << 3
REGION_CAP_SPARSE_MMAP = 1

IRQ_EVENTFD = 1 << 0
IRQ_SET_DATA_NONE = 1 << 0
IRQ_SET_DATA_EVENTFD = 1 << 2
IRQ_SET_ACTION_TRIGGER = 1 << 5

IOMMU_PAGE_SIZES = 1 << 0
IOMMU_CAPS = 1 << 1
IOMMU_CAP_IOVA_RANGE = 1
IOMMU_CAP_DMA_AVAIL = 3

DMA_READ = 1 << 0
DMA_WRITE = 1 << 1


class GroupStatus(Structure):
    _fields_ = (("argsz", c_uint32), ("flags", c_uint32))


class DeviceInfo(Structure):
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("num_regions", c_uint32),
        ("num_irqs", c_uint32),
    )


class RegionInfo(Structure):
    """Followed by its capability chain when argsz has room for it."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("cap_offset", c_uint32),
        ("size", c_uint64),
        ("offset", c_uint64),
    )


class IrqInfo(Structure):
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("count", c_uint32),
    )


class IrqSet(Structure):
    """Followed by `count` eventfds of 32 bits with IRQ_SET_DATA_EVENTFD."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("index", c_uint32),
        ("start", c_uint32),
        ("count", c_uint32),
    )


class IommuInfo(Structure):
    """Followed by its capability chain when argsz has room for it."""

    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("page_sizes", c_uint64),
        ("cap_offset", c_uint32),
        ("padding", c_uint32),
    )


class DmaMap(Structure):
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("vaddr", c_uint64),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


class DmaUnmap(Structure):
    _fields_ = (
        ("argsz", c_uint32),
        ("flags", c_uint32),
        ("iova", c_uint64),
        ("size", c_uint64),
    )


class CapHeader(Structure):
    """Head of an entry in a capability chain; `next` counts from the start of the info struct."""

    _fields_ = (("id", c_uint16), ("version", c_uint16), ("next", c_uint32))


class SparseMmap(Structure):
    """Header, then `nr_areas` of Extent."""

    _fields_ = (("header", CapHeader), ("nr_areas", c_uint32), ("reserved", c_uint32))


class IovaRanges(Structure):
    """Header, then `nr_iovas` of Extent, whose second number is the last address, not a size."""

    _fields_ = (("header", CapHeader), ("nr_iovas", c_uint32), ("reserved", c_uint32))


class DmaAvail(Structure):
    _fields_ = (("header", CapHeader), ("avail", c_uint32))


class Extent(Structure):
    _fields_ = (("first", c_uint64), ("second", c_uint64))
