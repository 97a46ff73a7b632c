"""fwd on simulated cables: every mode, both directions, full ports, figures, its end."""

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import _fwd_loop, fwd
from pyvirtnet.cli._fwd_loop import IDLE, Forwarder, Lane
from pyvirtnet.cli._pktgen_traffic import Stop
from pyvirtnet.testing import NetDevice
from pyvirtnet.transport.sim import SimTransport

LEFT, RIGHT = "sim:cable/left", "sim:cable/right"
OURS = "02:00:00:00:00:01"
HEADERS = Ether(src="02:00:00:00:00:0a", dst=OURS) / IP(src="192.0.2.10", dst="192.0.2.1")
FRAME = bytes(HEADERS / UDP(sport=1111, dport=53) / Raw(b"question" * 300))
TURNED = bytes(
    Ether(dst="02:00:00:00:00:0a", src=OURS)
    / IP(dst="192.0.2.10", src="192.0.2.1")
    / UDP(dport=1111, sport=53)
    / Raw(b"question" * 300)
)
SWAPPED = FRAME[6:12] + FRAME[:6] + FRAME[12:]


class Peer:
    """The other end of a port's cable."""

    def __init__(self, cable: str, count: int | None = None) -> None:
        self.port = pyvirtnet.open(f"{cable}/1")
        self.answers: list[bytes] = []
        self._count, self._thread = count, threading.Thread(target=self._collect)

    def _collect(self) -> None:
        while self._count is None or len(self.answers) < self._count:
            try:
                self.answers += map(bytes, self.port.recv_burst(64, timeout=0.2))
            except pyvirtnet.PortClosed:
                return

    def __enter__(self) -> "Peer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._count is None:
            self.port.close()
        self._thread.join(30)
        self.port.close()


@pytest.fixture
def ends() -> Iterator[tuple[Port, Port, Port, Port]]:
    """Two cables: ours of the first and the second, then their other ends."""
    with (
        pyvirtnet.open(f"{LEFT}/0") as left,
        pyvirtnet.open(f"{RIGHT}/0?mac=02:00:00:00:00:02") as right,
        pyvirtnet.open(f"{LEFT}/1") as far_left,
        pyvirtnet.open(f"{RIGHT}/1") as far_right,
    ):
        yield left, right, far_left, far_right


@pytest.mark.parametrize(
    ("mode", "expected"), [("io", FRAME), ("macswap", SWAPPED), ("5tswap", TURNED)]
)
def test_a_frame_goes_on(ends: tuple[Port, Port, Port, Port], mode: str, expected: bytes) -> None:
    left, right, far_left, far_right = ends
    lanes = Lane(left, right, mode), Lane(right, left, mode)
    far_left.send_burst([FRAME] * 3)
    far_right.send_burst([FRAME] * 2)
    assert [lane.step(None) for lane in lanes] == [3, 2]
    assert [bytes(frame) for frame in far_right.recv_burst(8)] == [expected] * 3
    assert [bytes(frame) for frame in far_left.recv_burst(8)] == [expected] * 2


def test_drop_drops(ends: tuple[Port, Port, Port, Port]) -> None:
    left, right, far_left, far_right = ends
    lane = Lane(left, right, "drop")
    far_left.send_burst([FRAME] * 5)
    assert lane.step(3) == 3
    assert lane.step(None) == 2
    assert (lane.received, lane.kept, lane.sent) == (5, 0, 0)
    assert len(far_right.recv_burst(8)) == 0


def test_echo_answers_on_the_port_a_request_came_by(ends: tuple[Port, Port, Port, Port]) -> None:
    left, _, far_left, _ = ends
    lane = Lane(left, left, "icmp-echo", addresses=["192.0.2.1"])
    ping = bytes(HEADERS / ICMP(type=8, id=1, seq=2) / Raw(b"data" * 500))
    who_has = bytes(Ether(dst="ff:ff:ff:ff:ff:ff", src="02:00:00:00:00:0a") / ARP(pdst="192.0.2.1"))
    other = bytes(Ether(dst=OURS) / IP(src="192.0.2.10", dst="192.0.2.2") / ICMP(type=8))
    far_left.send_burst([ping, FRAME, who_has, other])
    assert lane.step(None) == 4
    echo, is_at = (Ether(bytes(frame)) for frame in far_left.recv_burst(8))
    assert (echo[IP].src, echo[IP].dst, echo[ICMP].type) == ("192.0.2.1", "192.0.2.10", 0)
    assert echo[Raw].load == b"data" * 500
    assert (is_at[ARP].op, is_at[ARP].hwsrc, is_at[ARP].psrc) == (2, OURS, "192.0.2.1")
    assert (lane.received, lane.kept, lane.sent) == (4, 2, 2)


def test_what_a_full_port_does_not_take_is_dropped_and_counted() -> None:
    """A device that never sends: its ring takes 16 frames, and no more."""
    stuck = Port(SimTransport(NetDevice(queue_sizes=(16, 16)), "sim:stuck"))
    with pyvirtnet.open(f"{LEFT}/0") as rx, pyvirtnet.open(f"{LEFT}/1") as peer, stuck as tx:
        lane = Lane(rx, tx, "io", retry=0.01)
        peer.send_burst([FRAME[:100]] * 20)
        assert lane.step(None) == 20
        assert (lane.received, lane.sent, lane.unsent) == (20, 16, 4)


def test_a_port_that_takes_frames_again_gets_them(
    ends: tuple[Port, Port, Port, Port], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The far end's rings are full until it receives, which it does while the lane insists."""
    left, right, far_left, far_right = ends
    lane = Lane(left, right, "io", retry=30)
    arrived = 0
    send = right.send_burst

    def send_and_receive(burst: pyvirtnet.RxBurst) -> int:
        nonlocal arrived
        sent = send(burst)
        arrived += sum(frame == FRAME for frame in map(bytes, far_right.recv_burst(256)))
        return sent

    monkeypatch.setattr(right, "send_burst", send_and_receive)
    for _ in range(50):
        far_left.send_burst([FRAME] * 60)
        while lane.step(None):
            pass
    arrived += len(far_right.recv_burst(256))
    assert (lane.received, lane.sent, lane.unsent, arrived) == (3000, 3000, 0, 3000)


def test_frames_longer_than_the_other_port_sends_are_dropped_and_counted() -> None:
    with (
        pyvirtnet.open(f"{LEFT}/0") as rx,
        pyvirtnet.open(f"{LEFT}/1") as peer,
        pyvirtnet.open(f"{RIGHT}/0?mtu=1500") as tx,
        pyvirtnet.open(f"{RIGHT}/1") as far,
    ):
        lane = Lane(rx, tx, "io")
        peer.send_burst([FRAME, FRAME[:1000], FRAME, FRAME[:500]])
        assert lane.step(None) == 4
        assert [len(frame) for frame in far.recv_burst(8)] == [1000, 500]
        assert (lane.received, lane.sent, lane.unsent, lane.too_long) == (4, 2, 0, 2)


@pytest.mark.parametrize("poll", [True, False])
def test_it_sleeps_when_nothing_comes(ends: tuple[Port, Port, Port, Port], poll: bool) -> None:
    left, right, *_ = ends
    lanes, stop = [Lane(left, right, "io"), Lane(right, left, "io")], Stop()
    polls = 10 * IDLE if poll else 2 * IDLE + 100  # it would take minutes by naps

    def look(now: float) -> None:
        if sum(lane.empty for lane in lanes) >= polls:
            stop.signal = signal.SIGINT

    used = time.process_time()
    Forwarder(lanes, stop, poll=poll).run(None, 60 if poll else 0.6, look)
    used = time.process_time() - used
    assert poll or used < 0.3
    assert bool(stop.signal) == poll


def test_a_sleeper_wakes_for_either_port(ends: tuple[Port, Port, Port, Port]) -> None:
    left, right, far_left, far_right = ends
    forwarder = Forwarder([Lane(left, right, "io"), Lane(right, left, "io")], Stop(), poll=False)

    def send() -> None:
        for far in (far_right, far_left) * 3:
            while not any(lane.empty > IDLE for lane in forwarder.lanes):
                time.sleep(0.001)
            for lane in forwarder.lanes:
                lane.empty = 0
            far.send_burst([FRAME])

    sender = threading.Thread(target=send)
    sender.start()
    forwarder.run(6, 60, lambda now: None)
    sender.join(60)
    assert [lane.received for lane in forwarder.lanes] == [3, 3]
    assert forwarder.seconds < 30


class Clock:
    """In the place of `time`: each look takes a nanosecond, each sleep a minute."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-9
        return self.now

    monotonic = perf_counter

    def sleep(self) -> None:
        self.now += 60


def test_sleep_is_not_work(
    ends: tuple[Port, Port, Port, Port], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, right, far_left, _ = ends
    clock = Clock()
    forwarder = Forwarder([Lane(left, right, "io"), Lane(right, left, "io")], Stop(), poll=False)

    def sleep() -> None:
        clock.sleep()
        far_left.send_burst([FRAME])

    monkeypatch.setattr(_fwd_loop, "time", clock)
    monkeypatch.setattr(forwarder, "_sleep", sleep)
    forwarder.run(3, None, lambda now: None)
    assert forwarder.seconds > 180
    assert 0 < forwarder.busy < 1


# ---- the command -------------------------------------------------------------------------------


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, object]]]:
    def call(*words: str) -> tuple[int, dict[str, object]]:
        capsys.readouterr()
        status = fwd.main([*words, "--json"])
        (line,) = capsys.readouterr().out.splitlines()
        return status, json.loads(line)

    return call


def test_figures_of_two_ports(tool: Callable[..., tuple[int, dict[str, object]]]) -> None:
    with Peer(LEFT) as left, Peer(RIGHT, 200) as right:
        assert left.port.send_burst([FRAME] * 200) == 200
        status, figures = tool(f"{LEFT}/0", f"{RIGHT}/0", "--mode", "macswap", "--count", "200")
    assert status == 0
    assert right.answers == [SWAPPED] * 200
    first, second = figures.pop("ports")
    assert (first["name"], first["rx_frames"], first["tx_frames"]) == (f"{LEFT}/0", 200, 0)
    assert (second["name"], second["rx_frames"], second["tx_frames"]) == (f"{RIGHT}/0", 0, 200)
    assert first["rx_bytes"] == second["tx_bytes"] == 200 * len(FRAME)
    assert second["tx_dropped"] == second["tx_too_long"] == first["rx_filtered"] == 0
    assert sum(figures["bursts"].values()) >= 200 / 64
    assert set(figures["bursts"]) <= {"1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-127"}
    assert figures["ns_per_frame"] > 0
    assert (figures["mode"], figures["frames"], figures["interrupted"]) == ("macswap", 200, False)


def test_one_port_is_its_own_other_end(
    tool: Callable[..., tuple[int, dict[str, object]]],
) -> None:
    with Peer(LEFT, 10) as peer:
        peer.port.send_burst([FRAME] * 10)
        status, figures = tool(f"{LEFT}/0", f"{LEFT}/0", "--mode", "5tswap", "--count", "10")
    assert status == 0
    assert peer.answers == [TURNED] * 10
    (port,) = figures["ports"]
    assert (port["rx_frames"], port["tx_frames"]) == (10, 10)


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    with Peer(LEFT) as peer:
        peer.port.send_burst([FRAME] * 6)
        assert fwd.main([f"{LEFT}/0", "--mode", "drop", "--count", "6"]) == 0
    heading, port, bursts, last = capsys.readouterr().out.splitlines()
    assert heading.split() == ["port", "received", "sent", "filtered", "dropped", "too", "long"]
    assert port.split() == [f"{LEFT}/0", "6", "0", "6", "0", "0"]
    assert bursts == "bursts: 100 % of 4-7; 0 polls found nothing"
    assert last.startswith("drop: 6 frames, ")
    assert last.endswith(" ns a frame in rounds that found some")


def test_time_ends_it(tool: Callable[..., tuple[int, dict[str, object]]]) -> None:
    status, figures = tool("sim:loopback", "--time", "0.2")
    assert status == 0
    assert figures["seconds"] >= 0.2
    assert figures["frames"] == 0
    assert figures["ns_per_frame"] is None


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_figures(
    tool: Callable[..., tuple[int, dict[str, object]]], number: int, status: int
) -> None:
    with Peer(LEFT, 5) as peer:
        peer.port.send_burst([FRAME] * 5)

        def stop() -> None:
            peer._thread.join(30)
            signal.pthread_kill(threading.main_thread().ident, number)

        stopper = threading.Thread(target=stop)
        stopper.start()
        found, figures = tool(f"{LEFT}/0")
        stopper.join(30)
    assert found == status
    assert figures["interrupted"]
    assert figures["frames"] == 5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sim:loopback", "--mode", "sideways"], "'sideways'"),
        (["sim:loopback", "--address", "192.0.2"], "'192.0.2' does not appear to be an IPv4"),
        (["sim:loopback", "--address", "192.0.2.1"], "--address is for --mode icmp-echo"),
        (["sim:loopback", "--retry", "-1"], "--retry"),
        ([], "PORT"),
    ],
)
def test_a_wrong_option_is_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit) as end:
        fwd.main(words)
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


def test_a_port_that_cannot_be_opened_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert fwd.main(["sim:nowhere"]) == 3
    assert "no simulator 'sim:nowhere'" in capsys.readouterr().err
    for words in (["", "sim:loopback"], ["sim:loopback", ""]):
        assert fwd.main([*words, "--time", "0.1"]) == 3
        assert "cannot open ''" in capsys.readouterr().err
