"""The virtual machine's hardware, as QEMU's command line."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import Error

FIRST_SLOT = 4  # NICs are 0000:00:04.0 and up
MAX_PORTS = 16


@dataclass(frozen=True)
class Machine:
    """What a guest runs on. Ports 0 and 1 are cabled together on a hub, then 2 and 3, and so on.

    `port_opts` are for every NIC, or, separated by "|", one after the other for the first ones.
    """

    ports: int = 2
    link: Literal["hub", "tap", "dgram"] = "hub"
    iommu: Literal["intel", "virtio", "none"] = "intel"
    port_opts: str = ""
    queues: int = 1
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    memory: int = 1536
    cpus: int = 2
    hotplug: bool = False  # each NIC behind a root port of its own, at 0000:01:00.0 and up

    def __post_init__(self) -> None:
        if not 0 <= self.ports <= MAX_PORTS:
            raise Error(
                f"cannot have {self.ports} ports",
                f"the guest has room for {MAX_PORTS}",
                f"--ports 0 to {MAX_PORTS}",
            )
        if self.queues > 1 and self.link != "tap":
            raise Error(
                f"cannot have {self.queues} queue pairs on a {self.link}",
                "only a tap has several",
                "add --link tap",
            )

    def arguments(self, folder: Path) -> list[str]:
        """Processor, memory, IOMMU and NICs; sockets of `dgram` links lie in `folder`."""
        arguments = [*self._accelerator(), "-m", str(self.memory), "-smp", str(self.cpus)]
        if self.iommu == "intel":  # first: it must exist before what it translates for
            arguments += ["-device", "intel-iommu,intremap=on,device-iotlb=on"]
        elif self.iommu == "virtio":
            arguments += ["-device", "virtio-iommu-pci,addr=1a.0"]
        for port in range(self.ports):
            if self.hotplug:
                slot = f"addr={FIRST_SLOT + port:#x},chassis={port + 1}"
                arguments += ["-device", f"pcie-root-port,id=root{port},{slot}"]
            arguments += ["-netdev", self._cable(port, folder), "-device", self._nic(port)]
        return arguments

    def _accelerator(self) -> list[str]:
        if self.accel == "kvm" or (self.accel == "auto" and kvm_works()):
            return ["-machine", "q35,accel=kvm,kernel-irqchip=split,hpet=off", "-cpu", "host"]
        return ["-machine", "q35,hpet=off", "-accel", "tcg,thread=multi", "-cpu", "Nehalem,+rdrand"]

    def _cable(self, port: int, folder: Path) -> str:
        if self.link == "tap":
            queues = f",queues={self.queues}" if self.queues > 1 else ""
            return f"tap,id=n{port},ifname=tap{port},script=no,downscript=no,vhost=off{queues}"
        if self.link == "dgram":
            ours, theirs = (folder / f"port{port}.{end}" for end in ("guest", "host"))
            ends = f"local.type=unix,local.path={ours},remote.type=unix,remote.path={theirs}"
            return f"dgram,id=n{port},{ends}"
        return f"hubport,id=n{port},hubid={port // 2}"

    def _nic(self, port: int) -> str:
        place = f"bus=root{port}" if self.hotplug else f"addr={FIRST_SLOT + port:#x}"
        options = [f"virtio-net-pci,id=nic{port},netdev=n{port},{place}"]
        options += [f"mac={mac(port)}", "disable-legacy=on", "romfile="]
        if self.iommu != "none":
            options.append("iommu_platform=on")
        if self.queues > 1:
            options += ["mq=on", f"vectors={2 * self.queues + 2}"]
        each = self.port_opts.split("|")
        extra = each[0] if len(each) == 1 else "".join(each[port : port + 1])
        return ",".join([*options, extra] if extra else options)


def mac(port: int) -> str:
    return f"52:54:00:00:00:{port + 1:02x}"


def bdf(port: int, hotplug: bool = False) -> str:
    return f"0000:{port + 1:02x}:00.0" if hotplug else f"0000:00:{FIRST_SLOT + port:02x}.0"


def kvm_works() -> bool:
    """Whether KVM can boot a kernel: the device opens, and the processor has what it takes.

    A nested host may offer /dev/kvm without svm or vmx; guests hang there.
    """
    flags = Path("/proc/cpuinfo").read_text().split()
    return os.access("/dev/kvm", os.R_OK | os.W_OK) and ("svm" in flags or "vmx" in flags)
