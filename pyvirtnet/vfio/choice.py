"""Which of the kernel's ways a function is opened by: containers, no-IOMMU mode, iommufd."""

from __future__ import annotations

import os

from .container import DEV, Iommu, container
from .function import Function
from .iommufd import address_space, device_node
from .noiommu import bare_container


def iommu_for(function: Function, *, noiommu: bool = False, iommufd: bool = False) -> Iommu:
    """A function without an IOMMU is opened only where that is wanted; iommufd serves where it is
    wanted, or where the kernel has no groups any more."""
    if function.noiommu:
        return bare_container if noiommu else container  # which refuses it, and says how
    group = function.group
    without_group = group is not None and not os.path.exists(f"{DEV}/{group}")
    if iommufd or (without_group and device_node(function)):
        return address_space
    return container
