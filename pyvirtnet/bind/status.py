"""A NIC as `tools/bind status` shows it: whose it is, what uses it, can it be opened."""

import grp
import os
import pwd
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .host import VFIO_PCI, Host, read
from .persist import persists
from .uses import uses

_VIRTIO_NET = "virtio-net"


@dataclass(frozen=True)
class Interface:
    """A network interface of the kernel's on a NIC."""

    name: str
    mac: str
    up: bool
    link: bool


@dataclass(frozen=True)
class Member:
    """Another function of the NIC's IOMMU group. Bridges are harmless there."""

    bdf: str
    driver: str | None
    bridge: bool


@dataclass(frozen=True)
class Nic:
    """A network-class PCI function."""

    bdf: str
    vendor: int
    device: int
    name: str
    virtio_net: bool
    driver: str | None
    interfaces: list[Interface]
    uses: list[str]
    group: str | None
    members: list[Member]
    node: str | None
    owner: str | None
    mode: str | None
    iommu: bool  # one stands between it and the machine's memory
    at_boot: bool  # bound to vfio-pci at each boot
    holders: list[str]
    obstacles: list[str]

    @property
    def ready(self) -> bool:
        """Can `pyvirtnet.open` have it, for whoever may open the node?"""
        return not self.obstacles


def status(host: Host | None = None) -> list[Nic]:
    """Every NIC of the machine, in the order of PCI addresses."""
    host = host or Host()
    names = host.functions()
    nics = [_nic(host, bdf, names[bdf]) for bdf in sorted(names) if host.is_network(bdf)]
    return [nic for nic in nics if host.path(nic.bdf).exists()]  # one may have gone meanwhile


def _nic(host: Host, bdf: str, name: str) -> Nic:
    vendor, device = host.ids(bdf)
    node = next(iter(host.nodes(bdf)), None)
    info = _info(node)
    holders = host.holders(bdf)
    return Nic(
        bdf=bdf,
        vendor=vendor,
        device=device,
        name=name or (_VIRTIO_NET if host.is_virtio_net(bdf) else ""),
        virtio_net=host.is_virtio_net(bdf),
        driver=host.driver(bdf),
        interfaces=[_interface(host, one) for one in host.interfaces(bdf)],
        uses=uses(host, bdf),
        group=host.group(bdf),
        members=[Member(one, host.driver(one), host.is_bridge(one)) for one in host.members(bdf)],
        node=str(node) if node else None,
        owner=_owner(info) if info else None,
        mode=stat.filemode(info.st_mode) if info else None,
        iommu=host.group(bdf) is not None and not host.is_bare(bdf),
        at_boot=persists(host, bdf),
        holders=holders,
        obstacles=_obstacles(host, bdf, node, holders),
    )


def _obstacles(host: Host, bdf: str, node: Path | None, holders: list[str]) -> list[str]:
    found = []
    if not host.is_virtio_net(bdf):
        found.append("not a virtio-net device")
    if host.driver(bdf) != VFIO_PCI:
        found.append(f"bound to {host.driver(bdf) or 'no driver'}, not {VFIO_PCI}")
    elif node is None:
        found.append("its node under /dev/vfio is missing")
    if not host.has_iommu() and not host.is_bare(bdf):
        found.append("no IOMMU")
    found += [
        f"{other} ({host.driver(other)}) spoils its IOMMU group" for other in host.spoilers(bdf)
    ]
    found += [f"held by {holder}" for holder in holders]
    return found


def _interface(host: Host, name: str) -> Interface:
    folder = host.net / name
    return Interface(
        name, read(folder / "address"), host.is_up(name), read(folder / "carrier") == "1"
    )


def _info(node: Path | None) -> os.stat_result | None:
    with suppress(OSError):  # gone meanwhile
        return node.stat() if node else None
    return None


def _owner(info: os.stat_result) -> str:
    user, group = str(info.st_uid), str(info.st_gid)
    with suppress(KeyError):
        user = pwd.getpwuid(info.st_uid).pw_name
    with suppress(KeyError):
        group = grp.getgrgid(info.st_gid).gr_name
    return f"{user}:{group}"
