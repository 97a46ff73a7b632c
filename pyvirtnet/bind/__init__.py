"""Find NICs, take them from the kernel for VFIO, and give them back. Importing needs no root."""

from .change import bind, restore
from .host import IOMMU_MEND, VFIO_PCI, Host
from .status import Interface, Member, Nic, status
from .steps import Owner
from .uses import traffic, uses

__all__ = [
    "IOMMU_MEND",
    "VFIO_PCI",
    "Host",
    "Interface",
    "Member",
    "Nic",
    "Owner",
    "bind",
    "restore",
    "status",
    "traffic",
    "uses",
]
