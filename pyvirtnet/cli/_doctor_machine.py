"""What `doctor` looks at on a machine: Python, kernel, IOMMU, modules, limits. Needs no numpy."""

from __future__ import annotations

import errno
import importlib.util
import os
import platform
import resource
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from ..bind import IOMMU_MEND, VFIO_PCI, Host
from ..bind.host import read
from ..vfio.problems import user_name

MEMLOCK = 8 << 20  # bytes: two ports of the default size, and frames to be sent
_CAP_IPC_LOCK = 1 << 14
_INTERRUPT_REMAPPING = 1 << 3  # of VT-d's extended capabilities
_TABLES = {"DMAR": "intel_iommu=on", "IVRS": "amd_iommu=on", "VIOT": "", "IORT": ""}
_BOOT = (
    "as root: put {option} into GRUB_CMDLINE_LINUX of /etc/default/grub (elsewhere: the kernel's "
    "command line), update-grub, reboot"
)
_KERNEL = (
    "in a container: modprobe vfio-pci on its host; elsewhere boot a distribution's kernel (as "
    "root: apt-get install linux-image-amd64, Ubuntu: linux-image-generic; reboot), or build "
    "yours with CONFIG_VFIO_PCI=m"
)


@dataclass(frozen=True)
class Finding:
    """One line: `state` is ok, note, or missing, and then `mend` says what to do about it."""

    subject: str
    state: str
    said: str
    mend: str = ""


def machine(host: Host) -> Iterator[Finding]:
    """From the interpreter down to the limits; in the order in which to mend."""
    yield _python()
    yield _processor(host)
    yield from _package()
    yield from _iommu(host)
    yield _module(host)
    yield from _container(host)
    yield _memlock(host)
    yield _huge_pages(host)


def _python() -> Finding:
    return Finding(
        "python", "ok", f"{platform.python_implementation()} {platform.python_version()}"
    )


def _processor(host: Host) -> Finding:
    kind, text = platform.machine(), read(host.proc / "cpuinfo")
    guest = " hypervisor" in text
    said = f"{kind}, kernel {os.uname().release}, {'a virtual' if guest else 'no virtual'} machine"
    if kind == "x86_64":
        return Finding("machine", "ok", said)
    return Finding("machine", "note", f"{said}: tested on x86_64 alone")


def _package() -> Iterator[Finding]:
    for name, mend in (
        ("numpy", f"{sys.executable} -m pip install numpy"),
        ("pyvirtnet._queue", "build the package: pip install . in the clone, or tools/pyvirtnet"),
    ):
        if importlib.util.find_spec(name) is None:
            yield Finding("package", "missing", f"{name} cannot be imported", mend)
    for name, what in (("rich", "live tables are plain lines"),):
        if importlib.util.find_spec(name) is None:
            said = f"without {name}, {what}"
            yield Finding("package", "note", said, f"{sys.executable} -m pip install {name}")


def _iommu(host: Host) -> Iterator[Finding]:
    units = sorted(path.name for path in host.sys.glob("class/iommu/*"))
    if not units:
        yield _without_iommu(host)
        return
    yield Finding("iommu", "ok", ", ".join(units))
    for unit in units:
        capabilities = read(host.sys / f"class/iommu/{unit}/intel-iommu/ecap")
        allowed = host.sys / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
        if capabilities and not int(capabilities, 16) & _INTERRUPT_REMAPPING:
            if read(allowed) in ("Y", "1"):
                said = f"{unit} does not remap them, and VFIO was told to put up with it"
                yield Finding("interrupts", "note", said)
                continue
            mend = (
                "in QEMU: -M q35,kernel-irqchip=split -device intel-iommu,intremap=on; or, where "
                f"devices may be trusted, as root: modprobe vfio_iommu_type1; echo 1 > {allowed}"
            )
            said = f"{unit} does not remap them, so VFIO refuses"
            yield Finding("interrupts", "missing", said, mend)


def _without_iommu(host: Host) -> Finding:
    if host.noiommu():
        said = "none; VFIO's unsafe no-IOMMU mode is on: devices can write to any memory"
        return Finding("iommu", "note", said)
    for table, option in _TABLES.items():
        if (host.sys / "firmware/acpi/tables" / table).exists():
            command_line = read(host.proc / "cmdline").split()
            if option and option not in command_line:
                said = f"the firmware has one ({table}), and the kernel does not use it"
                return Finding("iommu", "missing", said, _BOOT.format(option=option))
            said = f"the firmware has one ({table}), and the kernel did not bring it up"
            return Finding("iommu", "missing", said, "as root: dmesg | grep -i -e iommu -e dmar")
    return Finding("iommu", "missing", "this machine has none, or it is switched off", IOMMU_MEND)


def _module(host: Host) -> Finding:
    if (host.pci / "drivers" / VFIO_PCI).exists():
        return Finding("vfio-pci", "ok", "loaded")
    folder = host.sys.parent / "lib/modules" / os.uname().release
    lists = (read(folder / name) for name in ("modules.dep", "modules.builtin"))
    if any("/vfio-pci.ko" in text for text in lists):
        return Finding("vfio-pci", "note", "not loaded yet; tools/bind loads it")
    return Finding("vfio-pci", "missing", f"no such module under {folder}", _KERNEL)


def _container(host: Host) -> Iterator[Finding]:
    path = host.dev / "vfio/vfio"
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))  # access() knows nothing of containers
    except PermissionError as error:
        said = f"{path} cannot be opened by this user"
        mend = f"as root: chmod 0666 {path}"
        if error.errno == errno.EPERM:
            said = f"{path} was not given to this container"
            mend = f"docker run --device {path}, or --privileged"
        yield Finding("container", "missing", said, mend)
    except FileNotFoundError:
        yield Finding("container", "note", f"{path} is not there yet; it comes with vfio-pci")
    except OSError as error:
        said = f"{path} cannot be opened: {error.strerror}"
        yield Finding("container", "missing", said, "as root: modprobe vfio-pci; see dmesg")
    else:
        yield Finding("container", "ok", f"{path} can be opened")


def _memlock(host: Host) -> Finding:
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return Finding("memlock", "ok", "unlimited")
    said = f"{limit >> 10} KiB allowed, {MEMLOCK >> 10} KiB needed"
    if limit >= MEMLOCK:
        return Finding("memlock", "ok", said)
    if _may_lock_memory(host):
        return Finding("memlock", "ok", f"{said}; this user may lock more")
    user = user_name(os.geteuid())
    mend = (
        f"as root: echo '{user} - memlock {MEMLOCK >> 10}' >> "
        "/etc/security/limits.d/pyvirtnet.conf, then log in anew"
    )
    return Finding("memlock", "missing", said, mend)


def _may_lock_memory(host: Host) -> bool:
    lines = read(host.proc / "self/status").splitlines()
    for line in lines:
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) & _CAP_IPC_LOCK)
    return False


def _huge_pages(host: Host) -> Finding:
    lines = read(host.proc / "meminfo").splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    free = int(found.get("HugePages_Free", "0").split()[0])
    size = found.get("Hugepagesize", "2048 kB").strip()
    if free:
        return Finding("huge pages", "ok", f"{free} of {size} free")
    mend = "as root: echo 64 > /proc/sys/vm/nr_hugepages"
    return Finding("huge pages", "note", "none; it works without, a little slower", mend)
