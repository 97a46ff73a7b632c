"""tools/pktgen: tx and rx, wrong usage, errors, and the parts it is made of."""

import io
import json
import math
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from bad_cable import Tool

import pyvirtnet
from pyvirtnet import Port, RxBurst
from pyvirtnet._meter import Meter
from pyvirtnet._probe import Probes
from pyvirtnet._stamp import ETHERTYPE, STREAM, in_flight
from pyvirtnet.cli import _pktgen_traffic, pktgen
from pyvirtnet.cli._live import Live
from pyvirtnet.cli._pktgen_options import Mix
from pyvirtnet.cli._pktgen_report import Report, Row
from pyvirtnet.cli._pktgen_sender import Sender, Stream
from pyvirtnet.cli._pktgen_traffic import Bounds, Run, Stop, receive
from pyvirtnet.testing import NetDevice
from pyvirtnet.transport.sim import SimTransport

pytest_plugins = ["pktgen_fixtures"]

HEADER = bytes(range(2, 14)) + ETHERTYPE.to_bytes(2, "big")
HERE, THERE = "sim:cable/pktgen/0", "sim:cable/pktgen/1?mac=02:00:00:00:00:07"


# ---- tx and rx ---------------------------------------------------------------------------------


def test_tx_sends_all_before_it_ends(tool: Tool) -> None:
    with pyvirtnet.open(THERE) as peer:
        words = ("--count", "200", "--size", "60,1514", "--dst", "02:00:00:00:00:aa", "--json")
        assert tool("tx", HERE, *words) == 0
        checker, frames = Meter(), []
        while burst := list(peer.recv_burst(64)):
            frames += [bytes(frame) for frame in burst]
        assert [row["sent"] for row in tool.figures["rows"]] == [200, 200]
        assert [row["tx"]["tx_frames"] for row in tool.figures["rows"]] == [200, 200]
        assert "received" not in tool.figures["rows"][0]
        assert [len(frame) for frame in frames] == [60] * 200 + [1514] * 200
        assert {frame[:14].hex() for frame in frames} == {"0200000000aa" + "020000000001" + "88b5"}
        again = peer.alloc_burst(len(frames), 1514)
        again.set_lengths([len(frame) for frame in frames])
        for row, frame in zip(again.data, frames, strict=True):
            row[: len(frame)] = bytearray(frame)
        assert checker.check(again) == 400
        assert checker.passed == 400  # one stream, numbers that go on
        assert checker.reordered == 0


def test_tx_that_gives_up_has_failed(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pktgen, "PATIENCE", 0.2)
    assert tool("tx", "sim:loopback?backlog=10", "--count", "100000", "--json") == 1
    assert tool.row["sent"] < 100000
    assert tool.row["stalled"]
    assert not tool.figures["ok"]
    assert "the device takes no more frames; gave up" in tool.err


def sent(port: Port, numbers: list[int], size: int = 200, stream: int = 0) -> None:
    """Test frames of these numbers are on their way to `port`, a loopback."""
    burst = port.alloc_burst(len(numbers), size)
    probes = Probes({size: np.frombuffer(HEADER, np.uint8).reshape(1, -1).copy()}, stream)
    probes.prepare(burst, 0)
    for i, number in enumerate(numbers):
        probes.number(burst[i : i + 1], number)
    assert port.send_burst(burst) == len(numbers)


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Port]:
    """The port that rx will open, before it does."""
    with pyvirtnet.open("sim:loopback") as port:
        monkeypatch.setattr(pyvirtnet, "open", lambda _: port)
        yield port


def test_rx_counts_what_comes(tool: Tool, busy: Port) -> None:
    sent(busy, list(range(500, 600)))
    assert tool("rx", "sim:loopback", "--count", "100", "--json") == 0
    assert (tool.row["received"], tool.row["lost"]) == (100, 0)
    assert "sent" not in tool.row


def test_rx_ends_after_silence_and_says_what_is_missing(tool: Tool, busy: Port) -> None:
    sent(busy, [5, 6, 8, 8, 9])
    assert tool("rx", "sim:loopback", "--timeout", "0.1", "--json") == 1
    row = tool.row
    assert (row["received"], row["lost"], row["duplicated"]) == (5, 1, 1)


def test_rx_fails_where_fewer_frames_come_than_it_was_to_receive(tool: Tool, busy: Port) -> None:
    sent(busy, list(range(6)))
    assert tool("rx", "sim:loopback", "--count", "10", "--timeout", "0.1", "--json") == 1
    assert (tool.row["received"], tool.row["stalled"], tool.figures["ok"]) == (6, True, False)
    assert "nothing more arrives; gave up after 0.1 s" in tool.err


def test_rx_fails_where_its_time_is_over_before_all_frames_came(tool: Tool, busy: Port) -> None:
    sent(busy, list(range(6)))
    assert tool("rx", "sim:loopback", "--count", "10", "--time", "0.2", "--json") == 1
    assert (tool.row["received"], tool.figures["ok"]) == (6, False)
    assert "not all of 10 frames came in that time" in tool.err


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A second passes between two looks at rx's clock: so many have passed."""
    passed = [0]

    def look() -> int:
        passed[0] += 1
        return passed[0] - 1

    monkeypatch.setattr(_pktgen_traffic, "time", SimpleNamespace(monotonic=look))
    monkeypatch.setattr(_pktgen_traffic, "WAIT", 0.001)
    return passed


@pytest.mark.parametrize(
    ("words", "seconds"),
    [((), 11), (("--timeout", "3"), 4), (("--time", "15"), 15),
     (("--time", "15", "--timeout", "3"), 4)],
)  # fmt: skip
def test_rx_ends_by_its_time_or_by_silence(
    tool: Tool, looks: list[int], words: tuple[str, ...], seconds: int
) -> None:
    assert tool("rx", "sim:loopback", *words) == 1
    assert looks[0] == seconds + 1


class Late:
    """A loopback: at some of its receiver's polls a probe of such a number comes."""

    def __init__(self, port: Port, polls: dict[int, int]) -> None:
        self._port, self._polls, self._done = port, polls, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._port, name)

    def recv_burst(self, most: int, timeout: float) -> RxBurst:
        self._done += 1
        if self._done not in self._polls:
            return self._port.recv_burst(1)
        stream, number = divmod(self._polls[self._done], STREAM)
        sent(self._port, [number], stream=stream)
        return self._port.recv_burst(most, timeout=60)


def received(port: Port, polls: dict[int, int], seconds: float) -> Row:
    run = Run(Bounds(None, seconds, 64, math.inf), Stop(), Report(as_json=True, about={}))
    return receive(cast(Port, Late(port, polls)), run)


def test_the_time_of_rx_runs_from_its_start_and_its_rate_from_the_first_frame(
    busy: Port, looks: list[int]
) -> None:
    row = received(busy, {4: 1, 7: 2, 8: 3}, 10)
    assert (row.received, row.seconds, row.pps) == (3, 4, 0.8)
    assert looks[0] == 10 + 1


def test_rx_of_other_protocols_only_says_so_and_is_well(tool: Tool, busy: Port) -> None:
    assert busy.send_burst([bytes(60)] * 3) == 3
    assert tool("rx", "sim:loopback", "--timeout", "0.1") == 0
    assert "3 frames of other protocols arrived, none of pktgen's" in tool.out
    assert "of these frames" not in tool.out


def test_rx_counts_other_protocols_besides(tool: Tool, busy: Port) -> None:
    assert busy.send_burst([bytes(60)]) == 1
    sent(busy, [5, 6])
    assert tool("rx", "sim:loopback", "--timeout", "0.1") == 0
    assert "besides: 1 frame of other protocols" in tool.out


def test_rx_tells_frames_of_another_run_from_other_protocols(tool: Tool, busy: Port) -> None:
    sent(busy, [5, 6])
    sent(busy, [1, 2, 3], stream=7)
    assert busy.send_burst([bytes(60)] * 2) == 2
    assert tool("rx", "sim:loopback", "--timeout", "0.1") == 0
    besides = "besides: 3 frames of another run of pktgen, 2 frames of other protocols"
    assert besides in tool.out


def test_the_rate_of_rx_is_that_of_its_own_stream(busy: Port, looks: list[int]) -> None:
    """Foreign frames that came behind it made the time longer."""
    row = received(busy, {2: 1, 3: 2, 4: 3, 8: STREAM + 1}, 10)
    assert (row.received, row.astray, row.foreign, row.seconds) == (3, 1, 1, 2)


def test_rx_takes_plain_frames_for_others(tool: Tool, busy: Port) -> None:
    """They were damaged ones, or duplicates."""
    for words in ((), ("--frame", "ipv4/udp"), ("--frame", "vlan")):
        assert tool("tx", "sim:loopback", "--plain", *words, "--dry-run", "2", "--json") == 0
        frames = [bytes.fromhex(one) for one in json.loads(tool.out)["frames"]]
        assert busy.send_burst(frames) == 2
    meter = Meter()
    while meter.received + meter.corrupt + meter.foreign < 6:
        assert meter.check(busy.recv_burst(8, timeout=60)) == 0
    assert (meter.corrupt, meter.foreign, meter.astray) == (0, 6, 0)


def test_rx_of_nothing_says_so_and_fails(tool: Tool) -> None:
    assert tool("rx", "sim:loopback", "--timeout", "0.1") == 1
    assert "nothing arrived" in tool.out
    assert tool("rx", "sim:loopback", "--time", "0.1", "--json") == 1
    assert tool.row["received"] == 0


# ---- wrong usage and errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("fly",),
        ("tx",),
        ("loop", "sim:loopback"),
        ("tx", "sim:loopback", "--size", "31"),
        ("tx", "sim:loopback", "--size", "65536"),
        ("tx", "sim:loopback", "--size", "60,"),
        ("tx", "sim:loopback", "--size", "60.5"),
        ("tx", "sim:loopback", "--count", "0"),
        ("tx", "sim:loopback", "--time", "-1"),
        ("tx", "sim:loopback", "--time", "nan"),
        ("tx", "sim:loopback", "--burst", "1025"),
        ("tx", "sim:loopback", "--dst", "52:54:00:00:00"),
        ("tx", "sim:loopback", "--src", "52:54:00:00:00:0g"),
        ("tx", "sim:loopback", "--cou", "5"),
        ("rx", "sim:loopback", "--size", "60"),
    ],
)
def test_wrong_usage_is_one_line(tool: Tool, words: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as end:
        tool(*words)
    assert end.value.code == 2
    (line,) = tool.err.splitlines()
    assert line.startswith("pyvirtnet pktgen")
    assert tool.out == ""


def test_more_than_the_line_carries_is_no_rate(tool: Tool) -> None:
    with pytest.raises(SystemExit):
        tool("tx", HERE, "--rate", "200%")
    assert "'200%' is more than the line carries: 100% at most" in tool.err


@pytest.mark.parametrize(
    ("words", "status", "what"),
    [
        (("tx", "sim:nowhere"), 3, "no simulator 'sim:nowhere'"),
        (("loop", "", HERE), 3, "cannot open ''"),
        (("loop", HERE, ""), 3, "cannot open ''"),
        (("tx", HERE, "--frame", "ipv4/nosuch"), 2, "no frame 'ipv4/nosuch'"),
        (("tx", HERE, "--frame", "ipv4(ttl=300)"), 2, "ipv4(ttl=300): ttl is from 0 to 255"),
        (("tx", HERE, "--frame", "vlan(id=4096)"), 2, "vlan(id=4096): id is from 0 to 4095"),
        (("tx", HERE, "--frame", "qinq(prio=8)"), 2, "qinq(prio=8): prio is from 0 to 7"),
        (("tx", HERE, "--frame", "ipv6(hop=x)"), 2, "ipv6(hop=x): hop is from 0 to 255"),
        (("tx", HERE, "--frame", "ipv4/udp(src=-1)"), 2, "udp(src=-1): src is from 0 to 65535"),
        (("tx", HERE, "--frame", "ipv4/tcp(dst=65536)"), 2, "tcp(dst=65536): dst is from 0"),
        (("tx", HERE, "--frame", "ipv4/icmp(id=65536)"), 2, "icmp(id=65536): id is from 0"),
        (("tx", HERE, "--frame", "ipv4", "--vary", "dst-port=1"), 2, "cannot vary dst-port"),
        (("tx", HERE, "--frame", "ipv4", "--size", "40"), 2, "cannot send 40 bytes"),
        (("tx", HERE, "--rate", "10%", "--count", "1"), 2, "cannot send at 10%"),
        (("tx", HERE, "--rate", "1k,10%", "--count", "1"), 2, "cannot send at 10%"),
        (
            ("loop", HERE, THERE, "--frame", "ipv6/tcp", "--size", "1514,60", "--count", "1"),
            2,
            "cannot send 60 bytes",
        ),
        (("tx", "sim:loopback?mtu=1500", "--size", "60,9014"), 1, "cannot send 9014 bytes"),
        (
            ("loop", HERE, "sim:cable/pktgen/1?mrg_rxbuf=off", "--size", "4085"),
            1,
            "cannot receive 4085 bytes",
        ),
    ],
)
def test_an_error_is_its_text(tool: Tool, words: tuple[str, ...], status: int, what: str) -> None:
    assert tool(*words) == status
    assert what in tool.err
    assert "mend:" in tool.err
    assert "Traceback" not in tool.err
    assert tool.out == ""


def test_rows_before_an_error_are_told(tool: Tool, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = iter([pktgen.loop])

    def once(*arguments: Any) -> Row:
        try:
            return next(runs)(*arguments)
        except StopIteration:
            raise pyvirtnet.Error("sim:test is gone", "it was unplugged", "plug it in") from None

    monkeypatch.setattr(pktgen, "loop", once)
    assert tool("loop", HERE, THERE, "--size", "60,1514", "--count", "5", "--json") == 1
    assert (tool.row["size"], tool.row["received"]) == (60, 5)
    assert not tool.figures["ok"]
    assert tool.figures["error"] == "sim:test is gone: it was unplugged"
    assert "plug it in" in tool.err


# ---- the parts ---------------------------------------------------------------------------------


def test_a_row_is_rewritten_only_when_its_send_is_done() -> None:
    device = NetDevice(queue_sizes=(64, 8))
    with Port(SimTransport(device)) as port:
        sender = Sender(port, Mix.of(60), Stream(HEADER), 4, 8)
        numbers = []
        for _ in range(100):
            while sender.send(3):
                pass
            assert sender.send(4) == 0  # all rows are the device's
            frames = device.take()
            assert 7 < len(frames) <= 8
            numbers += [int.from_bytes(frame[22:27], "big") for frame in frames]
            assert sender.send(4) == 0  # taken, and still not done
            device.complete(order="shuffled")
        assert numbers == list(range(len(numbers)))
        assert sender.sent == sender.stream.next == len(numbers)


def test_a_late_completion_keeps_its_rows() -> None:
    device = NetDevice(queue_sizes=(64, 8))
    with Port(SimTransport(device)) as port:
        sender = Sender(port, Mix.of(60), Stream(HEADER), 2, 4)
        assert [sender.send(2) for _ in range(3)] == [2, 2, 2]
        assert len(device.take()) == 6
        device.complete(5, order=[1, 2, 3, 4, 5])  # the first frame's buffer stays
        assert sender.send(2) == 0
        assert in_flight(sender._ring[0]) == 1
        device.complete()
        assert sender.send(2) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "lines"), [(Terminal(), 2), (io.StringIO(), 0)])
def test_live_line_once_a_second_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, lines: int
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(sys, "stderr", stream)
    live = Live()
    for tenth in range(25):
        clock[0] = 100 + tenth / 10
        if live.due():
            live.show(f"at {tenth}")
    assert stream.getvalue().count("at ") == lines
    clock[0] = 111.0  # seconds that are worth a line in a file
    assert live.due()


def test_a_table_on_a_terminal_with_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    live = Live()
    live.show("5 sent", {"sent": "5"})
    live.clear()
    assert "sent" in stream.getvalue()
    monkeypatch.setitem(sys.modules, "rich.console", None)
    live.show("6 sent", {"sent": "6"})
    assert "\r\x1b[K6 sent" in stream.getvalue()


def test_a_row_knows_whether_all_is_well() -> None:
    assert Row(sent=5).whole
    assert Row(sent=5, received=5, lost=0, corrupt=0, duplicated=0, reordered=2).whole
    assert not Row(sent=0).whole
    assert not Row(sent=5, received=0).whole
    for damage in ("lost", "corrupt", "duplicated", "stalled"):
        row = Row(sent=5, received=5)
        assert row.whole
        setattr(row, damage, 1)
        assert not row.whole, damage
