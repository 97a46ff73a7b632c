"""A machine made of files, and a kernel that answers what is written into them."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvirtnet.bind import Host
from pyvirtnet.cli import bind as tool

NIC, OTHER, BRIDGE, DISK = "0000:00:04.0", "0000:00:05.0", "0000:00:1c.0", "0000:00:06.0"


class Machine(Host):
    """A fake tree, and a fake kernel that answers what is written into it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.addresses: list[tuple[str, str]] = []
        self.natural: dict[str, str] = {}  # the driver the kernel chooses
        self.interface: dict[str, str] = {}
        self.group_of: dict[str, str] = {}
        self.refusing: set[str] = set()  # drivers that take nothing
        self.without: set[str] = set()  # modules that are not there
        self.writes: list[tuple[str, str]] = []
        self.flowing: list[str] = []
        self.makes_nodes, self.makes_own_nodes = True, False  # of groups, and of iommufd
        self.complaint = "modprobe: FATAL: Module not found"
        for folder in ("bus/pci/devices", "bus/pci/drivers", "class/net", "class/iommu/dmar0"):
            (self.sys / folder).mkdir(parents=True)
        for folder in (self.dev / "vfio", self.proc / "net", self.run):
            folder.mkdir(parents=True)
        (self.pci / "drivers_probe").touch()
        (self.dev / "vfio/vfio").touch()
        (self.dev / "vfio/vfio").chmod(0o666)

    def add(self, bdf: str, ids: str, kind: str, driver: str | None, group: str | None) -> None:
        device = self.path(bdf)
        device.mkdir()
        for name, text in zip(("vendor", "device"), ids.split(":"), strict=True):
            (device / name).write_text(f"0x{text}\n")
        (device / "class").write_text(f"0x{kind}\n")
        (device / "driver_override").touch()
        if group is not None:
            members = self.sys / "kernel/iommu_groups" / group / "devices"
            members.mkdir(parents=True, exist_ok=True)
            (members / bdf).symlink_to(device)
            (device / "iommu_group").symlink_to(members.parent)
            self.group_of[bdf] = group
        if driver:
            self.natural[bdf] = driver
            self._bind(bdf, driver)

    def add_nic(self, bdf: str, interface: str, group: str | None) -> None:
        self.interface[bdf] = interface
        self.add(bdf, "1af4:1041", "020000", "virtio-pci", group)

    # What a kernel does

    def functions(self) -> dict[str, str]:
        return {path.name: "" for path in sorted((self.pci / "devices").iterdir())}

    @contextmanager
    def watch(self) -> Iterator[Callable[[Callable[[], bool], float], bool]]:
        yield lambda condition, seconds: condition()

    def settled(self, device: Path) -> bool:
        return True

    def write(self, path: Path, text: str) -> None:
        super().write(path, text)
        self.writes.append((path.name, text.strip()))
        if path.name == "unbind":
            self._unbind(text)
        elif path.name == "drivers_probe":
            override = (self.path(text) / "driver_override").read_text().strip()
            driver = override or self.natural.get(text)
            if driver and driver not in self.refusing and self.driver(text) is None:
                self._bind(text, driver)

    def modprobe(self, module: str) -> str:
        if module in self.without:
            return self.complaint
        if module == "vfio-pci":
            (self.pci / "drivers/vfio-pci").mkdir(exist_ok=True)
        return ""

    def ipv4(self) -> list[tuple[str, str]]:
        return self.addresses

    def set_up(self, interface: str, up: bool) -> None:
        (self.net / interface / "flags").write_text("0x1003\n" if up else "0x1002\n")
        self.writes.append(("up" if up else "down", interface))

    def look(self) -> None:
        for name in self.flowing:
            counter = self.net / name / "statistics/rx_packets"
            counter.write_text(str(int(counter.read_text()) + 7))

    def _bind(self, bdf: str, driver: str) -> None:
        folder = self.pci / "drivers" / driver
        folder.mkdir(exist_ok=True)
        (self.path(bdf) / "driver").symlink_to(folder)
        if driver == "vfio-pci":
            if self.makes_nodes and bdf in self.group_of:
                (self.dev / "vfio" / self.group_of[bdf]).touch(0o600)
            if self.makes_own_nodes:
                (self.path(bdf) / "vfio-dev/vfio0").mkdir(parents=True)
                (self.dev / "vfio/devices").mkdir(exist_ok=True)
                (self.dev / "vfio/devices/vfio0").touch(0o600)
        elif bdf in self.interface:
            name = self.interface[bdf]
            (self.path(bdf) / "virtio0/net" / name).mkdir(parents=True)
            (self.path(bdf) / "virtio0/features").write_text("0" * 33 + "1" + "0" * 30)
            self.add_interface(name)

    def remove(self, bdf: str) -> None:
        """It is unplugged."""
        if self.driver(bdf):
            self._unbind(bdf)
        shutil.rmtree(self.path(bdf))
        (self.sys / f"kernel/iommu_groups/{self.group_of[bdf]}/devices" / bdf).unlink()

    def add_interface(self, name: str, kind: str = "") -> None:
        (self.net / name / "statistics").mkdir(parents=True)
        for file, text in (("flags", "0x1002"), ("address", "52:54:00:00:00:01"), ("carrier", "1")):
            (self.net / name / file).write_text(text + "\n")
        (self.net / name / "uevent").write_text(f"DEVTYPE={kind}\n" if kind else "IFINDEX=2\n")
        for way in ("rx", "tx"):
            (self.net / name / f"statistics/{way}_packets").write_text("5")

    def _unbind(self, bdf: str) -> None:
        if self.driver(bdf) == "vfio-pci" and bdf in self.group_of:
            (self.dev / "vfio" / self.group_of[bdf]).unlink(missing_ok=True)
            (self.dev / "vfio/devices/vfio0").unlink(missing_ok=True)
            shutil.rmtree(self.path(bdf) / "vfio-dev", ignore_errors=True)
        for name in self.interfaces(bdf):
            shutil.rmtree(self.net / name)
        shutil.rmtree(self.path(bdf) / "virtio0", ignore_errors=True)
        (self.path(bdf) / "driver").unlink()

    def up(self, name: str) -> None:
        (self.net / name / "flags").write_text("0x1003\n")


def standard(root: Path) -> Machine:
    """Two NICs and a disk."""
    made = Machine(root)
    made.add_nic(NIC, "eth1", "5")
    made.add_nic(OTHER, "eth2", "6")
    made.add(DISK, "1af4:1042", "010000", "virtio-pci", "7")
    return made


def said(machine: Machine, *words: str) -> tuple[int, str, str]:
    """tools/bind's exit status and what it prints."""
    out, err = [], []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Catcher(out))
        patch.setattr(sys, "stderr", Catcher(err))
        try:
            code = tool.main(words, machine)
        except SystemExit as stop:
            code = int(str(stop.code))
    return code, "".join(out), "".join(err)


class Catcher:
    """A text stream that appends to a list."""

    def __init__(self, parts: list[str]) -> None:
        self.parts = parts

    def write(self, text: str) -> int:
        self.parts.append(text)
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""
