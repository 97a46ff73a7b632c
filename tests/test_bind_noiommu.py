"""tools/bind --noiommu on a machine made of files: opt-in, loud, refused behind an IOMMU."""

from pathlib import Path

import pytest
from fake_machine import NIC, OTHER, Machine, said

from pyvirtnet.bind import bind, status
from pyvirtnet.errors import BindFailed, Error, NoIommu


class BareMachine(Machine):
    """Without an IOMMU; VFIO makes stand-in groups once it may."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        (self.sys / "class/iommu/dmar0").rmdir()
        self.add_nic(NIC, "eth1", None)
        self.add_nic(OTHER, "eth2", None)
        self.noiommu_switch.parent.mkdir(parents=True)
        self.noiommu_switch.write_text("N\n")

    def write(self, path: Path, text: str) -> None:
        if path.name == "drivers_probe" and not self.noiommu():
            self.refusing.add("vfio-pci")
        super().write(path, text)
        if path.name == "drivers_probe" and self.driver(text) == "vfio-pci":
            group = self.sys / "kernel/iommu_groups" / text[9]
            (group / "devices").mkdir(parents=True)
            (group / "name").write_text("vfio-noiommu\n")
            (self.path(text) / "iommu_group").symlink_to(group)
            (self.dev / f"vfio/noiommu-{text[9]}").touch(0o600)


@pytest.fixture
def machine(tmp_path: Path) -> BareMachine:
    return BareMachine(tmp_path)


def test_without_the_word_it_is_refused_with_both_mends(machine: BareMachine) -> None:
    with pytest.raises(NoIommu) as caught:
        bind([NIC], host=machine)
    assert "intel_iommu=on" in caught.value.mend
    assert "--noiommu, which protects no memory" in caught.value.mend
    assert machine.driver(NIC) == "virtio-pci"
    assert not machine.noiommu()


def test_with_it_the_mode_is_switched_on_and_the_loss_is_said(machine: BareMachine) -> None:
    code, out, err = said(machine, "bind", "--noiommu", NIC)
    assert (code, err) == (0, "")
    assert "ALL memory of this machine" in out
    assert "switch VFIO's unsafe no-IOMMU mode on" in out
    assert machine.noiommu()
    assert machine.node(NIC) == machine.dev / "vfio/noiommu-4"
    (nic, other) = status(machine)
    assert (nic.ready, nic.iommu) == (True, False)
    assert not other.ready
    assert "ready: noiommu" in said(machine, "status")[1]


def test_a_dry_run_switches_nothing(machine: BareMachine) -> None:
    assert "would switch" in said(machine, "bind", "--noiommu", "--dry-run", NIC)[1]
    assert not machine.noiommu()


def test_a_kernel_without_the_mode_is_named(machine: BareMachine) -> None:
    machine.noiommu_switch.unlink()
    with pytest.raises(BindFailed, match="CONFIG_VFIO_NOIOMMU"):
        bind([NIC], noiommu=True, host=machine)
    assert machine.driver(NIC) == "virtio-pci"


def test_behind_an_iommu_it_is_refused(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add_nic(NIC, "eth1", "5")
    with pytest.raises(Error, match="behind an IOMMU"):
        bind([NIC], noiommu=True, host=machine)
    assert machine.driver(NIC) == "virtio-pci"
