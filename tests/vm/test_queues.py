"""Four queue pairs on a multi-queue tap, whose device steers flows; interrupts, select, asyncio."""

import asyncio
import selectors
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import pyvirtnet
from pyvirtnet import Event, Feature, HashType, Link, Port, Rss
from pyvirtnet.cli import bind

from .monitor import ask

MACHINE = {"ports": 1, "link": "tap", "queues": 4, "port_opts": "hash=on,rss=on"}

NIC, PAIRS, SECONDS = "0000:00:04.0", 4, 20
HOST = bytes((10, 99, 0, 1))
BROADCAST = b"\xff" * 6


@pytest.fixture(scope="module", autouse=True)
def _bound() -> Iterator[None]:
    assert bind.main(["bind", NIC]) == 0
    yield
    assert bind.main(["restore", NIC]) == 0


@pytest.fixture
def port() -> Iterator[Port]:
    with pyvirtnet.open(NIC, queue_pairs=PAIRS) as port:
        yield port


def address(flow: int) -> bytes:
    return bytes((10, 99, 0, 100 + flow))


def checksum(data: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return (total ^ 0xFFFF).to_bytes(2, "big")


def arp(mine: bytes, source: bytes, kind: int, theirs: bytes, target: bytes) -> bytes:
    """A request (1) or an answer (2)."""
    header = (BROADCAST if kind == 1 else theirs) + mine + b"\x08\x06"
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, kind) + mine + source + theirs + target
    return (header + body).ljust(60, b"\0")


def ping(mine: bytes, theirs: bytes, flow: int, number: int) -> bytes:
    """An ICMP echo request of a flow, which is an address of ours."""
    echo = struct.pack("!BBHHH", 8, 0, 0, flow, number) + bytes(32)
    echo = echo[:2] + checksum(echo) + echo[4:]
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(echo), 0, 0, 64, 1, 0) + address(flow) + HOST
    ip = ip[:10] + checksum(ip) + ip[12:]
    return theirs + mine + b"\x08\x00" + ip + echo


class Pinger:
    """Pings the host's kernel from every pair, and notes at which the answers come."""

    def __init__(self, port: Port) -> None:
        self.port, self.host = port, b""
        self.answers: dict[tuple[int, int], int] = {}  # flow and number: queue pair
        request = arp(port.mac, address(0), 1, bytes(6), HOST)
        self.until(lambda: self.host, lambda: port.send_burst([request]))

    def until(self, condition: Callable[[], object], step: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            step()
            self.listen()
            time.sleep(0.005)

    def listen(self) -> None:
        for queue in self.port.queues:
            for frame in map(bytes, queue.recv_burst(64)):
                self.take(queue.index, frame)

    def take(self, pair: int, frame: bytes) -> None:
        """Answer the kernel's questions, note its answers."""
        kind = frame[12:14]
        if kind == b"\x08\x06" and frame[21] == 1:
            reply = arp(self.port.mac, frame[38:42], 2, frame[22:28], frame[28:32])
            self.port.queues[pair].send_burst([reply])
        elif kind == b"\x08\x06":
            self.host = frame[22:28]
        elif kind == b"\x08\x00" and frame[23] == 1 and frame[34] == 0:
            self.answers[struct.unpack("!HH", frame[38:42])] = pair

    def where(self, flow: int, number: int, pair: int) -> int:
        """Ping from a pair; the one at which the answer comes."""
        request = ping(self.port.mac, self.host, flow, number)
        self.port.queues[pair].send_burst([request])
        self.until(lambda: (flow, number) in self.answers, lambda: None)
        return self.answers[flow, number]


class Hasher(Pinger):
    """Notes what the device says of the answers' hashes: value and type, by flow."""

    def __init__(self, port: Port) -> None:
        self.hashes: dict[int, tuple[int, int]] = {}
        super().__init__(port)

    def listen(self) -> None:
        for queue in self.port.queues:
            burst = queue.recv_burst(64)
            columns = burst.hash_value.tolist(), burst.hash_type.tolist()
            for frame, value, kind in zip(map(bytes, burst), *columns, strict=True):
                if frame[12:14] == b"\x08\x00":
                    self.hashes[frame[33] - 100] = value, kind
                self.take(queue.index, frame)


def toeplitz(data: bytes, key: bytes) -> int:
    """Where a bit of `data` is set, the 32 bits of the key that begin there (5.1.6.4.3)."""
    bits, total = int.from_bytes(key, "big"), 0
    for at in range(8 * len(data)):
        if data[at // 8] << at % 8 & 0x80:
            total ^= bits >> 8 * len(key) - 32 - at
    return total & 0xFFFFFFFF


def test_what_is_there(port: Port) -> None:
    assert {Feature.MQ, Feature.CTRL_VQ} <= port.features.negotiated
    assert port.info()["queue_pairs"] == len(port.queues) == PAIRS
    assert len(port.info()["ring_sizes"]) == 2 * PAIRS
    with pytest.raises(pyvirtnet.DeviceBusy):
        pyvirtnet.open(NIC)
    port.close()
    with pytest.raises(pyvirtnet.FeatureMissing, match="the device has 4"):
        pyvirtnet.open(NIC, queue_pairs=5)


def test_flows_come_back_to_the_pair_they_were_sent_from(port: Port) -> None:
    """The device steers them, and follows them when they move; after a reset, too."""
    pinger = Pinger(port)
    for turn in range(3):
        for flow in range(12):
            pair = (flow + turn) % PAIRS
            pinger.where(flow, 2 * turn, pair)  # it may still be questioned, on any pair
            assert pinger.where(flow, 2 * turn + 1, pair) == pair
        stats = [queue.stats for queue in port.queues]
        assert all(one.rx_frames >= 3 * (turn + 1) for one in stats)
        assert sum(one.tx_frames for one in stats) == port.stats.tx_frames
        port.reset()


def test_hashes_come_with_frames_and_steer_them() -> None:
    """The device's own, of both addresses; and where they lead to when RSS is set."""
    with pyvirtnet.open(NIC, queue_pairs=PAIRS, features=["+hash_report"]) as port:
        port.hash_types = HashType.IPV4
        pinger = Hasher(port)
        expected = {flow: toeplitz(HOST + address(flow), Rss().key) for flow in range(8)}
        for flow in range(8):
            pinger.where(flow, 0, 0)
        assert pinger.hashes == {flow: (value, 1) for flow, value in expected.items()}
        port.rss = Rss([3, 2, 1, 0], HashType.IPV4)
        for flow, value in expected.items():
            assert pinger.where(flow, 1, 0) == 3 - value % PAIRS
        assert len({value % PAIRS for value in expected.values()}) > 1


def test_a_thread_for_each_pair_sleeps_until_its_frames_come(port: Port) -> None:
    pinger = Pinger(port)
    for flow in range(PAIRS):
        pinger.where(flow, 0, flow)
        pinger.where(flow, 1, flow)
    got: dict[int, list[bytes]] = {}

    def work(pair: int) -> None:
        """Ping and sleep, ping and sleep."""
        queue = port.queues[pair]
        for number in range(2, 12):
            queue.send_burst([ping(port.mac, pinger.host, pair, number)])
            answer = b""
            while answer[34:35] != b"\0" or answer[38:42] != struct.pack("!HH", pair, number):
                (frame,) = queue.recv_burst(1, timeout=SECONDS) or (b"nothing",)
                answer = bytes(frame)
                pinger.take(pair, answer)
            got.setdefault(pair, []).append(answer)

    threads = [threading.Thread(target=work, args=(pair,)) for pair in range(PAIRS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {pair: len(frames) for pair, frames in got.items()} == dict.fromkeys(range(PAIRS), 10)


def test_select_over_pairs(port: Port) -> None:
    pinger = Pinger(port)
    for flow in range(PAIRS):
        pinger.where(flow, 0, flow)
        pinger.where(flow, 1, flow)
    with selectors.DefaultSelector() as selector:
        for queue in port.queues:
            selector.register(queue, selectors.EVENT_READ)
        for number in range(2, 12):
            for flow, queue in enumerate(port.queues):
                queue.send_burst([ping(port.mac, pinger.host, flow, number)])
            end = time.monotonic() + SECONDS
            while not all((flow, number) in pinger.answers for flow in range(PAIRS)):
                assert time.monotonic() < end
                for key, _ in selector.select(SECONDS):
                    for frame in map(bytes, key.fileobj.recv_burst(64)):
                        pinger.take(key.fileobj.index, frame)
    assert {pair for (flow, _), pair in pinger.answers.items() if flow == 3} >= {3}


def test_asyncio(port: Port) -> None:
    pinger = Pinger(port)
    pinger.where(0, 0, 0)
    pinger.where(0, 1, 0)

    async def work() -> None:
        number = 2
        port.send_burst([ping(port.mac, pinger.host, 0, number)])
        async for burst in port:
            for frame in map(bytes, burst):
                pinger.take(0, frame)
            if (0, number) in pinger.answers:
                number += 1
                port.send_burst([ping(port.mac, pinger.host, 0, number)])
            if number == 20:
                return

    asyncio.run(asyncio.wait_for(work(), SECONDS))


def test_a_change_of_the_link_wakes(port: Port) -> None:
    """By the interrupt for configuration changes."""
    port.events()
    wait = port.fileno()
    while len(port.recv_burst(64)):
        pass
    for up in (False, True):
        timer = threading.Timer(0.2, lambda up=up: ask("set_link", name="nic0", up=up))
        timer.start()
        with selectors.DefaultSelector() as selector:
            selector.register(wait, selectors.EVENT_READ)
            while not (found := port.events()):
                assert selector.select(SECONDS)
                while len(port.recv_burst(64)):
                    pass
        timer.join()
        assert found == [Event("link", Link(up, None, None))]
    timer = threading.Timer(0.2, lambda: ask("set_link", name="nic0", up=False))
    timer.start()
    assert port.events(timeout=SECONDS) == [Event("link", Link(False, None, None))]
    timer.join()
    ask("set_link", name="nic0", up=True)


def test_sleeping_takes_no_processor(port: Port) -> None:
    before = time.process_time()
    port.queues[1].recv_burst(1, timeout=2.0)
    assert time.process_time() - before < 0.5  # of an emulated one
