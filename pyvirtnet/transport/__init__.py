"""Ways to a device: each carries registers and kicks. `open_transport` picks one by the address."""

from __future__ import annotations

from ..errors import NoSuchDevice
from .base import Transport


def open_transport(address: str, *, noiommu: bool = False) -> Transport:
    """The transport of an address: "sim:NAME", "vhost-user:/path", else PCI. Imported on demand.

    `noiommu`, or "?noiommu=on" behind a PCI address, allows a device that no IOMMU holds back;
    "?iommufd=on" opens it by way of /dev/iommu.
    """
    if not isinstance(address, str):
        raise TypeError(f"a port's address is a string such as '0000:00:04.0', not {address!r}")
    kind, colon, _ = address.partition(":")
    if address.startswith("sim:tap/"):
        from .sim_tap import open_sim_tap

        return open_sim_tap(address)
    if colon and kind == "sim":
        from .sim import open_sim

        return open_sim(address)
    if colon and kind == "vhost-user":
        from .vhost_user import VhostUserTransport

        return VhostUserTransport(address.removeprefix("vhost-user:"))
    bdf, _, option = address.partition("?")
    if option not in ("", "noiommu=on", "iommufd=on"):
        from ..vfio.function import find, normalise

        if normalise(bdf) is None:
            find(address)
        raise NoSuchDevice(
            f"no port {address!r}",
            f"a PCI address has no option {option!r}",
            f"{bdf}, {bdf}?noiommu=on or {bdf}?iommufd=on",
        )
    return _open_pci(bdf, noiommu=noiommu or option == "noiommu=on", iommufd=option == "iommufd=on")


def _open_pci(name: str, *, noiommu: bool, iommufd: bool) -> Transport:
    """By modern registers if there are any; by legacy ones only where no IOMMU is in the way."""
    from ..vfio.choice import iommu_for
    from ..vfio.function import find
    from .pci_caps import LegacyOnly
    from .vfio_pci import VfioPciTransport
    from .virtio_legacy import VirtioLegacyTransport

    iommu = iommu_for(find(name), noiommu=noiommu, iommufd=iommufd)
    try:
        return VfioPciTransport(name, iommu)
    except LegacyOnly:
        if not iommu.physical:
            raise
        return VirtioLegacyTransport(name, iommu)
