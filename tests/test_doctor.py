"""pyvirtnet doctor on machines made of files: what is missing is named, with its mend."""

import errno
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_machine import DISK, NIC, OTHER, Machine, standard

from pyvirtnet.bind import bind, status
from pyvirtnet.cli import _doctor_nics, doctor

Findings = list[dict[str, str]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """One that lacks nothing but a NIC that is bound."""
    made = standard(tmp_path)
    modules = tmp_path / "lib/modules" / os.uname().release
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text("kernel/drivers/vfio/pci/vfio-pci.ko: kernel/vfio.ko\n")
    (made.proc / "meminfo").write_text("HugePages_Free:       64\nHugepagesize:       2048 kB\n")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    monkeypatch.setenv("USER", "root")  # what it says is not to be believed: setpriv leaves it
    for module in ("machine", "nics"):
        monkeypatch.setattr(f"pyvirtnet.cli._doctor_{module}.user_name", lambda uid: "ann")
    monkeypatch.delenv("SUDO_USER", raising=False)
    return made


@pytest.fixture
def examined(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, Findings]]:
    def examine(*words: str) -> tuple[int, Findings]:
        capsys.readouterr()
        status = doctor.main([*words, "--json"], machine)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        assert found["ok"] == (status == 0)
        assert found["ok"] == all(one["state"] != "missing" for one in found["findings"])
        assert all(one["mend"] for one in found["findings"] if one["state"] == "missing")
        return status, found["findings"]

    return examine


def missing(findings: Findings) -> dict[str, tuple[str, str]]:
    return {
        one["subject"]: (one["said"], one["mend"]) for one in findings if one["state"] == "missing"
    }


def test_a_machine_that_lacks_a_bound_nic_alone(
    examined: Callable[..., Any], machine: Machine
) -> None:
    status, findings = examined()
    assert status == 3
    assert {bdf: mend for bdf, (_, mend) in missing(findings).items()} == {
        NIC: f"sudo pyvirtnet bind {NIC} --user ann",
        OTHER: f"sudo pyvirtnet bind {OTHER} --user ann",
    }
    bind([NIC], host=machine)
    status, findings = examined()
    assert (status, missing(findings)) == (0, {})
    said = [(one["subject"], one["said"]) for one in findings]
    assert (NIC, f"ready: pyvirtnet.open('{NIC}')") in said
    assert (NIC, "IOMMU group 5, alone in it") in said
    assert (OTHER, "features: access_platform") in said  # the kernel has that one


def test_one_nic_alone_is_asked_for(examined: Callable[..., Any], machine: Machine) -> None:
    bind([NIC], host=machine)
    assert examined("eth2")[0] == 3
    assert examined(NIC)[0] == 0


@pytest.mark.parametrize(
    ("tables", "command_line", "mend"),
    [
        ([], "quiet", "intel-iommu,intremap=on"),
        (["DMAR"], "quiet", "intel_iommu=on into GRUB_CMDLINE_LINUX"),
        (["DMAR"], "quiet intel_iommu=on", "dmesg"),
        (["IVRS"], "quiet", "amd_iommu=on"),
    ],
)
def test_why_there_is_no_iommu(
    examined: Callable[..., Any],
    machine: Machine,
    tables: list[str],
    command_line: str,
    mend: str,
) -> None:
    (machine.sys / "class/iommu/dmar0").rmdir()
    (machine.proc / "cmdline").write_text(command_line)
    folder = machine.sys / "firmware/acpi/tables"
    folder.mkdir(parents=True)
    for table in tables:
        (folder / table).touch()
    assert mend in missing(examined()[1])["iommu"][1]


def test_interrupts_that_are_not_remapped(examined: Callable[..., Any], machine: Machine) -> None:
    unit = machine.sys / "class/iommu/dmar0/intel-iommu"
    unit.mkdir()
    (unit / "ecap").write_text("f00f4a\n")
    assert "interrupts" not in missing(examined()[1])
    (unit / "ecap").write_text("f00f42\n")
    assert "intremap=on" in missing(examined()[1])["interrupts"][1]
    allowed = machine.sys / "module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
    allowed.parent.mkdir(parents=True)
    allowed.write_text("Y\n")
    assert "interrupts" not in missing(examined()[1])


def test_no_vfio_module(examined: Callable[..., Any], machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "lib/modules" / os.uname().release / "modules.dep").write_text("")
    said, mend = missing(examined()[1])["vfio-pci"]
    assert os.uname().release in said
    assert os.uname().release not in mend  # whose packages a kernel of one's own is not among
    assert "apt-get install linux-image-amd64" in mend
    assert "CONFIG_VFIO_PCI" in mend
    (machine.pci / "drivers/vfio-pci").mkdir()
    assert "vfio-pci" not in missing(examined()[1])


def test_a_memlock_limit_that_is_too_small(
    examined: Callable[..., Any], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64 << 10, 64 << 10))
    (machine.proc / "self").mkdir()
    (machine.proc / "self/status").write_text("Name:\tx\nCapEff:\t0000000000000000\n")
    said, mend = missing(examined()[1])["memlock"]
    assert said == "64 KiB allowed, 8192 KiB needed"
    assert "'ann - memlock 8192' >> /etc/security/limits.d" in mend
    (machine.proc / "self/status").write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert "memlock" not in missing(examined()[1])


def test_holders_spoilers_and_uses(examined: Callable[..., Any], machine: Machine) -> None:
    machine.addresses = [("eth2", "10.0.0.1")]
    bind([NIC], host=machine)
    fds = machine.proc / "4711/fd"
    fds.mkdir(parents=True)
    (fds / "3").symlink_to(machine.dev / "vfio/5")
    (machine.proc / "4711/comm").write_text("pktgen\n")
    machine.add("0000:00:07.0", "8086:100e", "020000", "e1000", "5")
    found = missing(examined()[1])
    assert "held by pid 4711 (pktgen)" in str(examined()[1])
    assert found[NIC] == (
        "IOMMU group 5 also holds 0000:00:07.0, with kernel drivers",
        "sudo pyvirtnet bind 0000:00:07.0",
    )
    assert "eth2 has the address 10.0.0.1" in str(examined()[1])


def test_a_nic_in_use_is_not_missing_a_free_one_is(
    examined: Callable[..., Any], machine: Machine
) -> None:
    machine.addresses = [("eth1", "10.0.0.1"), ("eth2", "10.0.0.2")]
    (subject, (said, mend)) = missing(examined()[1]).popitem()
    assert (subject, said) == ("free NIC", f"none: {NIC}, {OTHER} are in use")
    assert "give the machine another NIC" in mend
    assert f"sudo pyvirtnet bind {NIC} {OTHER} --force, which ends" in mend
    assert missing(examined(OTHER)[1])["free NIC"][0] == f"none: {OTHER} is in use"
    bind([NIC], force=True, host=machine)
    assert examined()[0] == 0  # the one is enough


def test_a_nic_that_a_process_holds_is_not_missing(
    examined: Callable[..., Any], machine: Machine
) -> None:
    bind([NIC, OTHER], host=machine)
    fds = machine.proc / "4711/fd"
    fds.mkdir(parents=True)
    (machine.proc / "4711/comm").write_text("pktgen\n")
    (fds / "3").symlink_to(machine.dev / "vfio/5")
    assert examined()[0] == 0
    (said, mend) = missing(examined(NIC)[1])["free NIC"]
    assert said == f"none: {NIC} is in use"
    assert mend.endswith("; or end pid 4711 (pktgen)")


def test_a_node_of_another_users(
    examined: Callable[..., Any], machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind([NIC, OTHER], host=machine)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path).endswith("6"))
    assert set(missing(examined(NIC)[1])) == {NIC}
    assert set(missing(examined()[1])) == set()  # the other one can be opened


@pytest.mark.parametrize(
    ("number", "mend"), [(errno.EACCES, "chmod 0666"), (errno.EPERM, "docker run --device")]
)
def test_a_container_node_that_cannot_be_opened(
    examined: Callable[..., Any],
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    mend: str,
) -> None:
    """Only trying tells: access() says yes to root where a container's device list says no."""
    bind([NIC], host=machine)

    def refuse(path: Any, *_: Any) -> int:
        raise PermissionError(number, os.strerror(number), path)

    monkeypatch.setattr(os, "open", refuse)
    found = missing(examined()[1])
    monkeypatch.undo()
    assert mend in found["container"][1]


def test_a_nic_that_goes_before_its_features_are_read(machine: Machine) -> None:
    (nic,) = [one for one in status(machine) if one.bdf == NIC]
    machine.remove(NIC)
    assert list(_doctor_nics._features(machine, nic)) == []


def test_lines_of_meminfo_that_nobody_knows(examined: Callable[..., Any], machine: Machine) -> None:
    (machine.proc / "meminfo").write_text("surprise\nHugePages_Free: 7\n")
    assert any("7 of" in one["said"] for one in examined()[1])


def test_no_libudev(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing_library() -> None:
        raise ImportError("No library named udev")

    monkeypatch.setattr("pyudev.Context", missing_library)
    assert doctor.main([]) == 3
    assert "apt-get install libudev1" in capsys.readouterr().err


def test_what_is_asked_for_and_is_no_virtio_nic_is_told_apart_from_a_machine_without_one(
    examined: Callable[..., Any], machine: Machine
) -> None:
    bind([NIC], host=machine)
    status, findings = examined(DISK)
    assert status == 3
    assert missing(findings) == {DISK: ("this is no virtio NIC", f"pyvirtnet doctor {NIC} {OTHER}")}
    found = missing(examined(NIC, DISK, OTHER)[1])
    assert set(found) == {DISK, OTHER}
    assert found[OTHER][1].startswith("sudo pyvirtnet bind")


def test_no_nic_at_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert doctor.main([], Machine(tmp_path)) == 3
    out = capsys.readouterr().out
    assert "no virtio NIC on the PCI bus" in out
    assert "mend: give the machine one" in out
    assert out.splitlines()[-1].startswith("missing: ")


def test_it_needs_no_numpy() -> None:
    program = (
        "import sys; sys.modules['numpy'] = None; from pyvirtnet.cli.doctor import main; main()"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "python" in done.stdout
