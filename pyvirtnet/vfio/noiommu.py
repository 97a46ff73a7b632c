"""The container of functions without an IOMMU: nothing keeps their devices from any memory."""

from __future__ import annotations

import warnings

from .. import hugepages
from ..arena import arena
from ..dma import Region
from . import problems, uapi
from .container import DEV, Container
from .file import File
from .function import Function
from .problems import Limits


class UnsafeNoIommu(RuntimeWarning):
    """A device was opened that can read and write all of the machine's memory."""


class BareContainer(Container):
    """Groups of VFIO's no-IOMMU mode. Devices see memory at its physical addresses."""

    physical = True

    def open_device(self, function: Function) -> File:
        arena.trim()  # what is left there from before is not at its physical address
        file = super().open_device(function)
        try:
            warnings.warn(
                f"{function.bdf} runs without an IOMMU: it can read and write all memory of this "
                "machine, and what it does wrong can crash or corrupt anything",
                UnsafeNoIommu,
                stacklevel=2,
            )
        except UnsafeNoIommu:  # python -W error
            file.close()
            self.close_device(function)
            raise
        return file

    def map(self, region: Region) -> None:
        """Nothing to do but to see that the device will find it there."""
        end = region.iova + region.size
        places = list(range(region.iova, end, hugepages.HUGE_PAGE))
        try:
            found = hugepages.physical(region.address, region.size)
        except OSError as error:
            raise problems.no_physical_addresses(error) from error
        if found != places:
            raise problems.not_physical(region)

    def unmap(self, iova: int, size: int) -> None:
        """The memory goes to whom the kernel gives it; the device has been reset."""

    def _check_group(self, function: Function) -> int:
        number = function.group
        if number is None or not function.noiommu:
            raise problems.no_iommu(function)
        return number

    def _node(self, number: int) -> str:
        return f"{DEV}/noiommu-{number}"

    def _kind(self, function: Function) -> int:
        return uapi.NOIOMMU_IOMMU

    def _read_limits(self) -> Limits:
        return Limits()


bare_container = BareContainer()
