"""pyvirtnet bind --persist on a machine made of files: the rule, and what ends it."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from fake_machine import NIC, OTHER, Machine, said, standard

from pyvirtnet.bind import Owner, status
from pyvirtnet.bind.persist import path_of, rule


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = standard(tmp_path)
    (tmp_path / "etc/udev").mkdir(parents=True)
    return made


def test_the_rule_names_the_nic_and_is_gone_after_restore(machine: Machine) -> None:
    code, out, _ = said(machine, NIC, "--persist", "--user", "0", "--group", "7")
    path = path_of(machine, NIC)
    assert code == 0
    assert str(path) in out
    take, *give = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert f'KERNEL=="{NIC}"' in take
    assert 'ATTR{vendor}=="0x1af4", ATTR{device}=="0x1041"' in take
    assert f"echo vfio-pci >devices/{NIC}/driver_override" in take
    assert give[0].endswith(f'RESULT=="*{NIC}*", OWNER="0", GROUP="7", MODE="0660"')
    own = f'SUBSYSTEM=="vfio-dev", KERNELS=="{NIC}", OWNER="0", GROUP="7", MODE="0660"'
    assert give[1:] == [f'ACTION=="add", {own}']
    assert [nic.at_boot for nic in status(machine)] == [True, False]
    assert "at each boot" in said(machine, "status")[1]
    assert said(machine, "restore", NIC)[0] == 0
    assert not path.exists()


def test_no_owner_no_second_rule(machine: Machine) -> None:
    assert said(machine, NIC, "--persist")[0] == 0
    assert 'SUBSYSTEM=="vfio' not in path_of(machine, NIC).read_text()


def test_a_bound_nic_can_be_made_to_stay_and_a_free_one_be_let_go(machine: Machine) -> None:
    assert said(machine, NIC)[0] == 0
    assert not path_of(machine, NIC).exists()
    assert said(machine, NIC, "--persist")[0] == 0
    assert path_of(machine, NIC).exists()
    machine.write(machine.path(NIC) / "driver/unbind", NIC)  # as after a boot without udev
    machine.write(machine.path(NIC) / "driver_override", "\n")
    machine.write(machine.pci / "drivers_probe", NIC)
    code, out, _ = said(machine, "restore", NIC)
    assert code == 0
    assert "keep virtio-pci" in out
    assert not path_of(machine, NIC).exists()


def test_dry_run_writes_nothing(machine: Machine) -> None:
    _, out, _ = said(machine, NIC, "--persist", "--dry-run")
    assert "would bind it at each boot" in out
    assert not path_of(machine, NIC).exists()


def test_a_failing_second_nic_takes_the_rule_back(machine: Machine) -> None:
    machine.group_of.pop(OTHER)  # its node never comes
    assert said(machine, NIC, OTHER, "--persist")[0] == 1
    assert not path_of(machine, NIC).exists()
    assert machine.driver(NIC) == "virtio-pci"


def test_without_udev_all_is_put_back(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "etc/udev").rmdir()
    code, out, err = said(machine, NIC, "--persist")
    assert code == 1
    assert "no udev here" in err
    assert "put back as it was" in out
    assert machine.driver(NIC) == "virtio-pci"


def test_no_iommu_mode_does_not_come_back_by_itself(machine: Machine) -> None:
    (machine.path(NIC) / "iommu_group").unlink()
    code, _, err = said(machine, NIC, "--persist", "--noiommu")
    assert code == 1
    assert "leave --persist out" in err
    assert machine.writes == []


def test_an_owner_by_name_is_written_as_a_number(machine: Machine) -> None:
    assert 'OWNER="0"' in rule(machine, NIC, Owner("root"))


def test_folders_that_a_user_may_not_look_into(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/etc/udev/rules.d and /dev/vfio of root's alone: the status is told without them."""
    assert said(machine, NIC, "--persist")[0] == 0
    look, kept = os.stat, (str(path_of(machine, NIC).parent), str(machine.dev / "vfio"))

    def refuse(path: Any, *words: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(kept):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return look(path, *words, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        found = {nic.bdf: (nic.node, nic.at_boot) for nic in status(machine)}
    assert found == {NIC: (None, False), OTHER: (None, False)}
