"""tools/bind on real NICs, with the kernel's own drivers, IOMMU and udev."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyvirtnet.bind import Host
from pyvirtnet.cli import bind as tool

MACHINE = {"ports": 2}

NIC, OTHER = "0000:00:04.0", "0000:00:05.0"
HOST = Host()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def state(bdf: str) -> tuple[str | None, list[str], list[str], str]:
    """Driver, interfaces, their MACs, and the override: what a test must leave as it was."""
    names = HOST.interfaces(bdf)
    macs = [(HOST.net / name / "address").read_text().strip() for name in names]
    return HOST.driver(bdf), names, macs, (HOST.path(bdf) / "driver_override").read_text().strip()


@pytest.fixture(autouse=True)
def _as_found() -> Iterator[None]:
    found = state(NIC), state(OTHER)
    assert found[0][0] == "virtio-pci"
    yield
    assert tool.main(["restore", NIC, OTHER]) == 0
    for name in [*HOST.interfaces(NIC), *HOST.interfaces(OTHER)]:
        ip("address", "flush", "dev", name)
        ip("link", "set", name, "down")
    assert (state(NIC), state(OTHER)) == found


@pytest.fixture
def eth() -> str:
    """The first NIC's interface."""
    (name,) = HOST.interfaces(NIC)
    return name


def node() -> Path:
    found = HOST.node(NIC)
    assert found is not None
    return found


def nics(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    capsys.readouterr()
    assert tool.main(["status", "--json"]) == 0
    return {nic["bdf"]: nic for nic in json.loads(capsys.readouterr().out)["nics"]}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """What the tool says when it refuses; the NIC must still be the kernel's."""
    capsys.readouterr()
    assert tool.main(words) == 1
    assert HOST.driver(NIC) == "virtio-pci"
    return capsys.readouterr().err


def test_status_before_and_after(capsys: pytest.CaptureFixture[str], eth: str) -> None:
    before = nics(capsys)
    assert [bdf for bdf in before if bdf in (NIC, OTHER)] == [NIC, OTHER]
    assert before[NIC]["driver"] == "virtio-pci"
    assert before[NIC]["interfaces"][0]["name"] == eth  # type: ignore[index]
    assert before[NIC]["group"] is not None
    assert not before[NIC]["ready"]
    assert tool.main([NIC]) == 0
    after = nics(capsys)
    assert after[NIC]["ready"]
    assert after[NIC]["interfaces"] == []
    assert after[NIC]["node"] == str(node())
    assert not after[OTHER]["ready"]


def test_bind_makes_the_node_and_restore_brings_the_interface_back(eth: str) -> None:
    before = state(NIC)
    assert tool.main(["bind", "00:04.0"]) == 0
    assert HOST.driver(NIC) == "vfio-pci"
    assert stat.S_ISCHR(node().stat().st_mode)
    assert not (HOST.net / eth).exists()
    assert tool.main(["restore", eth]) == 0
    assert state(NIC) == before
    assert not (HOST.run / f"pyvirtnet/bind/{NIC}.json").exists()


def test_both_at_once_by_interface_name(eth: str) -> None:
    (other,) = HOST.interfaces(OTHER)
    assert tool.main([eth, other]) == 0
    assert {HOST.driver(NIC), HOST.driver(OTHER)} == {"vfio-pci"}
    assert tool.main(["restore", NIC, OTHER]) == 0
    assert (HOST.interfaces(NIC), HOST.interfaces(OTHER)) == ([eth], [other])


def test_twice_is_success_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([NIC]) == 0
    assert tool.main([NIC]) == 0
    assert "already bound" in capsys.readouterr().out
    assert tool.main(["restore", NIC]) == 0
    assert tool.main(["restore", NIC]) == 0
    assert "keep virtio-pci" in capsys.readouterr().out


def test_restore_without_a_memo(eth: str) -> None:
    assert tool.main([NIC]) == 0
    (HOST.run / f"pyvirtnet/bind/{NIC}.json").unlink()
    assert tool.main(["restore", NIC]) == 0
    assert HOST.interfaces(NIC) == [eth]


def test_dry_run_changes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([NIC, "--dry-run"]) == 0
    assert "would move from virtio-pci to vfio-pci" in capsys.readouterr().out
    assert HOST.driver(NIC) == "virtio-pci"


def test_an_address_refuses_and_force_takes_it(
    capsys: pytest.CaptureFixture[str], eth: str
) -> None:
    ip("address", "add", "192.0.2.1/24", "dev", eth)
    ip("link", "set", eth, "up")
    said = refused(capsys, NIC)
    assert f"{eth} has the address 192.0.2.1" in said
    assert "192.0.2.0/24" in said
    assert tool.main([NIC, "--force"]) == 0
    assert HOST.driver(NIC) == "vfio-pci"


def test_an_ipv6_address_refuses(capsys: pytest.CaptureFixture[str], eth: str) -> None:
    ip("address", "add", "2001:db8::1/64", "dev", eth, "nodad")
    assert f"{eth} has the address 2001:db8::1" in refused(capsys, NIC)


def test_a_bridge_refuses(capsys: pytest.CaptureFixture[str], eth: str) -> None:
    ip("link", "add", "br0", "type", "bridge")
    try:
        ip("link", "set", eth, "master", "br0")
        assert f"{eth} is a member of the bridge br0" in refused(capsys, NIC)
    finally:
        ip("link", "delete", "br0")


@pytest.mark.parametrize(
    ("kind", "word"), [(("vlan", "id", "5"), "vlan"), (("macvlan",), "interface")]
)
def test_an_interface_on_top_refuses(
    capsys: pytest.CaptureFixture[str], eth: str, kind: tuple[str, ...], word: str
) -> None:
    ip("link", "add", "link", eth, "name", "above0", "type", *kind)
    try:
        assert f"{eth} carries the {word} above0" in refused(capsys, NIC)
    finally:
        ip("link", "delete", "above0")


def test_traffic_refuses(capsys: pytest.CaptureFixture[str], eth: str) -> None:
    ip("link", "set", *HOST.interfaces(OTHER), "up")  # or the cable takes nothing
    ip("link", "set", eth, "up")
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((eth, 0))
        stop = threading.Event()

        def send() -> None:
            while not stop.wait(0.02):
                sock.send(b"\xff" * 6 + b"\x52\x54\0\0\0\x01\x88\xb5" + bytes(46))

        sender = threading.Thread(target=send)
        sender.start()
        try:
            assert f"{eth} is up with traffic" in refused(capsys, NIC)
        finally:
            stop.set()
            sender.join()


def test_an_interface_in_another_namespace_refuses(
    capsys: pytest.CaptureFixture[str], eth: str
) -> None:
    ip("netns", "add", "elsewhere")
    with HOST.watch() as until:
        try:
            ip("link", "set", eth, "netns", "elsewhere")
            assert "another network namespace" in refused(capsys, NIC)
        finally:
            ip("-n", "elsewhere", "link", "set", eth, "netns", "1")
            ip("netns", "delete", "elsewhere")
        assert until(lambda: HOST.interfaces(NIC) == [eth], 10)


def test_a_held_node_refuses_to_be_restored(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([NIC]) == 0
    held = os.open(node(), os.O_RDWR)
    try:
        assert f"held by pid {os.getpid()} (" in nics_obstacles(capsys)
        assert tool.main(["restore", NIC]) == 3
        assert f"pid {os.getpid()} (" in capsys.readouterr().err
        assert HOST.driver(NIC) == "vfio-pci"
    finally:
        os.close(held)
    assert tool.main(["restore", NIC]) == 0


def nics_obstacles(capsys: pytest.CaptureFixture[str]) -> str:
    return str(nics(capsys)[NIC]["obstacles"])


def test_an_ordinary_user_gets_the_node_and_can_open_it() -> None:
    assert tool.main([NIC, "--user", "user", "--group", "user"]) == 0
    info = node().stat()
    assert (info.st_uid, stat.S_IMODE(info.st_mode)) == (pwd_uid("user"), 0o660)
    program = f"import os; os.open({str(node())!r}, os.O_RDWR); os.open('/dev/vfio/vfio', 2)"
    done = subprocess.run(
        [sys.executable, "-c", program], user="user", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def pwd_uid(name: str) -> int:
    return int(subprocess.run(["id", "-u", name], check=True, capture_output=True).stdout)


def tell_udev() -> None:
    """Of the rules that there are now, and then of the NIC, as at boot. Who works on what was
    before, by the old rules, is waited for."""
    settle = ["settle", "--timeout=60"]
    add = ["trigger", "--action=add", str(HOST.path(NIC))]
    for words in (settle, ["control", "--reload"], add, settle):
        subprocess.run(["udevadm", *words], check=True)


def test_a_persistent_binding_comes_back_as_at_boot() -> None:
    """udev is told of the NIC as it is when a machine starts, with the kernel's driver on it."""
    rule = Path(f"/etc/udev/rules.d/70-pyvirtnet-{NIC}.rules")
    assert tool.main([NIC, "--persist", "--user", "user", "--group", "user"]) == 0
    try:
        assert rule.exists()
        HOST.write(HOST.path(NIC) / "driver_override", "\n")
        HOST.write(HOST.path(NIC) / "driver/unbind", NIC)
        HOST.write(HOST.pci / "drivers_probe", NIC)
        assert HOST.driver(NIC) == "virtio-pci"
        tell_udev()
        with HOST.watch() as until:
            assert until(lambda: HOST.driver(NIC) == "vfio-pci", 30)
            assert until(lambda: node().exists() and node().stat().st_uid == pwd_uid("user"), 30)
        assert stat.S_IMODE(node().stat().st_mode) == 0o660
    finally:
        assert tool.main(["restore", NIC]) == 0
    assert not rule.exists()
    tell_udev()
    assert HOST.driver(NIC) == "virtio-pci"


def test_an_ordinary_user_may_look_and_not_bind() -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "pyvirtnet.cli.bind", *words]
        return subprocess.run(command, user="user", capture_output=True, text=True, check=False)

    look, take = run("status"), run(NIC)
    assert look.returncode == 0
    assert NIC in look.stdout
    assert take.returncode == 3
    assert "sudo" in take.stderr
    assert HOST.driver(NIC) == "virtio-pci"


def test_the_door_and_its_exit_statuses() -> None:
    door = Path(__file__).parents[2] / "tools/bind"

    def run(*words: str) -> int:
        return subprocess.run([door, *words], capture_output=True, check=False).returncode

    assert run(NIC) == 0
    assert HOST.driver(NIC) == "vfio-pci"
    assert run("restore", NIC) == 0
    assert run("--wrong") == 2


def test_a_failure_at_the_last_step_is_rolled_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, eth: str
) -> None:
    def chown(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "chown", chown)
    assert tool.main([NIC, "--user", "user"]) == 1
    assert "put back as it was" in capsys.readouterr().out
    assert HOST.interfaces(NIC) == [eth]
