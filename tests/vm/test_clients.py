"""The tools against what people use: the kernel's TCP/IP, ping, iperf3, tcpdump, scapy."""

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import bind, capture, fwd, pktgen, replay
from pyvirtnet.pcap import Reader

from .traffic import answered

MACHINE = {"ports": 2}

NIC, PEER = "0000:00:04.0", "0000:00:05.0"
OURS, THEIRS, OURS_V6, THEIRS_V6 = "192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8::2"
INSIDE = ["ip", "netns", "exec", "clients"]
SECONDS = 60  # longer than anything here takes


def run(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module", autouse=True)
def eth() -> Iterator[str]:
    """The first NIC is ours; the other one is the kernel's, in a namespace, with addresses."""
    assert bind.main(["bind", NIC]) == 0
    (path,) = Path(f"/sys/bus/pci/devices/{PEER}").glob("virtio*/net/*")
    name = path.name
    run("ip", "netns", "add", "clients")
    run("ip", "link", "set", name, "netns", "clients")
    run("ip", "-n", "clients", "link", "set", "lo", "up")
    run("ip", "-n", "clients", "addr", "add", f"{THEIRS}/24", "dev", name)
    run("ip", "-n", "clients", "addr", "add", f"{THEIRS_V6}/64", "dev", name, "nodad")
    run("ip", "-n", "clients", "link", "set", name, "up")
    yield name
    run("ip", "-n", "clients", "link", "set", name, "netns", "1")
    run("ip", "netns", "del", "clients")
    assert bind.main(["restore", NIC]) == 0


class Client(threading.Thread):
    """Runs `work` once a port is open, then ends the tool in the main thread."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Any]) -> None:
        super().__init__()
        self._work, self._opened, self.error = work, threading.Event(), ""
        self.result: Any = None
        real = pyvirtnet.open

        def opening(name: str) -> Port:
            port = real(name)
            self._opened.set()
            return port

        monkeypatch.setattr(pyvirtnet, "open", opening)

    def run(self) -> None:
        try:
            assert self._opened.wait(SECONDS)
            self.result = self._work()
        except BaseException as error:
            self.error = repr(error)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)

    def __enter__(self) -> "Client":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.join(SECONDS)
        assert self.error == ""


def figures(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return found


@pytest.mark.parametrize("address", [OURS, OURS_V6])
def test_the_kernel_pings_fwd(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    """It finds us by ARP or neighbour discovery, and takes every answer for right."""
    words = ["ping", "-n", "-c", "20", "-i", "0.05", "-s", "1000", "-w", str(SECONDS), address]
    with Client(monkeypatch, lambda: run(*INSIDE, *words)) as client:
        addresses = ["--address", OURS, "--address", OURS_V6]
        assert fwd.main([NIC, "--mode", "icmp-echo", *addresses, "--json"]) == 130
    assert answered(client.result, 20), client.result
    (port,) = figures(capsys)["ports"]
    assert port["tx_frames"] >= 21  # a neighbour and 20 pings
    assert port["rx_frames"] == port["tx_frames"] + port["rx_filtered"]
    neighbours = run("ip", "-n", "clients", "neigh", "show", address)
    assert "52:54:00:00:00:01" in neighbours


def test_nobody_pings_another_address(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*INSIDE, "ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "192.0.2.3"]
    work = lambda: subprocess.run(words, check=False, capture_output=True).returncode  # noqa: E731
    with Client(monkeypatch, work) as client:
        assert fwd.main([NIC, "--mode", "icmp-echo", "--address", OURS, "--json"]) == 130
    assert client.result == 1
    (port,) = figures(capsys)["ports"]
    assert port["rx_frames"] > 0 == port["tx_frames"]


def mirror(eth: str) -> None:
    """What iperf3 sends to itself on the namespace's loopback leaves by the cable as well."""
    words = ["tc", "-n", "clients", "filter", "add", "dev", "lo", "egress", "protocol", "ip"]
    run("tc", "-n", "clients", "qdisc", "add", "dev", "lo", "clsact")
    run(*words, "flower", "ip_proto", "udp", "action", "mirred", "egress", "mirror", "dev", eth)


def test_iperf3_runs_into_pktgen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, eth: str
) -> None:
    """iperf3 wants a server that talks TCP, so it has one beside it; pktgen sees its UDP."""
    mirror(eth)

    def measure() -> int:
        with subprocess.Popen(
            [*INSIDE, "iperf3", "-s", "-1", "--forceflush"], stdout=subprocess.PIPE
        ) as server:
            assert server.stdout is not None
            while b"listening" not in server.stdout.readline():
                continue
            client = ["iperf3", "-c", "127.0.0.1", "-u", "-l", "1400", "-b", "5M", "-t", "2", "-J"]
            report = json.loads(run(*INSIDE, *client))
            server.communicate(timeout=SECONDS)
        packets: int = report["end"]["sum"]["packets"]
        return packets

    try:
        with Client(monkeypatch, measure) as client:
            pktgen.main(["rx", NIC, "--json", "--timeout", str(SECONDS)])
    finally:
        run("tc", "-n", "clients", "qdisc", "del", "dev", "lo", "clsact")
    (row,) = figures(capsys)["rows"]
    assert client.result > 500
    assert row["foreign"] >= client.result
    assert row["rx"]["rx_bytes"] > 1400 * client.result


def pings(count: int) -> str:
    """Echo requests that nobody answers: the neighbour is known beforehand."""
    neighbour = ["lladdr", "52:54:00:00:00:01", "dev"]
    (name,) = [
        line.split(":")[1].strip()
        for line in run("ip", "-n", "clients", "-o", "link", "show", "up").splitlines()
        if ": lo:" not in line
    ]
    run("ip", "-n", "clients", "neigh", "replace", OURS, *neighbour, name)
    words = [*INSIDE, "ping", "-n", "-q", "-c", str(count), "-i", "0.02", "-W", "1", "-p", "5a"]
    return subprocess.run([*words, OURS], check=False, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["file.pcap", "file.pcapng"])
def test_tcpdump_reads_what_capture_wrote(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    path = str(tmp_path / name)
    with Client(monkeypatch, lambda: pings(10)):
        words = ["-w", path, "icmp", "and", "dst", "host", OURS, "--json"]
        assert capture.main([NIC, *words]) == 130
    assert figures(capsys)["written"] == 10
    lines = run("tcpdump", "-n", "-r", path, "--nano", "-tt").splitlines()
    assert len(lines) == 10
    assert all(f"IP {THEIRS} > {OURS}: ICMP echo request" in line for line in lines)
    stamps = [float(line.split()[0]) for line in lines]
    assert 0.1 < stamps[-1] - stamps[0] < SECONDS
    assert run("tcpdump", "-n", "-r", path, "tcp") == ""
    assert all(b"\x5a" * 40 in packet.data for packet in Reader(path))


def test_capture_runs_into_tcpdump(eth: str) -> None:
    line = f"tools/capture {NIC} -w - -c 5 icmp | tcpdump -n -r -"
    with subprocess.Popen(
        ["sh", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/mnt/project"
    ) as process:
        while process.poll() is None:
            pings(5)  # until there was a port to get them
        assert process.stdout is not None
        found = process.stdout.read().decode().splitlines()
    assert len(found) == 5
    assert all("ICMP echo request" in line for line in found)


def test_the_kernel_gets_what_tcpdump_recorded_and_replay_sends(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, eth: str
) -> None:
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    dump = [*INSIDE, "tcpdump", "-U", "-Z", "root", "-i", eth]
    with subprocess.Popen([*dump, "-w", first, "-c", "10", "icmp"], stderr=subprocess.PIPE) as one:
        assert one.stderr is not None
        assert b"listening" in one.stderr.readline()
        pings(10)
        one.communicate(timeout=SECONDS)
    with subprocess.Popen(
        [*dump, "-Q", "in", "-w", second, "-c", "10", "icmp"], stderr=subprocess.PIPE
    ) as two:
        assert two.stderr is not None
        assert b"listening" in two.stderr.readline()
        assert replay.main([first, NIC, "--speed", "2", "--json"]) == 0
        two.communicate(timeout=SECONDS)
    sent = [packet.data for packet in Reader(first)]
    assert [packet.data for packet in Reader(second)] == sent
    found = figures(capsys)
    assert (found["frames"], found["passes"]) == (10, 1)
    assert found["seconds"] > 0.04


def test_scapy_here_talks_to_scapy_on_the_kernels_side(eth: str) -> None:
    """There: AF_PACKET sockets, in the namespace. Here: a port."""
    from scapy.all import ICMP, IP, AsyncSniffer, Ether, Raw

    from pyvirtnet.scapy import PortSocket

    there = (
        "from scapy.all import *; conf.verb = 0; "
        f"packet = Ether(dst='52:54:00:00:00:01') / IP(src='{THEIRS}', dst='{OURS}') / "
        "ICMP(id=9, seq=4) / Raw(b'scapy' * 100); "
        f"answer = srp1(packet, iface='{eth}', timeout={SECONDS // 6}, retry=2); "
        "print(answer[IP].src, answer[ICMP].type, answer[ICMP].seq, len(answer[Raw].load))"
    )
    with pyvirtnet.open(NIC) as port:
        socket = PortSocket(port)

        def answer(packet: Any) -> None:
            if ICMP in packet and packet[ICMP].type == 8:
                headers = Ether(src=packet.dst, dst=packet.src) / IP(src=OURS, dst=THEIRS)
                socket.send(headers / ICMP(type=0, id=9, seq=packet[ICMP].seq) / packet[Raw])

        sniffer = AsyncSniffer(opened_socket=socket, prn=answer, store=False)
        sniffer.start()
        try:
            assert run(*INSIDE, "python3", "-c", there).split() == [OURS, "0", "4", "500"]
        finally:
            sniffer.stop()
