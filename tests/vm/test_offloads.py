"""Checksums and segmentation on a tap, with the TCP of the host at its end: byte for byte."""

import random
import struct
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import pyvirtnet
from pyvirtnet import Feature, Gso, HeaderFlag, Port
from pyvirtnet.cli import bind

from . import test_queues

MACHINE = test_queues.MACHINE

NIC, SECONDS = "0000:00:04.0", 60
OURS, HOST, ECHO = bytes((10, 99, 0, 2)), bytes((10, 99, 0, 1)), 7
SYN, PUSH, ACK, RESET, MSS = 2, 8, 16, 4, 1460


@pytest.fixture(scope="module", autouse=True)
def _bound() -> Iterator[None]:
    assert bind.main(["bind", NIC]) == 0
    yield
    assert bind.main(["restore", NIC]) == 0


class Connection:
    """As much of TCP as it takes to talk to an echo server that loses nothing."""

    def __init__(self, port: Port, source: int) -> None:
        self.port, self.source, self.host = port, source, b""
        self.sequence, self.expected, self.open = 1000, 0, False
        self.received = bytearray()
        self.seen: list[tuple[int, ...]] = []  # length, and the offload fields, of data frames
        body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + port.mac + OURS + bytes(6) + HOST
        request = (b"\xff" * 6 + port.mac + b"\x08\x06" + body).ljust(60, b"\0")
        self.until(lambda: self.host, lambda: port.send_burst([request]))
        options = struct.pack("!BBH", 2, 4, MSS)
        self.until(lambda: self.open, lambda: self.put(SYN, options=options))
        self.sequence += 1
        self.put(ACK)

    def put(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        """A segment; if it is longer than a packet may be, the device cuts it."""
        size = 20 + len(options)
        tcp = struct.pack("!HHIIBBHHH", self.source, ECHO, self.sequence, self.expected,
                          size // 4 << 4, flags, 0xFFFF, 0, 0)  # fmt: skip
        total = 20 + size + len(data)
        ip = struct.pack("!BBHHHBBH", 0x45, 0, total, 0, 0, 64, 6, 0) + OURS + HOST
        frame = self.host + self.port.mac + b"\x08\x00" + ip + tcp + options + data
        burst = self.port.alloc_burst(1, len(frame))
        burst.data[0] = np.frombuffer(frame, np.uint8)
        pyvirtnet.fix_checksums(burst)
        assert pyvirtnet.defer_checksums(burst, gso_size=MSS) == 1
        assert self.port.send_burst(burst) == 1

    def echo(self, content: bytes) -> None:
        """Sent, and received again."""
        wanted = len(self.received) + len(content)
        self.put(ACK | PUSH, content)
        self.sequence += len(content)
        self.until(lambda: len(self.received) >= wanted, lambda: None)

    def echo_until_large(self, content: bytes, least: int) -> int:
        """How many times, `least` or more: the host's TCP comes to send more at once, sooner or
        later, as it can."""
        rounds = 0
        while rounds < least or (rounds < 50 and max(self.seen)[0] <= 10000):
            rounds += 1
            self.echo(content)
        assert max(self.seen)[0] > 10000
        return rounds

    def until(self, condition: Callable[[], object], step: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            step()
            self.listen()

    def listen(self) -> None:
        burst = self.port.recv_burst(64, timeout=0.2)
        good = pyvirtnet.checksums_ok(burst)
        fields = burst.offload.tolist()
        for at, one in enumerate(burst):
            frame = bytes(one)
            if frame[12:14] == b"\x08\x06" and frame[28:32] == HOST:
                self.host = frame[22:28]
            elif frame[12:14] == b"\x08\x00" and frame[36:38] == self.source.to_bytes(2, "big"):
                assert good[at]
                self.segment(frame, fields[at])
        answers = pyvirtnet.answer_pings(burst, self.port.mac, ["10.99.0.2"])
        if answers.any():
            self.port.send_burst(burst[answers])

    def segment(self, frame: bytes, fields: tuple[int, ...]) -> None:
        sequence, _, offset, flags = struct.unpack_from("!IIBB", frame, 38)
        assert not flags & RESET, "nobody listens"
        data = frame[34 + (offset >> 4) * 4 : 14 + int.from_bytes(frame[16:18], "big")]
        if flags & SYN:
            self.expected, self.open = sequence + 1, True
        elif sequence == self.expected and data:
            self.expected = (sequence + len(data)) & 0xFFFFFFFF
            self.received += data
            self.seen.append((len(frame), *fields))
            self.put(ACK)
        elif data:
            self.put(ACK)


@pytest.mark.parametrize("features", [(), ("-mrg_rxbuf",)], ids=["mergeable", "big"])
def test_segments_to_and_from_the_hosts_tcp(features: tuple[str, ...]) -> None:
    """40 kB in one frame of ours arrive at the host's TCP as they are; what it echoes arrives in
    frames larger than a packet, with their header fields."""
    with pyvirtnet.open(NIC, offloads=True, features=features) as port:
        wanted = {Feature.CSUM, Feature.GUEST_CSUM, Feature.HOST_TSO4, Feature.GUEST_TSO4}
        assert wanted <= port.features.negotiated
        assert port.info()["receive_mode"] == ("big" if features else "mergeable")
        connection = Connection(port, 40000 + len(features))
        content = random.Random(7).randbytes(40000)
        rounds = connection.echo_until_large(content, 4)
        assert bytes(connection.received) == content * rounds
        connection.put(RESET | ACK)
        large = [one for one in connection.seen if one[0] > 1514]
        for _, flags, kind, _, size, start, offset in large:
            assert flags & HeaderFlag.NEEDS_CSUM
            assert kind & ~Gso.ECN == Gso.TCPV4
            assert 500 < size <= MSS
            assert (start, offset) == (34, 16)
        assert port.stats.rx_bad_headers == 0
        assert port.stats.tx_frames < 100 * rounds  # not a frame a packet


def test_receive_offloads_are_switched_off_and_on_without_a_reset() -> None:
    """Frames larger than a packet stop coming, and come again; the connection goes on."""
    with pyvirtnet.open(NIC, offloads=True) as port:
        assert Feature.CTRL_GUEST_OFFLOADS in port.features.negotiated
        every = port.offloads
        assert Feature.GUEST_TSO4 in every
        connection = Connection(port, 41000)
        content = random.Random(8).randbytes(40000)
        rounds = connection.echo_until_large(content, 1)
        port.offloads = []
        assert port.offloads == frozenset()
        connection.seen.clear()
        for _ in range(8):
            connection.echo(content)
        assert max(connection.seen)[0] <= 14 + 40 + MSS
        assert all(kind == Gso.NONE for _, _, kind, *_ in connection.seen)
        assert not any(flags & HeaderFlag.NEEDS_CSUM for _, flags, *_ in connection.seen)
        port.offloads = every
        connection.seen.clear()
        rounds += 8 + connection.echo_until_large(content, 1)
        assert bytes(connection.received) == content * rounds
        connection.put(RESET | ACK)
        assert port.stats.rx_bad_headers == port.stats.rx_lost == 0
