"""A PCI function as sysfs shows it: identity, driver, IOMMU group and the group's other members."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import NoSuchDevice, NotBound

SYS = Path("/sys")
VFIO_DRIVERS = ("vfio-pci", "virtio-vfio-pci")
_BDF = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])", re.IGNORECASE)
_BRIDGE_CLASS = 0x06


@dataclass(frozen=True)
class Function:
    """One PCI function. Properties read sysfs anew: drivers come and go."""

    bdf: str

    @property
    def path(self) -> Path:
        return SYS / "bus/pci/devices" / self.bdf

    @property
    def vendor(self) -> int:
        return self._number("vendor")

    @property
    def device(self) -> int:
        return self._number("device")

    @property
    def is_bridge(self) -> bool:
        return self._number("class") >> 16 == _BRIDGE_CLASS

    @property
    def driver(self) -> str | None:
        return self._link("driver")

    @property
    def group(self) -> int | None:
        name = self._link("iommu_group")
        return int(name) if name else None

    @property
    def noiommu(self) -> bool:
        """Whether the group is VFIO's stand-in for a missing IOMMU."""
        try:
            name = (self.path / "iommu_group/name").read_text().strip()
        except OSError:
            return False
        return name == "vfio-noiommu"

    def group_members(self) -> list[Function]:
        """All functions of the IOMMU group, this one included."""
        try:
            names = sorted(entry.name for entry in (self.path / "iommu_group/devices").iterdir())
        except OSError:
            return [self]
        return [Function(name) for name in names]

    def _number(self, attribute: str) -> int:
        try:
            return int((self.path / attribute).read_text(), 16)
        except (OSError, ValueError):
            return 0

    def _link(self, attribute: str) -> str | None:
        try:
            return os.path.basename(os.readlink(self.path / attribute))
        except OSError:  # none, or the function is being taken away
            return None


def normalise(name: str) -> str | None:
    """The full form of a PCI address: "00:04.0" is "0000:00:04.0". None if it is none."""
    match = _BDF.fullmatch(name.strip())
    if match is None:
        return None
    domain, bus, slot, function = match.groups()
    return f"{domain or '0000'}:{bus}:{slot}.{function}".lower()


def find(name: str) -> Function:
    """The function called `name`, a PCI address. An interface's name says how to get there."""
    bdf = normalise(name)
    if bdf is None:
        raise _interface(name)
    function = Function(bdf)
    if not function.path.exists():
        raise NoSuchDevice(
            f"cannot open {name}",
            f"there is no PCI function {bdf}",
            "tools/bind status lists the network functions of this machine",
        )
    return function


def _interface(name: str) -> NotBound | NoSuchDevice:
    """The error for a name that is not a PCI address: perhaps it is a network interface."""
    link = SYS / "class/net" / name / "device"
    if "/" in name or not name or not link.exists():
        return NoSuchDevice(
            f"cannot open {name!r}",
            "it is neither a PCI address such as 0000:00:04.0 nor a network interface",
            "tools/bind status lists this machine's; vhost-user:/path and sim:loopback are others",
        )
    path = link.resolve()
    for candidate in (path, *path.parents):  # virtio devices sit below their PCI function
        bdf = normalise(candidate.name)
        if bdf is not None:
            return NotBound(
                f"cannot open {name}",
                f"the kernel's network stack has it, as the driver of {bdf}",
                f"tools/bind {bdf}, then open {bdf!r}",
            )
    return NoSuchDevice(
        f"cannot open {name}",
        "this interface is not a PCI function",
        "tools/bind status lists the network functions of this machine",
    )
