"""What tools/bind refuses, and what it warns of: a NIC in use, no IOMMU, its group's company."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_machine import BRIDGE, NIC, OTHER, Machine, said, standard

from pyvirtnet.bind import bind, status, uses
from pyvirtnet.errors import (
    InterfaceInUse,
    NoIommu,
    NoPermission,
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return standard(tmp_path)


def bridge(machine: Machine) -> None:
    machine.add_interface("br0", "bridge")
    (machine.net / "eth1/master").symlink_to("../br0")
    (machine.net / "eth1/upper_br0").symlink_to("../br0")


def upper(kind: str) -> Callable[[Machine], None]:
    def use(machine: Machine) -> None:
        machine.add_interface("above0", kind)
        (machine.net / "eth1/upper_above0").symlink_to("../above0")

    return use


def address(machine: Machine) -> None:
    machine.addresses = [("eth2", "10.9.9.9"), ("eth1", "10.0.0.1")]


def address6(machine: Machine) -> None:
    digits = "20010db8" + "0" * 23 + "1"
    (machine.proc / "net/if_inet6").write_text(f"{digits} 03 40 00 80 eth1\n")


def route(machine: Machine) -> None:
    (machine.proc / "net/route").write_text(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n"
        "eth1\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth1\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
    )


def route6(machine: Machine) -> None:
    prefix, zero = "20010db8" + "0" * 24, "0" * 32
    (machine.proc / "net/ipv6_route").write_text(
        f"{prefix} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth1\n"
    )


def traffic(machine: Machine) -> None:
    machine.up("eth1")
    machine.flowing = ["eth1"]


def elsewhere(machine: Machine) -> None:
    shutil.rmtree(machine.path(NIC) / "virtio0/net")
    (machine.path(NIC) / "virtio0/driver").symlink_to("../../../virtio/drivers/virtio_net")


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (address, "eth1 has the address 10.0.0.1"),
        (address6, "eth1 has the address 2001:db8::1"),
        (route, "eth1 carries 2 route(s): default, 10.0.0.0/24"),
        (route6, "eth1 carries 1 route(s): 2001:db8::/64"),
        (bridge, "eth1 is a member of the bridge br0"),
        (upper("vlan"), "eth1 carries the vlan above0"),
        (upper(""), "eth1 carries the interface above0"),
        (traffic, "eth1 is up with traffic: 7 frames"),
        (elsewhere, "its interface is in another network namespace"),
    ],
)
def test_a_nic_in_use_is_refused_and_can_be_forced(
    machine: Machine, use: Callable[[Machine], None], words: str
) -> None:
    use(machine)
    with pytest.raises(InterfaceInUse) as caught:
        bind([NIC], host=machine)
    assert words in caught.value.why
    assert "--force" in caught.value.mend
    assert machine.writes == []
    assert machine.driver(NIC) == "virtio-pci"
    bind([NIC], host=machine, force=True)
    assert machine.driver(NIC) == "vfio-pci"


def test_a_refusal_names_every_reason(machine: Machine) -> None:
    for use in (address, route, bridge, traffic):
        use(machine)
    code, _, err = said(machine, NIC)
    assert code == 1
    for word in ("10.0.0.1", "default", "bridge br0", "traffic"):
        assert word in err


def test_force_takes_the_interface_down_before_it_is_moved(machine: Machine) -> None:
    machine.up("eth1")
    address(machine)
    bind([NIC], host=machine, force=True)
    order = [name for name, _ in machine.writes]
    assert order.index("down") < order.index("unbind") < order.index("drivers_probe")


def test_link_local_addresses_and_own_routes_are_no_use(machine: Machine) -> None:
    local, zero = "fe80" + "0" * 27 + "1", "0" * 32
    (machine.proc / "net/if_inet6").write_text(f"{local} 03 40 20 80 eth1\n")
    (machine.proc / "net/ipv6_route").write_text(
        f"fe80{'0' * 28} 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth1\n"
        f"{local} 80 {zero} 00 {zero} 00000000 00000002 00000000 80200001     eth1\n"
        f"ff00{'0' * 28} 08 {zero} 00 {zero} 00000100 00000002 00000000 00000001     eth1\n"
    )
    machine.up("eth1")  # up and idle
    assert uses(machine, NIC) == []
    bind([NIC], host=machine)
    assert machine.driver(NIC) == "vfio-pci"


def test_no_iommu_group_is_refused_with_its_mend(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add_nic(NIC, "eth1", None)
    with pytest.raises(NoIommu) as caught:
        bind([NIC], host=machine)
    assert "intel_iommu=on" in caught.value.mend
    assert machine.writes == []


def test_no_iommu_forced_fails_and_rolls_back(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add_nic(NIC, "eth1", None)
    machine.refusing.add("vfio-pci")
    with pytest.raises(NoIommu, match="did not take"):
        bind([NIC], host=machine, force=True)
    assert machine.interfaces(NIC) == ["eth1"]


def test_one_refusal_keeps_all_of_a_call_unchanged(machine: Machine) -> None:
    machine.addresses = [("eth2", "10.0.0.1")]
    with pytest.raises(InterfaceInUse):
        bind([NIC, OTHER], host=machine)
    assert machine.writes == []


def test_an_ordinary_user_is_told_to_be_root(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(NoPermission, match="sudo"):
        bind([NIC], host=machine)
    bind([NIC], host=machine, dry_run=True)
    assert machine.writes == []


# The group and its company


def test_a_bridge_in_the_group_is_harmless_and_an_endpoint_is_warned_of(machine: Machine) -> None:
    machine.add(BRIDGE, "8086:1234", "060400", "pcieport", "5")
    machine.add("0000:00:04.1", "8086:10d3", "020000", "e1000e", "5")
    code, out, _ = said(machine, NIC)
    assert code == 0
    assert f"{BRIDGE} (bridge, harmless)" in out
    assert "can't be opened until" in out
    assert "0000:00:04.1 (e1000e)" in out
    assert machine.spoilers(NIC) == ["0000:00:04.1"]
    nic = next(nic for nic in status(machine) if nic.bdf == NIC)
    assert not nic.ready
    assert any("spoils" in obstacle for obstacle in nic.obstacles)


def test_group_members_bound_in_the_same_call_are_not_warned_of(machine: Machine) -> None:
    machine.add_nic("0000:00:04.1", "eth7", "5")
    _, out, _ = said(machine, NIC, "0000:00:04.1", "--dry-run")
    assert "can't be opened" not in out


def test_other_nics_are_bound_with_a_warning(machine: Machine) -> None:
    machine.add("0000:00:07.0", "8086:10d3", "020000", None, "9")
    code, out, _ = said(machine, "0000:00:07.0")
    assert (code, machine.driver("0000:00:07.0")) == (0, "vfio-pci")
    assert "pyvirtnet cannot drive it" in out


def test_a_nic_that_goes_past_the_iommu_is_warned_of(machine: Machine) -> None:
    assert "ACCESS_PLATFORM" not in said(machine, NIC, "--dry-run")[1]
    (machine.path(NIC) / "virtio0/features").write_text("0" * 64)
    assert "ACCESS_PLATFORM" in said(machine, NIC, "--dry-run")[1]
