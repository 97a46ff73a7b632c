"""The single steps of binding and restoring; each is verified, and may return a remark."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ..errors import BindFailed, Error, NoIommu
from .host import IOMMU_MEND, VFIO_PCI, Host, Until, failing, read

MEMLOCK_MIB = 64  # what a port of the default size maps for DMA, with room to spare
_PATIENCE = 10.0  # seconds for a node or an interface to come
_PROBING = 2.0  # seconds for a driver, which has answered by then: drivers_probe waits for it
_SETTLING = 3.0  # seconds more for udev, whose absence of mind does no harm


@dataclass(frozen=True)
class Owner:
    """Who shall own the group node, by name or number; None leaves it as it is."""

    user: str | None = None
    group: str | None = None

    @property
    def uid(self) -> int:
        return _number(self.user, "user", lambda name: pwd.getpwnam(name).pw_uid)

    @property
    def gid(self) -> int:
        return _number(self.group, "group", lambda name: grp.getgrnam(name).gr_gid)

    def __bool__(self) -> bool:
        return self.user is not None or self.group is not None

    def __str__(self) -> str:
        words = ("user", self.user), ("group", self.group)
        return " and ".join(f"{kind} {name}" for kind, name in words if name is not None)


def _number(name: str | None, kind: str, find: Callable[[str], int]) -> int:
    if name is None or name.isdecimal():
        return int(name or -1)
    try:
        return find(name)
    except KeyError:
        database = {"user": "passwd", "group": "group"}[kind]
        why, mend = f"this machine knows no {kind} of that name", f"getent {database} lists them"
        raise Error(f"no {kind} {name!r}", why, mend) from None


def load(host: Host, until: Until) -> None:
    driver = host.pci / "drivers" / VFIO_PCI
    complaint = "" if driver.exists() else host.modprobe(VFIO_PCI)
    if not driver.exists():
        raise BindFailed(
            f"cannot load {VFIO_PCI}",
            complaint or "modprobe did not complain, and yet the driver is not there",
            "use a kernel with CONFIG_VFIO_PCI and install its modules: "
            f"apt-get install linux-image-{os.uname().release}",
        )


def allow_noiommu(host: Host, until: Until) -> None:
    """Let VFIO take functions that no IOMMU holds back."""
    what = "cannot switch VFIO's no-IOMMU mode on"
    if not host.noiommu_switch.exists():
        why = "the kernel's VFIO was built without it (CONFIG_VFIO_NOIOMMU)"
        raise BindFailed(what, why, f"give the machine an IOMMU: {IOMMU_MEND}")
    host.write(host.noiommu_switch, "Y")
    if not host.noiommu():
        raise BindFailed(what, f"{host.noiommu_switch} stays off", "dmesg tells the cause")


def take_down(host: Host, interface: str, until: Until) -> None:
    with failing(f"take {interface} down", f"ip link set {interface} down"):
        host.set_up(interface, False)


def take_up(host: Host, interface: str) -> None:
    with failing(f"take {interface} up again", f"ip link set {interface} up"):
        host.set_up(interface, True)


def take(host: Host, bdf: str, until: Until) -> None:
    """Move to vfio-pci."""
    _override(host, bdf, VFIO_PCI)
    _release(host, bdf)
    _probe(host, bdf)
    if until(lambda: host.driver(bdf) == VFIO_PCI, _PROBING):
        return
    what = f"{VFIO_PCI} did not take {bdf}"
    if host.group(bdf) is None:
        raise NoIommu(what, "it has no IOMMU group", IOMMU_MEND)
    raise BindFailed(what, f"it has {host.driver(bdf) or 'no driver'}", "dmesg tells the cause")


def await_node(host: Host, bdf: str, until: Until) -> str:
    nodes: list[Path] = []

    def there() -> bool:
        nodes[:] = host.nodes(bdf)
        return bool(nodes)

    if not until(there, _PATIENCE):
        why = f"{host.node(bdf) or 'its node under /dev/vfio'} did not appear"
        raise BindFailed(f"cannot use {bdf}", why, "see that devtmpfs is mounted on /dev; dmesg")
    node = nodes[0]
    kind = "vfio-dev" if node.parent.name == "devices" else "vfio"
    until(lambda: host.settled((host.sys / "class" / kind / node.name).resolve()), _SETTLING)
    return f"bound to {VFIO_PCI}, node {node}"


def give(host: Host, bdf: str, owner: Owner, until: Until) -> str:
    """Hand the group node, and the function's own, to an ordinary user."""
    nodes = host.nodes(bdf)
    for node in nodes:
        with failing(f"give {node} to {owner}", f"chown it: ls -l {node}"):
            os.chown(node, owner.uid, owner.gid)
            if owner.group is not None:
                node.chmod(0o660)
    remark = "; ".join(f"{node} belongs to {owner}" for node in nodes)
    remark += "".join(_closed_to_others(host, node) for node in nodes[:1])
    if owner.user is not None and owner.uid == 0:
        return remark
    who = owner.user or f"@{owner.group}"
    return (
        f"{remark}; each port locks up to {MEMLOCK_MIB} MiB of memory: if ulimit -l is less, put "
        f"'{who} - memlock {MEMLOCK_MIB << 10}' into /etc/security/limits.d/pyvirtnet.conf"
    )


def _closed_to_others(host: Host, node: Path) -> str:
    """What has to be accessible too, to use that node."""
    common = host.dev / ("iommu" if node.parent.name == "devices" else "vfio/vfio")
    mode = common.stat().st_mode if common.exists() else 0
    return (
        "" if mode & 0o006 == 0o006 else f"; {common} is {stat.filemode(mode)}: chmod 0666 {common}"
    )


def give_back(host: Host, bdf: str, old: str | None, until: Until) -> None:
    """Back to the driver it had, or, where that is forgotten, to one the kernel chooses."""
    if old is None or not (host.pci / "drivers" / old).exists():
        host.modprobe(read(host.path(bdf) / "modalias"))
    if old is not None:
        put_back(host, bdf, old, until)
        return
    _override(host, bdf, "")
    _release(host, bdf)
    _probe(host, bdf)
    if not until(lambda: host.driver(bdf) not in (None, VFIO_PCI), _PROBING):
        why = f"it has {host.driver(bdf) or 'no driver'}: no driver of the kernel's took it"
        raise BindFailed(f"cannot restore {bdf}", why, "modprobe its driver, then restore again")


def put_back(host: Host, bdf: str, old: str | None, until: Until) -> bool:
    """Make `old` its driver again (None: no driver); false when it still is."""
    _override(host, bdf, "")
    if host.driver(bdf) == old:
        return False
    _release(host, bdf)
    if old is None:
        return True
    # Named while it is probed, since a new_id of somebody's could hand it to vfio-pci again.
    _override(host, bdf, old)
    _probe(host, bdf)
    _override(host, bdf, "")
    if not until(lambda: host.driver(bdf) == old, _PROBING):
        why = f"it has {host.driver(bdf) or 'no driver'}"
        raise BindFailed(f"{old} did not take {bdf} back", why, f"modprobe {old}; see dmesg")
    return True


def await_interface(host: Host, bdf: str, until: Until) -> str:
    def settled() -> bool:
        with suppress(FileNotFoundError):  # it was renamed in between
            return all(host.settled((host.net / name).resolve()) for name in host.interfaces(bdf))
        return False

    if not until(lambda: bool(host.interfaces(bdf)), _PATIENCE):
        what = f"{bdf} is with {host.driver(bdf)}, and has no interface"
        raise BindFailed(what, f"none came within {_PATIENCE:.0f} s", "dmesg tells the cause")
    until(settled, _SETTLING)
    return f"with {host.driver(bdf)}, interface {', '.join(host.interfaces(bdf))}"


def _override(host: Host, bdf: str, driver: str) -> None:
    host.write(host.path(bdf) / "driver_override", driver + "\n")


def _release(host: Host, bdf: str) -> None:
    if host.driver(bdf):
        host.write(host.path(bdf) / "driver/unbind", bdf)


def _probe(host: Host, bdf: str) -> None:
    host.write(host.pci / "drivers_probe", bdf)
