"""scapy's own functions on ports: across a cable, scapy talks to scapy."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from scapy.all import ARP_am, AsyncSniffer, sendp, sniff, srp, srp1
from scapy.layers.inet import ICMP, IP, UDP, ICMPEcho_am
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw
from scapy.plist import PacketList

import pyvirtnet
from pyvirtnet import scapy as bridge
from pyvirtnet.scapy import PortInterface, PortSocket
from pyvirtnet.testing import NetDevice
from pyvirtnet.transport.sim import SimTransport

NEAR, FAR = "sim:cable/scapy/0", "sim:cable/scapy/1?mac=02:00:00:00:00:0a"
OURS, THEIRS = "02:00:00:00:00:01", "02:00:00:00:00:0a"
HEADERS = Ether(src=OURS, dst=THEIRS) / IP(src="192.0.2.1", dst="192.0.2.2")
PACKETS = [
    HEADERS / UDP(sport=i, dport=53) / Raw(bytes([i]) * size)
    for i, size in enumerate([1, 60, 86, 87, 1400, 4000, 9000, 65000])
]
SECONDS = 30  # longer than anything here takes


@pytest.fixture
def ports():
    with pyvirtnet.open(NEAR) as near, pyvirtnet.open(FAR) as far:
        yield near, far


@pytest.fixture
def answering(ports):
    """scapy at the far end: it answers pings and ARP requests for 192.0.2.2."""
    machines = []
    far = PortSocket(ports[1])

    def answer(packet):
        for machine in machines:
            if machine.is_request(packet):
                far.send(machine.make_reply(packet))

    machines += [ARP_am(IP_addr="192.0.2.2", ARP_addr=THEIRS), ICMPEcho_am()]
    sniffer = AsyncSniffer(opened_socket=far, prn=answer, store=False)
    sniffer.start()
    yield
    sniffer.stop()


def test_sendp_and_sniff_by_sockets(ports):
    near, far = map(PortSocket, ports)
    sendp(PACKETS, socket=near, verbose=False)
    found = sniff(opened_socket=far, count=len(PACKETS), timeout=SECONDS)
    assert [bytes(one) for one in found] == [bytes(one) for one in PACKETS]
    assert abs(time.time() - found[0].time) < SECONDS
    assert found[4][UDP].dport == 53


def test_sendp_and_sniff_by_interfaces(ports):
    near, far = map(PortInterface, ports)
    assert (str(near), far.mac) == (NEAR, THEIRS)
    sendp(PACKETS, iface=near, verbose=False)
    found = sniff(iface=far, count=4, timeout=SECONDS, filter="greater 128")
    assert [bytes(one) for one in found] == [bytes(one) for one in PACKETS[2:6]]
    assert ports[0].stats.tx_frames == len(PACKETS)  # the port is still open


def test_the_page_shows_a_sniff_that_filters(ports):
    """scapy leaves a filter to the socket, and does not tell one that was opened already."""
    page = (Path(__file__).parent.parent / "docs/tools.md").read_text()
    line = next(one.strip() for one in page.splitlines() if "sniff(opened_socket=" in one)
    others = [HEADERS / UDP(sport=9, dport=port) for port in (80, 53)]
    sendp(others, socket=PortSocket(ports[0]), verbose=False)
    shown = []
    names = {"sniff": sniff, "PortSocket": PortSocket, "port": ports[1], "print": shown.append}
    eval(line.replace("timeout=10", f"timeout={SECONDS}, count=1"), names)
    assert [packet[UDP].dport for packet in shown] == [53]


@pytest.mark.usefixtures("answering")
def test_srp_finds_the_neighbour(ports):
    request = Ether(dst="ff:ff:ff:ff:ff:ff", src=OURS) / ARP(
        pdst=["192.0.2.2", "192.0.2.3"], psrc="192.0.2.1", hwsrc=OURS
    )
    answered, unanswered = srp(request, iface=PortInterface(ports[0]), timeout=4, verbose=False)
    ((asked, answer),) = answered
    assert (asked[ARP].pdst, answer[ARP].psrc, answer[ARP].hwsrc) == (
        "192.0.2.2",
        "192.0.2.2",
        THEIRS,
    )
    assert [one[ARP].pdst for one in unanswered] == ["192.0.2.3"]
    assert answer.time >= asked.sent_time


@pytest.mark.usefixtures("answering")
def test_a_ping_across_the_cable(ports):
    ping = HEADERS / ICMP(id=7, seq=1) / Raw(b"data" * 300)
    near = PortInterface(ports[0])
    answers = [
        srp1(ping, iface=near, timeout=SECONDS, verbose=False),
        PortSocket(ports[0]).sr1(ping, timeout=SECONDS, verbose=False),
    ]
    for answer in answers:
        assert (answer[IP].src, answer[ICMP].type, answer[ICMP].seq) == ("192.0.2.2", 0, 1)
        assert answer[Raw].load == b"data" * 300


def test_scapy_2_5_asks_the_provider_without_the_interface(ports):
    """It took the kernel's socket then."""
    provider = PortInterface(ports[0]).provider
    assert provider.l2socket() is provider.l2listen() is PortSocket


def test_tags_arrive_as_they_were_sent(ports):
    """Unlike with AF_PACKET, which takes a tag out of the frame."""
    near, far = map(PortSocket, ports)
    near.send(Ether(dst=THEIRS) / Dot1Q(vlan=5) / Raw(bytes(50)))
    (found,) = sniff(opened_socket=far, count=1, timeout=SECONDS)
    assert found[Dot1Q].vlan == 5


def test_a_socket_opens_and_closes_a_nic_by_its_address():
    with PortSocket(NEAR) as near, PortSocket(FAR, filter="udp") as far:
        assert near.send(b"\xff" * 60) == 60
        assert near.send(PACKETS[0]) == len(PACKETS[0])
        assert bytes(far.recv()) == bytes(PACKETS[0])
        assert far.recv() is None
        port = near.port
    with pytest.raises(pyvirtnet.PortClosed):
        port.recv_burst(1)
    near.close()  # again


def test_a_port_that_was_given_stays_open(ports):
    PortSocket(ports[0]).close()
    assert ports[0].send_burst([bytes(60)]) == 1


def test_several_ports_and_other_sockets_at_once(ports):
    """AsyncSniffer's own pipe is among what it selects from."""
    near, far = map(PortSocket, ports)
    sniffer = AsyncSniffer(opened_socket={near: "near", far: "far"}, count=2)
    sniffer.start()
    sender = threading.Thread(target=lambda: [near.send(PACKETS[0]), far.send(PACKETS[1])])
    sender.start()
    sniffer.join(SECONDS)
    sender.join(SECONDS)
    assert isinstance(sniffer.results, PacketList)
    assert {packet.sniffed_on for packet in sniffer.results} == {"near", "far"}


def test_select_takes_what_is_ready(ports):
    near, far = map(PortSocket, ports)
    assert PortSocket.select([near, far], 0) == []
    near.send(PACKETS[0])
    near.send(PACKETS[1])
    assert PortSocket.select([near, far], SECONDS) == [far]
    assert far.fileno() == ports[1].fileno()
    assert bytes(far.recv()) == bytes(PACKETS[0])
    assert PortSocket.select([far]) == [far]  # received before, not taken yet
    assert bytes(far.recv(20)) == bytes(PACKETS[1])[:20]


def test_a_sniffer_can_be_stopped(ports):
    sniffer = AsyncSniffer(opened_socket=PortSocket(ports[0]))
    sniffer.start()
    while not sniffer.running:
        pass
    assert len(sniffer.stop()) == 0


def test_a_port_that_stays_full_is_an_error(monkeypatch):
    monkeypatch.setattr(bridge, "PATIENCE", 0.05)
    stuck = pyvirtnet.Port(SimTransport(NetDevice(queue_sizes=(4, 4)), "sim:stuck"))
    with stuck, PortSocket(stuck) as socket:
        for _ in range(4):
            socket.send(bytes(60))
        with pytest.raises(TimeoutError, match="sim:stuck takes no more frames"):
            socket.send(bytes(60))


@pytest.mark.parametrize("port", [None, 5])
def test_a_socket_needs_a_port(port):
    with pytest.raises(TypeError, match="takes a port, or the address of one"):
        PortSocket(port)


def test_an_interface_needs_a_port():
    with pytest.raises(TypeError, match="PortInterface takes a port"):
        PortInterface("sim:loopback")


def test_without_scapy_it_says_what_is_missing():
    code = "import sys; sys.modules['scapy'] = None; import pyvirtnet.scapy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"pyvirtnet.scapy needs scapy: {sys.executable} -m pip install scapy" in done.stderr


def test_frames_as_bytes_memoryview_and_numpy(ports):
    near, far = ports
    content = bytes(PACKETS[5])
    near.send_burst([content])
    (frame,) = far.recv_burst(1, timeout=SECONDS)
    assert bytes(frame) == content
    pieces = [memoryview(frame.head), *map(memoryview, frame.frags)]
    assert b"".join(pieces) == content
    assert Ether(bytes(frame))[UDP].sport == 5
    near.send_burst([memoryview(content), frame.head, bytearray(content), pieces])
    again = [bytes(one) for one in far.recv_burst(8)]
    assert again == [content, content[:128], content, content]
