"""Why VFIO refused: turns an errno into the typed error that names the cause and its mend."""

from __future__ import annotations

import os
import pwd
import resource
from collections.abc import Sequence
from dataclasses import dataclass, field
from errno import EBUSY, EINVAL, EMFILE, ENFILE, ENODEV, ENOENT, ENOMEM, ENXIO, EPERM
from pathlib import Path

from ..dma import Region
from ..errors import (
    DeviceBusy,
    Error,
    GroupNotViable,
    MemlockLimit,
    NoIommu,
    NoPermission,
    NotBound,
    OutOfMemory,
    mend_of,
)
from .function import SYS, VFIO_DRIVERS, Function

PROC = Path("/proc")
_CAP_IPC_LOCK = 1 << 14
LOG = "dmesg | tail may tell why"
_HARMLESS_DRIVERS = (*VFIO_DRIVERS, "pci-stub")

_NOT_GIVEN = "not even root may open it: this container was not given it (EPERM)"
_OR_PRIVILEGED = ", or --privileged"

_TURN_ON = (
    "boot the kernel with intel_iommu=on (AMD's is on by default) and switch VT-d or AMD-Vi on in "
    "the firmware; a QEMU guest needs -M q35 -device intel-iommu,intremap=on,device-iotlb=on and "
    "-device virtio-net-pci,…,disable-legacy=on,iommu_platform=on"
)


def no_iommu(function: Function) -> NoIommu:
    """The function has no IOMMU group of its own, or VFIO's stand-in for one."""
    what = f"cannot open {function.bdf}"
    if function.noiommu:
        return NoIommu(
            what,
            "nothing would keep it from reading and writing all of this machine's memory: its "
            "group is VFIO's stand-in for a missing IOMMU",
            f"{_TURN_ON}; or, if the device and this program may be trusted with all memory, "
            "open(..., noiommu=True)",
        )
    why = "it has no IOMMU group"
    iommus = SYS / "class/iommu"
    if not iommus.is_dir() or not any(iommus.iterdir()):
        why += ", because the kernel runs without an IOMMU"
    bare = f"tools/bind {function.bdf} --noiommu, which protects no memory from the device"
    return NoIommu(what, why, f"{_TURN_ON}; without one: {bare}")


def no_physical_addresses(error: OSError) -> NoPermission:
    return NoPermission(
        "cannot tell a device without an IOMMU where its memory is",
        f"{error.strerror or error}: physical addresses are for CAP_SYS_ADMIN",
        "run as root",
    )


def not_physical(region: Region) -> Error:
    return Error(
        f"cannot show {region.size >> 10} KiB of DMA memory to a device without an IOMMU",
        "this process got it for another port, and it is not at its physical address",
        "open the port with noiommu=True before all others, and before frames are allocated",
    )


def no_iommufd(function: Function) -> NoIommu:
    return NoIommu(
        f"cannot open {function.bdf}",
        "the kernel has no iommufd: /dev/iommu or the device's own VFIO file is missing",
        "modprobe iommufd, in a kernel with CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV; or leave "
        "iommufd=on out",
    )


def unsafe_interrupts(function: Function, module: str) -> NoIommu:
    return NoIommu(
        f"cannot open {function.bdf}",
        "the IOMMU doesn't remap interrupts, so the device could forge them (EPERM)",
        "in QEMU, -device intel-iommu,intremap=on; or, where the device is trusted, "
        f"echo 1 > /sys/module/{module}/parameters/allow_unsafe_interrupts",
    )


def wrong_api(function: Function, version: int) -> NoIommu:
    return NoIommu(
        f"cannot open {function.bdf}",
        f"the kernel's VFIO interface is version {version}, not 0",
        "use a kernel with VFIO containers",
    )


def attaching(function: Function, error: OSError, module: str = "vfio_iommu_type1") -> Error:
    """The group could not be put behind the IOMMU."""
    if isinstance(error, PermissionError):
        return unsafe_interrupts(function, module)
    if error.errno in (ENOMEM, EMFILE, ENFILE):
        return refused(function.bdf, error)
    return NoIommu(
        f"cannot open {function.bdf}",
        f"the kernel can't put its group behind the IOMMU ({error.strerror})",
        "dmesg | grep -i -e vfio -e iommu tells why; " + _TURN_ON,
    )


def no_type1(function: Function) -> NoIommu:
    return NoIommu(
        f"cannot open {function.bdf}",
        "VFIO has no type 1 IOMMU driver",
        "modprobe vfio_iommu_type1",
    )


def not_bound(function: Function) -> NotBound:
    driver = function.driver
    why = f"the driver {driver} has it" if driver else "no driver has it"
    return NotBound(
        f"cannot open {function.bdf}", f"{why}, not vfio-pci", f"tools/bind {function.bdf}"
    )


def node(path: str, error: OSError) -> Error:
    """/dev/vfio/vfio or /dev/iommu could not be opened."""
    if isinstance(error, PermissionError):
        what = f"cannot open {path}"
        if error.errno == EPERM:
            return NoPermission(what, _NOT_GIVEN, f"docker run --device {path}{_OR_PRIVILEGED}")
        return NoPermission(what, str(error.strerror), f"as root: chmod 666 {path}")
    if error.errno not in (ENOENT, ENODEV, ENXIO):
        return refused(path, error)
    return NotBound(
        f"cannot open {path}",
        f"{error.strerror}: the kernel's VFIO is not loaded",
        "modprobe vfio-pci",
    )


def refused(path: str, error: OSError) -> Error:
    return Error(f"cannot open {path}", str(error.strerror), mend_of(error, LOG))


def group(function: Function, path: str, error: OSError) -> Error:
    """The group's node could not be opened."""
    if isinstance(error, PermissionError):
        return no_permission(function, path, error)
    if isinstance(error, FileNotFoundError):
        return not_bound(function)
    return busy(function, path) if error.errno == EBUSY else refused(path, error)


def device(function: Function, path: str, error: OSError) -> Error:
    """The device could not be had from its group."""
    if error.errno == EBUSY:
        return busy(function, path)
    if error.errno == ENODEV or function.driver not in VFIO_DRIVERS:
        return not_bound(function)
    return refused(function.bdf, error)


def binding(function: Function, paths: Sequence[str], error: OSError) -> Error:
    """The device's own node could not be bound to the iommufd, or not attached."""
    if error.errno in (EBUSY, EINVAL):  # EINVAL: it is open a second time
        for path in paths:
            if holders(path):
                return busy(function, path)
        if _culprits(function):
            return not_viable(function)
    if error.errno == EBUSY:
        return busy(function, paths[0])
    return attaching(function, error, module="iommufd")


def _culprits(function: Function) -> list[str]:
    """The functions that keep the group from being VFIO's; PCI bridges never do."""
    return [
        f"{member.bdf} ({member.driver})"
        for member in function.group_members()
        if not member.is_bridge and member.driver not in (None, *_HARMLESS_DRIVERS)
    ]


def not_viable(function: Function) -> GroupNotViable:
    culprits = _culprits(function)
    bdfs = " ".join(text.split()[0] for text in culprits) or function.bdf
    return GroupNotViable(
        f"cannot open {function.bdf}",
        f"its IOMMU group {function.group} also holds {', '.join(culprits) or 'other devices'}, "
        "with a kernel driver",
        f"tools/bind {bdfs}",
    )


def busy(function: Function, path: str) -> DeviceBusy:
    """Names the processes that have the node open, as far as this user may see."""
    found = holders(path)
    who = ", ".join(f"{name} (pid {pid})" for pid, name in found)
    if not found:
        who = "a process that this user may not look into"
        mend = f"stop it; as root, fuser -v {path} names it"
    elif found[0][0] == os.getpid():
        return busy_here(function)
    else:
        mend = "stop it: kill " + " ".join(str(pid) for pid, _ in found)
    return DeviceBusy(f"cannot open {function.bdf}", f"{path} is held by {who}", mend)


def busy_here(function: Function) -> DeviceBusy:
    return DeviceBusy(
        f"cannot open {function.bdf}",
        f"this process (pid {os.getpid()}) has it open already",
        "close the other port first, or use it",
    )


def holders(path: str) -> list[tuple[int, str]]:
    """(pid, name) of each process that has `path` open."""
    found = []
    for process in PROC.iterdir():
        if not process.name.isdigit():
            continue
        try:
            if any(os.readlink(fd) == path for fd in (process / "fd").iterdir()):
                name = (process / "comm").read_text(errors="replace")  # the kernel cuts letters
                found.append((int(process.name), name.strip()))
        except OSError:  # gone meanwhile, or another user's
            continue
    return sorted(found)


def no_permission(function: Function, path: str, error: OSError) -> NoPermission:
    try:
        status = os.stat(path)
        owner = f"{path} belongs to {user_name(status.st_uid)} (mode {status.st_mode & 0o777:o})"
    except OSError:
        owner = f"{path} is not accessible"
    user = user_name(os.geteuid())
    if function.noiommu:
        why = f"VFIO's no-IOMMU mode is for CAP_SYS_RAWIO, and this process runs as {user}"
        return NoPermission(f"cannot open {function.bdf}", why, "run as root")
    if error.errno == EPERM:
        common = "/dev/iommu" if "/devices/" in path else "/dev/vfio/vfio"
        mend = f"docker run --device {path} --device {common}{_OR_PRIVILEGED}"
        return NoPermission(f"cannot open {function.bdf}", f"{path}: {_NOT_GIVEN}", mend)
    return NoPermission(
        f"cannot open {function.bdf}",
        f"{owner}, and this process runs as {user}",
        f"as root: tools/bind {function.bdf} --user {user}",
    )


def mapping(size: int, error: OSError, *, by_user: bool = False) -> Error:
    """MAP_DMA failed: the memlock limit if that explains it, else memory or address space.

    `by_user`: the limit is one for all processes of the user, of which nobody tells the sum.
    """
    what = f"cannot map {size >> 10} KiB of DMA memory"
    status = _status()
    allowed = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    locked = max(int(status.get(name, "0").split()[0]) for name in ("VmLck", "VmPin"))
    needed = max(locked * 1024 + size, allowed + size if by_user else 0)
    limited = allowed != resource.RLIM_INFINITY and needed > allowed
    if isinstance(error, PermissionError):
        return NoPermission(what, str(error.strerror), "run as root, or as the group node's owner")
    if limited and not int(status.get("CapEff", "0"), 16) & _CAP_IPC_LOCK:
        kib = needed + 1023 >> 10
        together = ", to all processes of this user together" if by_user else ""
        return MemlockLimit(
            what,
            f"RLIMIT_MEMLOCK allows {allowed >> 10} KiB{together}, and {kib} KiB are needed",
            f"ulimit -l {kib} (as root: prlimit --pid $$ --memlock={kib << 10}), "
            "or open the port with fewer pages=",
        )
    return OutOfMemory(what, str(error.strerror), "free memory, or open with fewer pages=")


@dataclass
class Limits:
    """What the IOMMU can map: page sizes (a bit each), inclusive address ranges, mappings left."""

    page_sizes: int = 4096
    ranges: list[tuple[int, int]] = field(default_factory=list)
    mappings: int = 65535


def check_mapping(region: Region, limits: Limits) -> None:
    """Raise if the IOMMU can't map `region`: the kernel's own answer would be a bare EINVAL."""
    first, last = region.iova, region.iova + region.size - 1
    what = f"cannot map DMA memory at {first:#x}-{last:#x}"
    page = limits.page_sizes & -limits.page_sizes
    if limits.ranges and not any(low <= first and last <= high for low, high in limits.ranges):
        usable = ", ".join(f"{low:#x}-{high:#x}" for low, high in limits.ranges)
        mend = "give the IOMMU more address bits (QEMU: -device intel-iommu,aw-bits=48)"
        raise OutOfMemory(what, f"the IOMMU translates only {usable}", mend)
    if page and (first | region.size) % page:
        mend = f"reserve huge pages: echo 64 > /proc/sys/vm/nr_hugepages (of at least {page} bytes)"
        raise OutOfMemory(what, f"the IOMMU's smallest page is {page >> 10} KiB", mend)
    if limits.mappings < 1:
        mend = "raise /sys/module/vfio_iommu_type1/parameters/dma_entry_limit"
        raise OutOfMemory(what, "the kernel's limit of DMA mappings is reached", mend)


def _status() -> dict[str, str]:
    """/proc/self/status as names and values."""
    lines = (PROC / "self/status").read_text().splitlines()
    pairs = (line.partition(":") for line in lines)
    return {name: value.strip() for name, _, value in pairs}


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
