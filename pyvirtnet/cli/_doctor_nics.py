"""What `doctor` looks at of each NIC: driver, uses, IOMMU group, node, holders, features."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from ..bind import VFIO_PCI, Host, Nic, status
from ..bind.host import listed, read
from ..errors import Error
from ..spec import Feature
from ..vfio.problems import user_name
from ._doctor_machine import Finding

_QEMU = "(QEMU: -netdev … -device virtio-net-pci,netdev=…,disable-legacy=on,iommu_platform=on)"
_NONE = f"give the machine one {_QEMU}; until then, sim:loopback and vhost-user: ports work"


def nics(host: Host, only: Sequence[str]) -> Iterator[Finding]:
    """Each virtio NIC, or those that are asked for, and whether any can be opened."""
    wanted = {host.resolve(name) for name in only}
    known = {nic.bdf: nic for nic in status(host) if nic.virtio_net}
    if not known:
        yield Finding("NICs", "missing", "no virtio NIC on the PCI bus", _NONE)
        return
    for bdf in sorted(wanted - set(known)):
        yield Finding(bdf, "missing", "this is no virtio NIC", f"tools/doctor {' '.join(known)}")
    found = [nic for nic in known.values() if not wanted or nic.bdf in wanted]
    ready = any(nic.ready and _openable(nic) for nic in found)
    for nic in found:
        yield from _nic(host, nic, must=not ready or bool(wanted))
    taken = [nic for nic in found if nic.uses or nic.holders]
    if taken and (wanted or (not ready and taken == found)):
        yield _none_free(taken)


def _none_free(taken: Sequence[Nic]) -> Finding:
    """NICs that lack nothing, and cannot be had."""
    mends = [f"give the machine another NIC {_QEMU}"]
    mends += [f"end {', '.join(nic.holders)}" for nic in taken if nic.holders]
    if used := " ".join(nic.bdf for nic in taken if nic.uses):
        force = f"sudo tools/bind {used} --force"
        mends.append(f"{force}, which ends what the kernel does with it, SSH sessions too")
    said = f"none: {', '.join(nic.bdf for nic in taken)} {'are' if taken[1:] else 'is'} in use"
    return Finding("free NIC", "missing", said, "; or ".join(mends))


def opened(name: str) -> Iterator[Finding]:
    """What `open()` says of a NIC that looks ready."""
    import pyvirtnet

    try:
        with pyvirtnet.open(name) as port:
            info = port.info()
            said = f"opens: {info['ring_format']} rings, {info['receive_mode']} receive buffers"
            yield Finding(name, "ok", said)
            yield Finding(name, "ok", f"features: {_names(port.features.offered)}")
    except Error as error:
        yield Finding(name, "missing", f"{error.what}: {error.why}", error.mend)


def _nic(host: Host, nic: Nic, must: bool) -> Iterator[Finding]:
    """`must`: that it cannot be opened is worth a mend."""
    bad = "missing" if must else "note"
    if nic.driver == VFIO_PCI:
        yield from _bound(nic, bad)
    elif nic.uses:
        yield Finding(nic.bdf, "note", f"the kernel uses it: {'; '.join(nic.uses)}")
    else:
        mend = f"sudo tools/bind {nic.bdf} --user {_user()}" if must else ""
        yield Finding(nic.bdf, bad, f"not bound to vfio-pci, but {nic.driver or 'no driver'}", mend)
    yield from _group(host, nic)
    yield from _features(host, nic)


def _bound(nic: Nic, bad: str) -> Iterator[Finding]:
    if nic.holders:
        yield Finding(nic.bdf, "note", f"held by {', '.join(nic.holders)}")
    elif nic.node is None:
        said, mend = "bound to vfio-pci, its node is missing", f"sudo tools/bind {nic.bdf}"
        yield Finding(nic.bdf, bad, said, mend)
    elif not _openable(nic):
        said = f"{nic.node} belongs to {nic.owner} ({nic.mode})"
        mend = f"sudo tools/bind {nic.bdf} --user {_user()}"
        yield Finding(nic.bdf, bad, said, mend)
    elif nic.ready:
        yield Finding(nic.bdf, "ok", f"ready: pyvirtnet.open({nic.bdf!r})")


def _user() -> str:
    """Whose the NIC is to be: with sudo, who called it. $USER may be anybody."""
    return os.environ.get("SUDO_USER") or user_name(os.geteuid())


def _openable(nic: Nic) -> bool:
    return nic.node is not None and os.access(nic.node, os.R_OK | os.W_OK)


def _group(host: Host, nic: Nic) -> Iterator[Finding]:
    spoilers = host.spoilers(nic.bdf)
    if spoilers:
        said = f"IOMMU group {nic.group} also holds {', '.join(spoilers)}, with kernel drivers"
        yield Finding(nic.bdf, "missing", said, f"sudo tools/bind {' '.join(spoilers)}")
    elif nic.group is not None:
        alone = "alone in it" if not nic.members else "with nothing that spoils it"
        yield Finding(nic.bdf, "ok", f"IOMMU group {nic.group}, {alone}")


def _features(host: Host, nic: Nic) -> Iterator[Finding]:
    """The bits that a virtio device shows while the kernel drives it, lowest first."""
    for path in listed(host.path(nic.bdf), "virtio*/features"):
        bits = read(path)
        offered = [one for one in Feature if one < len(bits) and bits[one] == "1"]
        if Feature.VERSION_1 not in offered:
            mend = "QEMU: -device virtio-net-pci,…,disable-legacy=on"
            said = "offers no VERSION_1: a legacy device"
            yield Finding(nic.bdf, "note", said, mend)
        if nic.iommu and host.ignores_iommu(nic.bdf):
            said = "offers no ACCESS_PLATFORM: its DMA goes past the IOMMU and misses"
            mend = "QEMU: -device virtio-net-pci,…,iommu_platform=on"
            yield Finding(nic.bdf, "missing", said, mend)
        yield Finding(nic.bdf, "ok", f"features: {_names(offered)}")


def _names(features: object) -> str:
    return ", ".join(sorted(one.name.lower() for one in features))  # type: ignore[attr-defined]
