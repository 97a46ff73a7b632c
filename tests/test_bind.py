"""tools/bind on a machine made of files: there and back, what is said, wrong usage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_machine import DISK, NIC, OTHER, Machine, said, standard

from pyvirtnet.bind import bind, restore
from pyvirtnet.errors import (
    BindFailed,
    DeviceBusy,
    NoSuchDevice,
    NotVirtioNet,
)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return standard(tmp_path)


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


def test_an_interface_that_is_renamed_while_it_is_looked_at(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression: udev had been slow, and restore ended in FileNotFoundError."""
    bind([NIC], host=machine)
    gone, resolve = list[Path](), Path.resolve

    def resolved(path: Path, strict: bool = False) -> Path:
        if path.parent == machine.net and not gone:
            gone.append(path)
            raise FileNotFoundError(path)
        return resolve(path, strict)

    monkeypatch.setattr(Path, "resolve", resolved)
    restore([NIC], host=machine)
    assert (len(gone), machine.driver(NIC)) == (1, "virtio-pci")


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


# Status and usage


def test_status_tells_ready_in_use_and_idle(machine: Machine) -> None:
    machine.addresses = [("eth1", "10.0.0.1")]
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


def test_errors_name_the_command_as_the_user_does_in_json_too(machine: Machine) -> None:
    machine.addresses = [("eth1", "10.0.0.1")]
    code, out, err = said(machine, NIC, "--json")
    assert code == 1
    assert json.loads(out)["error"].replace("\n", " ") in err.replace("\n", " ")
    assert "pyvirtnet bind" in json.loads(out)["error"]


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
