"""tools/pktgen on real vfio-pci NICs, and against the kernel's own driver at the cable's end."""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyvirtnet
from pyvirtnet._stamp import ETHERTYPE
from pyvirtnet.cli import bind
from pyvirtnet.cli._pktgen_options import Mix
from pyvirtnet.cli._pktgen_report import Report
from pyvirtnet.cli._pktgen_sender import Stream
from pyvirtnet.cli._pktgen_traffic import Bounds, Run, Stop, loop

MACHINE = {"ports": 2}

NIC, PEER = "0000:00:04.0", "0000:00:05.0"
SIZES = [60, 128, 129, 1514, 4084, 4085, 9014, 65535]
BUFFERS = [1, 1, 1, 1, 1, 2, 3, 17]
DOOR = "/mnt/project/tools/pktgen"
_NODAD = {socket.AF_INET: [], socket.AF_INET6: ["nodad"]}
RCVBUF_FORCE = 33  # SO_RCVBUFFORCE: all frames wait at once, more than an ordinary socket holds


@pytest.fixture
def bound() -> Iterator[None]:
    """Both NICs are ours."""
    assert bind.main(["bind", NIC, PEER]) == 0
    yield
    assert bind.main(["restore", NIC, PEER]) == 0


@pytest.fixture
def eth() -> Iterator[str]:
    """The first NIC is ours; the interface of the second one, up, which is the kernel's."""
    assert bind.main(["bind", NIC]) == 0
    (path,) = Path(f"/sys/bus/pci/devices/{PEER}").glob("virtio*/net/*")
    subprocess.run(["ip", "link", "set", path.name, "up"], check=True)
    yield path.name
    subprocess.run(["ip", "link", "set", path.name, "down"], check=True)
    assert bind.main(["restore", NIC]) == 0


def pktgen(*words: str) -> tuple[int, dict[str, Any]]:
    done = subprocess.run([DOOR, *words, "--json"], check=False, capture_output=True, text=True)
    assert done.stdout, done.stderr
    figures: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, figures


@pytest.mark.usefixtures("bound")
@pytest.mark.parametrize("ends", [(NIC, PEER), (PEER, NIC)], ids=["there", "back"])
def test_every_size_arrives(ends: tuple[str, str]) -> None:
    sizes = ",".join(map(str, SIZES))
    status, figures = pktgen("loop", *ends, "--size", sizes, "--count", "1000")
    for size, buffers, row in zip(SIZES, BUFFERS, figures["rows"], strict=True):
        found = [row[key] for key in ("size", "sent", "received", "lost", "corrupt", "duplicated")]
        assert found == [size, 1000, 1000, 0, 0, 0]
        assert row["buffers_per_frame"] == buffers
        assert row["rx"]["rx_no_pages"] == row["rx"]["rx_no_slots"] == 0
    assert status == 0


@pytest.mark.usefixtures("bound")
def test_a_million_frames_and_all_pages_are_back() -> None:
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx, Stop() as stop:
        stream = Stream(rx.mac + tx.mac + ETHERTYPE.to_bytes(2, "big"))
        report = Report(as_json=True, about={})
        for size, count in ((60, 900_000), (1514, 100_000)):
            run = Run(Bounds(count, None, 64), stop, report)
            row = loop(tx, rx, Mix.of(size), stream, run)
            assert (row.sent, row.received, row.lost, row.corrupt) == (count, count, 0, 0)
            assert row.whole
        assert stream.next == 1_000_000
        rx.recv_burst(64)  # pages of the last burst go back
        info = rx.info()
        assert info["free_pages"] + info["posted_pages"] == info["pages"]
        while tx.tx_pending:  # bounded by the test's time-out
            tx.reclaim()


@pytest.mark.usefixtures("bound")
def test_ctrl_c_ends_it_with_its_figures() -> None:
    command = [sys.executable, "-m", "pyvirtnet.cli.pktgen", "loop", NIC, PEER, "--json"]
    with subprocess.Popen(
        [*command, "--size", "60,128,60", "--time", "3"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline().split()[0] == "size"
        assert process.stderr.readline().split()[0] == "60"  # now 128 bytes are to follow
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=60)
    figures = json.loads(out)
    assert process.returncode == 130
    assert figures["interrupted"]
    assert [row["size"] for row in figures["rows"]] in ([60], [60, 128])
    assert figures["rows"][0]["sent"] > 0
    for row in figures["rows"]:  # the second may have ended before its first frame, or begin
        assert row["sent"] == row["received"]
        assert row["lost"] == row["corrupt"] == 0
    assert all(row["seconds"] < 2.5 for row in figures["rows"][1:])


def test_the_kernel_receives_what_tx_sends(eth: str) -> None:
    """The frames as a foreign driver sees them: addresses, type, length, every number once.

    Not in order: QEMU's hub lets some overtake others while the kernel has no buffer free.
    """
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE)) as peer:
        peer.bind((eth, ETHERTYPE))
        peer.setsockopt(socket.SOL_SOCKET, RCVBUF_FORCE, 1 << 22)
        peer.settimeout(20)
        words = ("--count", "200", "--size", "60,1514", "--dst", "52:54:00:00:00:02")
        status, figures = pktgen("tx", NIC, *words)
        assert status == 0
        assert [row["sent"] for row in figures["rows"]] == [200, 200]
        frames = [peer.recv(2000) for _ in range(400)]
    frames.sort(key=lambda frame: frame[20:27])
    assert [len(frame) for frame in frames] == [60] * 200 + [1514] * 200
    assert {frame[:14].hex() for frame in frames} == {"525400000002" + "525400000001" + "88b5"}
    numbers = [int.from_bytes(frame[20:27], "big") for frame in frames]
    assert numbers == list(range(numbers[0], numbers[0] + 400))


@pytest.mark.parametrize(
    ("layers", "family", "here"),
    [("ipv4/udp(dst=5000)", socket.AF_INET, "192.0.2.2/24"),
     ("ipv6/udp(dst=5000)", socket.AF_INET6, "2001:db8::2/64")],
    ids=["ipv4", "ipv6"],
)  # fmt: skip
def test_the_kernels_sockets_take_what_tx_sends(
    eth: str, layers: str, family: socket.AddressFamily, here: str
) -> None:
    """Addresses, lengths and checksums are right for a stack that verifies them, at a rate too."""
    subprocess.run(["ip", "address", "add", here, "dev", eth, *_NODAD[family]], check=True)
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as peer:
            peer.setsockopt(socket.SOL_SOCKET, RCVBUF_FORCE, 1 << 22)
            peer.bind((here.partition("/")[0], 5000))
            peer.settimeout(20)
            words = ("--frame", layers, "--dst", "52:54:00:00:00:02", "--vary", "src-port=7-9")
            status, figures = pktgen("tx", NIC, *words, "--count", "300", "--rate", "2k")
            assert status == 0
            datagrams = [peer.recvfrom(2000) for _ in range(300)]
        assert figures["rows"][0]["sent"] == 300
        assert {address[1] for _, address in datagrams} == {7, 8, 9}
        assert sorted(int.from_bytes(data[8:13], "big") for data, _ in datagrams) == [*range(300)]
    finally:
        subprocess.run(["ip", "address", "del", here, "dev", eth], check=True)


def test_the_kernels_frames_are_foreign(eth: str) -> None:
    with subprocess.Popen(
        [DOOR, "rx", NIC, "--timeout", "30", "--time", "3", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as peer:
            peer.bind((eth, 0))
            frame = bytes.fromhex("ffffffffffff525400000002" + "0806") + bytes(46)
            while process.poll() is None:
                for _ in range(5):
                    peer.send(frame)
                try:
                    process.wait(0.1)
                except subprocess.TimeoutExpired:
                    continue
        assert process.stdout is not None
        (row,) = json.loads(process.stdout.read())["rows"]
    assert process.returncode == 0  # frames came, though none of pktgen's
    assert row["foreign"] > 10
    assert row["received"] == row["corrupt"] == row["lost"] == 0
