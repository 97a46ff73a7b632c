"""Binding on a machine made of files: every refusal, every roll-back, and what is said."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pyvirtnet.bind import Host, Owner, bind, restore, status, uses
from pyvirtnet.cli import bind as tool
from pyvirtnet.errors import (
    BindFailed,
    DeviceBusy,
    InterfaceInUse,
    NoIommu,
    NoPermission,
    NoSuchDevice,
    NotVirtioNet,
)

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
        self.makes_nodes = True
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

    def set_down(self, interface: str) -> None:
        (self.net / interface / "flags").write_text("0x1002\n")
        self.writes.append(("down", interface))

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
        elif bdf in self.interface:
            name = self.interface[bdf]
            (self.path(bdf) / "virtio0/net" / name).mkdir(parents=True)
            (self.path(bdf) / "virtio0/features").write_text("0" * 33 + "1" + "0" * 30)
            self.add_interface(name)

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
        for name in self.interfaces(bdf):
            shutil.rmtree(self.net / name)
        shutil.rmtree(self.path(bdf) / "virtio0", ignore_errors=True)
        (self.path(bdf) / "driver").unlink()

    def up(self, name: str) -> None:
        (self.net / name / "flags").write_text("0x1003\n")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
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


# Which device is meant


@pytest.mark.parametrize("name", [NIC, "00:04.0", "0000:00:04.0".upper(), "eth1"])
def test_every_spelling_means_the_same_nic(machine: Machine, name: str) -> None:
    assert machine.resolve(name) == NIC


@pytest.mark.parametrize("name", ["0000:00:09.0", "eth9", "lo", "00:04", "0000:00:04.0x", ""])
def test_what_is_no_nic_is_refused(machine: Machine, name: str) -> None:
    with pytest.raises(NoSuchDevice) as caught:
        machine.resolve(name)
    assert "tools/bind status" in caught.value.mend


def test_a_disk_is_refused_even_by_force(machine: Machine) -> None:
    with pytest.raises(NotVirtioNet, match="not a network device"):
        bind([DISK], host=machine, force=True)
    assert machine.driver(DISK) == "virtio-pci"


# Binding and restoring


def test_bind_moves_to_vfio_and_restore_moves_back(machine: Machine) -> None:
    bind([NIC], host=machine)
    assert machine.driver(NIC) == "vfio-pci"
    assert machine.node(NIC) == machine.dev / "vfio/5"
    assert machine.interfaces(NIC) == []
    memo = json.loads((machine.run / f"pyvirtnet/bind/{NIC}.json").read_text())
    assert memo == {"driver": "virtio-pci", "interfaces": ["eth1"]}

    lines: list[str] = []
    restore([NIC], host=machine, say=lines.append)
    assert machine.driver(NIC) == "virtio-pci"
    assert (machine.path(NIC) / "driver_override").read_text() == "\n"
    assert not (machine.run / f"pyvirtnet/bind/{NIC}.json").exists()
    assert f"{NIC}: with virtio-pci, interface eth1" in lines
    assert machine.driver(OTHER) == "virtio-pci"


def test_a_bound_nic_is_still_known_by_the_interface_it_had(machine: Machine) -> None:
    bind(["eth1"], host=machine)
    restore(["eth1"], host=machine)
    assert machine.interfaces(NIC) == ["eth1"]


def test_bind_twice_and_restore_twice_say_so(machine: Machine) -> None:
    assert said(machine, NIC)[0] == 0
    code, out, _ = said(machine, "bind", NIC)
    assert (code, machine.driver(NIC)) == (0, "vfio-pci")
    assert "already bound" in out
    assert said(machine, "restore", NIC)[0] == 0
    written = len(machine.writes)
    code, out, _ = said(machine, "restore", NIC)
    assert (code, len(machine.writes)) == (0, written)
    assert "keep virtio-pci" in out
    assert "eth1" in out


@pytest.mark.parametrize("damage", ["lost", "torn", "a list", "strange keys"])
def test_restore_works_without_its_memo(machine: Machine, damage: str) -> None:
    bind([NIC], host=machine)
    memo = machine.run / f"pyvirtnet/bind/{NIC}.json"
    if damage == "lost":
        memo.unlink()
    else:
        memo.write_text({"torn": '{"dri', "a list": "[1]", "strange keys": '{"x": 1}'}[damage])
    restore([NIC], host=machine)
    assert machine.driver(NIC) == "virtio-pci"


def test_restore_names_the_old_driver_while_it_is_probed(machine: Machine) -> None:
    bind([NIC], host=machine)
    machine.natural[NIC] = "vfio-pci"  # as after somebody's new_id
    restore([NIC], host=machine)
    assert machine.driver(NIC) == "virtio-pci"
    assert (machine.path(NIC) / "driver_override").read_text() == "\n"


def test_restore_fails_if_no_driver_takes_it(machine: Machine) -> None:
    bind([NIC], host=machine)
    machine.refusing.add("virtio-pci")
    code, _, err = said(machine, "restore", NIC)
    assert code == 1
    assert "virtio-pci did not take 0000:00:04.0 back" in err
    assert "modprobe virtio-pci" in err


def test_restore_fails_if_no_interface_comes(machine: Machine) -> None:
    bind([NIC], host=machine)
    del machine.interface[NIC]
    with pytest.raises(BindFailed, match="has no interface"):
        restore([NIC], host=machine)


def test_restore_refuses_while_a_process_holds_the_node(machine: Machine) -> None:
    bind([NIC], host=machine)
    fds = machine.proc / "4711/fd"
    fds.mkdir(parents=True)
    (fds / "0").touch()  # as one that is closed between listing and looking
    (fds / "3").symlink_to(machine.dev / "vfio/5")
    (machine.proc / "4711/comm").write_text("pktgen\n")
    with pytest.raises(DeviceBusy, match=r"pid 4711 \(pktgen\)"):
        restore([NIC], host=machine)
    assert machine.driver(NIC) == "vfio-pci"


def test_dry_run_changes_nothing_and_shows_each_step(machine: Machine) -> None:
    machine.up("eth1")
    code, out, _ = said(machine, NIC, "--dry-run", "--user", "0")
    assert code == 0
    assert machine.writes == []
    assert not (machine.run / "pyvirtnet").exists()
    for step in ("load vfio-pci", "take eth1 down", "move from virtio-pci", "user 0"):
        assert f"would {step}" in out or f"would give the node to {step}" in out


def test_dry_run_still_refuses(machine: Machine) -> None:
    machine.addresses = [("eth1", "10.0.0.1")]
    assert said(machine, NIC, "--dry-run")[0] == 1


# Refusals


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


# Failures on the way


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
    machine.refusing.add("vfio-pci")
    code, out, err = said(machine, NIC)
    assert code == 1
    assert "vfio-pci did not take 0000:00:04.0" in err
    assert "put back as it was" in out
    assert unchanged(machine, NIC)
    assert machine.interfaces(NIC) == ["eth1"]


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

    monkeypatch.setattr(machine, "write", write)
    with pytest.raises(BindFailed, match="cannot unbind"):
        bind([NIC], host=machine)
    assert unchanged(machine, NIC)


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
    assert said(machine, NIC)[0] == 1
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


# Status and usage


def test_status_tells_ready_in_use_and_idle(machine: Machine) -> None:
    address(machine)
    machine.addresses.pop(0)
    bind([OTHER], host=machine)
    code, out, _ = said(machine, "status", "--json")
    found = json.loads(out)
    assert (code, found["iommu"]) == (0, True)
    nics = {nic["bdf"]: nic for nic in found["nics"]}
    assert set(nics) == {NIC, OTHER}
    assert nics[NIC]["uses"] == ["eth1 has the address 10.0.0.1"]
    assert nics[NIC]["interfaces"][0]["mac"] == "52:54:00:00:00:01"
    assert not nics[NIC]["ready"]
    assert nics[OTHER]["ready"]
    assert nics[OTHER]["node"] == str(machine.dev / "vfio/6")
    table = said(machine, "status")[1]
    assert "ready to open" in table
    assert "in use: eth1 has the address 10.0.0.1" in table


def test_status_says_when_there_is_no_iommu(machine: Machine) -> None:
    (machine.sys / "class/iommu/dmar0").rmdir()
    out = said(machine, "status")[1]
    assert "no IOMMU" in out
    assert "intel_iommu=on" in out


@pytest.mark.parametrize(
    "words", [(), ("--force",), ("status", "--wrong"), (NIC, "--forc"), ("restore",)]
)
def test_wrong_usage_is_one_line_and_exit_status_two(
    machine: Machine, words: tuple[str, ...]
) -> None:
    code, out, err = said(machine, *words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert machine.writes == []


def test_importing_looks_at_no_file_of_the_machine() -> None:
    program = """
import sys
touched = []
def hook(event, args):
    if event == "open" and str(args[0]).startswith(("/sys", "/dev", "/proc", "/run")):
        touched.append(args[0])
    if event == "socket.__new__":
        touched.append("a socket")
sys.addaudithook(hook)
import pyvirtnet.cli.bind
sys.exit(f"touched {touched}" if touched else 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
