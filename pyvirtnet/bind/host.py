"""Find NICs: what /sys, /proc, /dev and the kernel's events say about PCI network functions."""

from __future__ import annotations

import array
import fcntl
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyudev  # type: ignore[import-untyped]

from ..errors import BindFailed, LibraryMissing, NoSuchDevice
from ..spec import PCI_DEVICE_NET, PCI_DEVICE_NET_TRANSITIONAL, PCI_VENDOR, Feature

VFIO_PCI = "vfio-pci"
IOMMU_MEND = (
    "boot the kernel with intel_iommu=on (AMD's is on by default) and switch VT-d or AMD-Vi on in "
    "the firmware; a QEMU guest needs -M q35 -device intel-iommu,intremap=on,device-iotlb=on and "
    "-device virtio-net-pci,…,disable-legacy=on,iommu_platform=on"
)
Until = Callable[[Callable[[], bool], float], bool]

_BDF = re.compile(r"(?:([0-9a-f]{4,}):)?([0-9a-f]{2}:[01][0-9a-f]\.[0-7])", re.IGNORECASE)
_SIOCGIFCONF, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8912, 0x8913, 0x8914
_IFF_UP = 1
_IFREQ = 40  # sizeof(struct ifreq), 64-bit


def read(path: Path) -> str:
    """A small kernel file; empty if it is not there or has nothing to say."""
    try:
        return path.read_text(errors="replace").strip()  # names that the kernel has cut
    except OSError:
        return ""


def exists(path: Path) -> bool:
    """Not, where this user may not look either."""
    return os.path.exists(path)  # Path's raises PermissionError


def listed(folder: Path, pattern: str) -> list[Path]:
    """What is there of that pattern, in order: nothing, where the device goes meanwhile."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def link(path: Path) -> str | None:
    """The name that a symbolic link of sysfs points at."""
    target = _target(path)
    return None if target is None else os.path.basename(target)


def _target(path: Path) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _context() -> pyudev.Context:
    try:
        return pyudev.Context()
    except ImportError as error:  # of the library itself, which pyudev comes without
        why, mend = str(error), "apt-get install libudev1"
        raise LibraryMissing("cannot ask udev for the NICs", why, mend) from error


@contextmanager
def failing(what: str, mend: str = "dmesg tells the cause") -> Iterator[None]:
    """Turns what the kernel says no to into a `BindFailed`."""
    try:
        yield
    except OSError as error:
        raise BindFailed(f"cannot {what}", error.strerror or str(error), mend) from error


class Host:
    """The machine, seen under `root`. What files alone can't show or do is a method of its own,
    so that a test can put a fake tree and a fake kernel in its place."""

    def __init__(self, root: str | Path = "/") -> None:
        top = Path(root)
        self.sys, self.proc = top / "sys", top / "proc"
        self.dev, self.run = top / "dev", top / "run"
        self.pci, self.net = self.sys / "bus/pci", self.sys / "class/net"

    # What only a running kernel does

    def functions(self) -> dict[str, str]:
        """Every PCI function, with its name in udev's hardware database."""
        names = {}
        for device in _context().list_devices(subsystem="pci"):
            have = device.properties
            parts = (have.get(f"ID_{part}_FROM_DATABASE") for part in ("VENDOR", "MODEL"))
            names[device.sys_name] = " ".join(part for part in parts if part)
        return names

    @contextmanager
    def watch(self) -> Iterator[Until]:
        """Listen to the kernel's events; yields until(condition, seconds) -> was it met?"""
        events = "udev" if self._has_udev() else "kernel"
        monitor = pyudev.Monitor.from_netlink(_context(), events)
        monitor.start()

        def until(condition: Callable[[], bool], seconds: float) -> bool:
            end = time.monotonic() + seconds
            while not condition():
                left = end - time.monotonic()
                if left <= 0:
                    return False
                # Looks again each half second: udev's events don't reach every namespace.
                monitor.poll(min(left, 0.5))
            return True

        yield until

    def settled(self, device: Path) -> bool:
        """Is udev, where there is one, done with naming a device and setting its owner?"""
        if not self._has_udev():
            return True
        with suppress(pyudev.DeviceNotFoundError):
            found = pyudev.Devices.from_sys_path(_context(), str(device))
            return found.is_initialized and "ID_RENAMING" not in found.properties
        return False

    def _has_udev(self) -> bool:
        return (self.run / "udev/control").exists()

    def write(self, path: Path, text: str) -> None:
        with failing(f"write {text.strip()!r} to {path}"):
            path.write_text(text)

    def modprobe(self, module: str) -> str:
        """Load a module; returns modprobe's complaint, empty when there is none."""
        tool = shutil.which("modprobe", path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        if tool is None:
            return "there is no modprobe (package kmod)"
        done = subprocess.run([tool, module], capture_output=True, text=True, check=False)
        return done.stderr.strip() if done.returncode else ""

    def ipv4(self) -> list[tuple[str, str]]:
        """(interface, address) of every IPv4 address, netdevice(7)."""
        room = array.array("B", bytes(_IFREQ * 1024))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            ask = struct.pack("iP", len(room), room.buffer_info()[0])
            used: int = struct.unpack_from("i", fcntl.ioctl(sock, _SIOCGIFCONF, ask))[0]
        found = []
        for at in range(0, used, _IFREQ):
            label = room[at : at + 16].tobytes().partition(b"\0")[0].decode()
            address = socket.inet_ntoa(room[at + 20 : at + 24].tobytes())
            found.append((label.partition(":")[0], address))
        return found

    def set_up(self, interface: str, up: bool) -> None:
        name = interface.encode()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            have = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sH22x", name, 0))
            flags: int = struct.unpack_from("16sH", have)[1] & ~_IFF_UP | _IFF_UP * up
            fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags))

    def look(self) -> None:
        """How long a short look at the traffic counters is."""
        time.sleep(0.5)

    # PCI functions

    def path(self, bdf: str) -> Path:
        return self.pci / "devices" / bdf

    def resolve(self, text: str) -> str:
        """0000:00:04.0, 00:04.0 or an interface's name -> 0000:00:04.0."""
        mend = "tools/bind status lists the NICs of this machine"
        if match := _BDF.fullmatch(text):
            bdf = f"{match[1] or '0000'}:{match[2]}".lower()
            if self.path(bdf).exists():
                return bdf
            raise NoSuchDevice(f"no PCI function {bdf}", f"{self.path(bdf)} does not exist", mend)
        for bdf in self.functions():
            if text in self.interfaces(bdf):
                return bdf
        why = "neither a PCI address such as 0000:00:04.0 nor the interface of a PCI function"
        raise NoSuchDevice(f"no NIC {text!r}", why, mend)

    def is_network(self, bdf: str) -> bool:
        return read(self.path(bdf) / "class").startswith("0x02") or self.is_virtio_net(bdf)

    def is_virtio_net(self, bdf: str) -> bool:
        return self.ids(bdf) in (
            (PCI_VENDOR, PCI_DEVICE_NET),
            (PCI_VENDOR, PCI_DEVICE_NET_TRANSITIONAL),
        )

    def ids(self, bdf: str) -> tuple[int, int]:
        vendor, device = (read(self.path(bdf) / name) or "0" for name in ("vendor", "device"))
        return int(vendor, 16), int(device, 16)

    def driver(self, bdf: str) -> str | None:
        return link(self.path(bdf) / "driver")

    def interfaces(self, bdf: str) -> list[str]:
        """The kernel's interfaces on a function; virtio's hang one device lower."""
        device = self.path(bdf)
        places = listed(device, "net/*") + listed(device, "virtio*/net/*")
        return sorted(path.name for path in places)

    def ignores_iommu(self, bdf: str) -> bool:
        """A virtio device, still with the kernel, without ACCESS_PLATFORM (VIRTIO 6)."""
        for features in listed(self.path(bdf), "virtio*/features"):
            bits = read(features)
            return len(bits) > Feature.ACCESS_PLATFORM and bits[Feature.ACCESS_PLATFORM] == "0"
        return False

    # IOMMU groups and their nodes

    def has_iommu(self) -> bool:
        return any(self.sys.glob("class/iommu/*"))

    @property
    def noiommu_switch(self) -> Path:
        """Turns VFIO's unsafe no-IOMMU mode on; not there in kernels that don't have it."""
        return self.sys / "module/vfio/parameters/enable_unsafe_noiommu_mode"

    def noiommu(self) -> bool:
        return read(self.noiommu_switch) in ("Y", "1")

    def is_bare(self, bdf: str) -> bool:
        """Is its group VFIO's stand-in for a missing IOMMU?"""
        group = self.group(bdf)
        name = self.sys / f"kernel/iommu_groups/{group}/name"
        return group is not None and read(name) == "vfio-noiommu"

    def group(self, bdf: str) -> str | None:
        return link(self.path(bdf) / "iommu_group")

    def members(self, bdf: str) -> list[str]:
        """The other functions of the IOMMU group."""
        members = listed(self.path(bdf), "iommu_group/devices/*")
        return [path.name for path in members if path.name != bdf]

    def is_bridge(self, bdf: str) -> bool:
        return read(self.path(bdf) / "class").startswith("0x06")

    def spoilers(self, bdf: str) -> list[str]:
        """Members that keep VFIO from using the group: endpoints with a kernel driver."""
        return [
            other
            for other in self.members(bdf)
            if not self.is_bridge(other) and self.driver(other) not in (None, VFIO_PCI, "pci-stub")
        ]

    def node(self, bdf: str) -> Path | None:
        """/dev/vfio/N, whether it exists yet or not."""
        group = self.group(bdf)
        if group is None:
            return None
        return self.dev / "vfio" / (f"noiommu-{group}" if self.is_bare(bdf) else group)

    def nodes(self, bdf: str) -> list[Path]:
        """That one, and the function's own, of kernels with iommufd: those that exist."""
        own = listed(self.path(bdf), "vfio-dev/*")
        nodes = [self.node(bdf), *(self.dev / "vfio/devices" / folder.name for folder in own)]
        return [node for node in nodes if node and exists(node)]

    def holders(self, bdf: str) -> list[str]:
        """The processes that have a VFIO node of the function open: "pid 12 (name)"."""
        nodes = {str(node) for node in self.nodes(bdf)}
        found = []
        for process in self.proc.glob("[0-9]*"):
            with suppress(OSError):  # gone meanwhile, or another user's
                if any(_target(fd) in nodes for fd in (process / "fd").iterdir()):
                    found.append(f"pid {process.name} ({read(process / 'comm')})")
        return sorted(found)

    # Interfaces

    def is_up(self, interface: str) -> bool:
        return bool(int(read(self.net / interface / "flags") or "0", 16) & _IFF_UP)

    def frames(self, interface: str) -> int:
        """Frames sent and received so far."""
        counters = self.net / interface / "statistics"
        return sum(int(read(counters / f"{way}_packets") or "0") for way in ("rx", "tx"))
