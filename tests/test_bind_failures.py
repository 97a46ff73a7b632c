"""Failures on the way: tools/bind puts everything back, and says so."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fake_machine import NIC, OTHER, Machine, said, standard

from pyvirtnet.bind import Owner, bind
from pyvirtnet.errors import (
    BindFailed,
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return standard(tmp_path)


def unchanged(machine: Machine, bdf: str) -> bool:
    override = (machine.path(bdf) / "driver_override").read_text().strip()
    memo = machine.run / f"pyvirtnet/bind/{bdf}.json"
    return machine.driver(bdf) == "virtio-pci" and not override and not memo.exists()


def test_a_missing_module_is_told_with_modprobes_words(machine: Machine) -> None:
    machine.without.add("vfio-pci")
    with pytest.raises(BindFailed) as caught:
        bind([NIC], host=machine)
    assert caught.value.why == machine.complaint
    assert "CONFIG_VFIO_PCI" in caught.value.mend
    assert unchanged(machine, NIC)


def test_a_driver_that_declines_is_rolled_back(machine: Machine) -> None:
    machine.up("eth1")
    machine.refusing.add("vfio-pci")
    code, out, err = said(machine, NIC)
    assert code == 1
    assert "vfio-pci did not take 0000:00:04.0" in err
    assert "put back as it was" in out
    assert unchanged(machine, NIC)
    assert machine.interfaces(NIC) == ["eth1"]
    assert machine.is_up("eth1")


def test_a_node_that_never_comes_is_rolled_back(machine: Machine) -> None:
    machine.makes_nodes = False
    with pytest.raises(BindFailed, match="did not appear"):
        bind([NIC], host=machine)
    assert unchanged(machine, NIC)


def test_a_failed_unbind_leaves_no_override_behind(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = machine.write

    def write(path: Path, text: str) -> None:
        if path.name == "unbind":
            raise BindFailed("cannot unbind", "No such device", "dmesg")
        kernel(path, text)

    machine.up("eth1")
    monkeypatch.setattr(machine, "write", write)
    with pytest.raises(BindFailed, match="cannot unbind"):
        bind([NIC], host=machine)
    assert unchanged(machine, NIC)
    assert machine.is_up("eth1")


def test_a_failing_second_nic_puts_the_first_back(machine: Machine) -> None:
    machine.group_of.pop(OTHER)  # its node never comes
    with pytest.raises(BindFailed):
        bind([NIC, OTHER], host=machine)
    assert unchanged(machine, NIC)
    assert machine.driver(OTHER) == "virtio-pci"


def test_a_roll_back_that_fails_too_is_told(machine: Machine) -> None:
    machine.refusing |= {"vfio-pci", "virtio-pci"}
    code, out, _ = said(machine, NIC)
    assert code == 1
    assert "could not be put back" in out


def test_an_interrupt_rolls_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(condition: Callable[[], bool], seconds: float) -> bool:
        if machine.driver(NIC) == "vfio-pci":
            raise KeyboardInterrupt
        return condition()

    @contextmanager
    def watch() -> Iterator[Callable[[Callable[[], bool], float], bool]]:
        yield interrupted

    monkeypatch.setattr(machine, "watch", watch)
    assert said(machine, NIC)[0] == 130
    assert unchanged(machine, NIC)


# Owners


def test_the_node_goes_to_the_user_and_the_limits_are_told(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((str(path), uid, gid)))
    (machine.dev / "vfio/vfio").chmod(0o600)
    code, out, _ = said(machine, NIC, "--user", "1234", "--group", "4321")
    assert code == 0
    assert given == [(str(machine.dev / "vfio/5"), 1234, 4321)]
    assert (machine.dev / "vfio/5").stat().st_mode & 0o777 == 0o660
    assert "'1234 - memlock 65536'" in out
    assert "chmod 0666" in out


def test_the_nodes_of_iommufd_go_with_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a user who was told to run this could open it with iommufd=on no better than before."""
    given: list[str] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append(str(path)))
    machine.makes_own_nodes = True
    assert said(machine, NIC, "--user", "1234")[0] == 0
    assert given == [str(machine.dev / "vfio" / name) for name in ("5", "devices/vfio0")]


def test_a_kernel_without_group_nodes_has_the_device_s_own(machine: Machine) -> None:
    machine.makes_nodes, machine.makes_own_nodes = False, True
    code, out, _ = said(machine, NIC, "--user", "0")
    assert code == 0
    assert f"node {machine.dev}/vfio/devices/vfio0" in out
    assert f"chmod 0666 {machine.dev}/iommu" in out
    assert "/dev/vfio/devices/vfio0" in said(machine, "status")[1]
    assert said(machine, "restore", NIC)[0] == 0


def test_an_unknown_user_fails_before_anything_changes(machine: Machine) -> None:
    code, _, err = said(machine, NIC, "--user", "nobody-of-this-name")
    assert (code, machine.writes) == (1, [])
    assert "getent passwd" in err


def test_a_chown_that_fails_rolls_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def chown(path: Path, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    with pytest.raises(BindFailed, match="Operation not permitted"):
        bind([NIC], host=machine, owner=Owner("1234"))
    assert unchanged(machine, NIC)
