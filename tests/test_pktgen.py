"""tools/pktgen on simulated devices: figures, bad cables, pace, bounds, Ctrl-C, wrong options."""

import io
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet._stamp import ETHERTYPE, Checker, in_flight, stamp
from pyvirtnet.cli import pktgen
from pyvirtnet.cli._pktgen_report import Report, Row
from pyvirtnet.cli._pktgen_traffic import Sender, Stream
from pyvirtnet.testing import Loopback, NetDevice
from pyvirtnet.transport.sim import SimTransport

SIZES = [60, 128, 129, 1514, 4084, 4085, 9014, 65535]
BUFFERS = [1, 1, 1, 1, 1, 2, 3, 17]
HEADER = bytes(range(2, 14)) + ETHERTYPE.to_bytes(2, "big")
HERE, THERE = "sim:cable/pktgen/0", "sim:cable/pktgen/1?mac=02:00:00:00:00:07"

Mangle = Callable[[list[bytes]], list[bytes]]


class Bad(Loopback):
    """A loopback whose frames go through `mangle`."""

    def __init__(self, mangle: Mangle, **options: Any) -> None:
        super().__init__(**options)
        self.mangle, self.waiting = mangle, 0

    def take(self, n: int | None = None, *, pair: int = 0) -> list[bytes]:
        return self.mangle(super().take(n, pair=pair))

    def poll(self) -> int:
        moved = super().poll()
        self.waiting = max(self.waiting, len(self.wires[0].backlog))
        return moved


@pytest.fixture
def plug(monkeypatch: pytest.MonkeyPatch) -> Callable[[NetDevice], str]:
    """Makes a device known to pktgen, which gives it up soon; the name to call it by."""
    monkeypatch.setattr(pktgen, "PATIENCE", 0.2)

    def known(device: NetDevice) -> str:
        port = Port(SimTransport(device, "sim:test"))
        monkeypatch.setattr(pyvirtnet, "open", lambda _: port)
        return "sim:test"

    return known


class Tool:
    """Calls the tool; what it wrote."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, *words: str) -> int:
        self._capsys.readouterr()
        try:
            return pktgen.main(words)
        finally:
            self.out, self.err = self._capsys.readouterr()

    @property
    def figures(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()  # and nothing else
        figures: dict[str, Any] = json.loads(line)
        return figures

    @property
    def row(self) -> dict[str, Any]:
        (row,) = self.figures["rows"]
        assert isinstance(row, dict)
        return row


@pytest.fixture
def tool(capsys: pytest.CaptureFixture[str]) -> Tool:
    return Tool(capsys)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    yield
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


# ---- loop --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tx", "rx"), [(HERE, THERE), ("sim:loopback", "sim:loopback")])
def test_every_size_arrives(tool: Tool, tx: str, rx: str) -> None:
    sizes = ",".join(map(str, SIZES))
    assert tool("loop", tx, rx, "--size", sizes, "--count", "300", "--json") == 0
    assert tool.figures["mode"] == "loop"
    assert (tool.figures["tx"], tool.figures["rx"]) == (tx, rx)
    assert tool.figures["ok"]
    for size, buffers, row in zip(SIZES, BUFFERS, tool.figures["rows"], strict=True):
        assert row["size"] == size
        assert row["sent"] == row["received"] == 300
        for none in ("lost", "corrupt", "duplicated", "reordered", "foreign"):
            assert row[none] == 0, none
        assert row["buffers_per_frame"] == buffers
        assert row["tx"]["tx_frames"] == row["rx"]["rx_frames"] == 300
        assert row["tx"]["tx_bytes"] == row["rx"]["rx_bytes"] == 300 * size
        assert row["rx"]["rx_buffers"] == 300 * buffers
        assert row["pps"] == pytest.approx(300 / row["seconds"], rel=0.01)
        assert row["gbps"] == pytest.approx(row["pps"] * size * 8 / 1e9, rel=0.01, abs=1e-6)


def test_the_table_is_on_stdout_or_beside_the_json(tool: Tool) -> None:
    words = ("loop", "sim:loopback", "sim:loopback", "--count", "50", "--size", "60,9014")
    assert tool(*words) == 0
    heading, first, second = (line.split() for line in tool.out.splitlines())
    assert heading[:5] == ["size", "sent", "received", "lost", "damaged"]
    assert heading[5:] == ["pps", "Gb/s", "buffers/frame"]
    assert (first[:5], first[-1]) == (["60", "50", "50", "0", "0"], "1.00")
    assert (second[:5], second[-1]) == (["9014", "50", "50", "0", "0"], "3.00")
    assert tool.err == ""
    assert tool(*words, "--json") == 0
    assert [line.split()[0] for line in tool.err.splitlines()] == ["size", "60", "9014"]
    assert len(tool.figures["rows"]) == 2


def test_time_ends_it(tool: Tool) -> None:
    assert tool("loop", HERE, THERE, "--time", "0.3", "--json") == 0
    assert 0.2 < tool.row["seconds"] < 1.0
    assert tool.row["sent"] > 64


@pytest.mark.parametrize("entries", [2, 4, 32, 256])
@pytest.mark.parametrize("burst", [1, 7, 1024])
def test_any_ring_and_burst(tool: Tool, entries: int, burst: int) -> None:
    name = f"sim:loopback?queue_size={entries}"
    words = ["loop", name, name, "--burst", str(burst), "--count", "400", "--json"]
    assert tool(*words, "--size", "60" if entries < 17 else "60,65535") == 0
    assert all(row["received"] == 400 for row in tool.figures["rows"])


def test_it_never_sends_more_than_the_receiver_has_room_for(
    tool: Tool, plug: Callable[[NetDevice], str]
) -> None:
    device = Bad(lambda frames: frames)
    name = plug(device)
    assert tool("loop", name, name, "--size", "60,4085,65535", "--count", "600", "--json") == 0
    assert device.waiting == 0


class Every:
    """Does something to each n-th frame of all."""

    def __init__(self, n: int, change: Callable[[bytes], list[bytes]]) -> None:
        self.n, self.change, self.seen = n, change, 0

    def __call__(self, frames: list[bytes]) -> list[bytes]:
        result = []
        for frame in frames:
            self.seen += 1
            result += [frame] if self.seen % self.n else self.change(frame)
        return result


def flip(frame: bytes) -> list[bytes]:
    return [frame[:57] + bytes([frame[57] ^ 4]) + frame[58:]]


def swap(frames: list[bytes]) -> list[bytes]:
    return [*frames[:-2], *reversed(frames[-2:])]


@pytest.mark.parametrize("size", [60, 9014])
@pytest.mark.parametrize(
    "cable",
    [
        (Every(100, lambda frame: []), {"lost": 10, "received": 990}, 1),
        (Every(100, flip), {"corrupt": 10, "received": 990}, 1),
        (Every(100, lambda frame: [frame, frame]), {"duplicated": 10, "received": 1010}, 1),
        (Every(100, lambda frame: [frame[:-1]]), {"corrupt": 10, "received": 990}, 1),
        (Every(100, lambda frame: [frame, b"\xff" * 60]), {"foreign": 10, "received": 1000}, 0),
        (Every(1000, lambda frame: []), {"lost": 1, "received": 999}, 1),  # the very last one
    ],
    ids=["lossy", "noisy", "echoing", "cutting", "chatty", "last"],
)
def test_what_a_bad_cable_does_is_counted(
    tool: Tool,
    plug: Callable[[NetDevice], str],
    size: int,
    cable: tuple[Every, dict[str, int], int],
) -> None:
    mangle, counts, status = cable
    mangle.seen = 0
    name = plug(Bad(mangle))
    words = ("loop", name, name, "--count", "1000", "--size", str(size), "--json")
    assert tool(*words) == status
    expected = {"sent": 1000, "lost": 0, "corrupt": 0, "duplicated": 0, "reordered": 0}
    found = {key: tool.row[key] for key in (*expected, "received", "foreign")}
    assert found == {**expected, "foreign": 0, **counts}
    assert tool.figures["ok"] == (status == 0)


def test_reordering_is_told_and_no_failure(tool: Tool, plug: Callable[[NetDevice], str]) -> None:
    name = plug(Bad(swap))
    assert tool("loop", name, name, "--count", "640") == 0
    assert "of these frames: 10 reordered" in tool.out


def test_a_dead_cable_is_given_up(tool: Tool, plug: Callable[[NetDevice], str]) -> None:
    name = plug(Bad(lambda frames: []))
    assert tool("loop", name, name, "--time", "60", "--json") == 1
    assert tool.row["received"] == 0
    assert tool.row["lost"] == tool.row["sent"] > 0
    assert "nothing more arrives; gave up after 0.2 s" in tool.err


# ---- tx and rx ---------------------------------------------------------------------------------


def test_tx_sends_all_before_it_ends(tool: Tool) -> None:
    with pyvirtnet.open(THERE) as peer:
        words = ("--count", "200", "--size", "60,1514", "--dst", "02:00:00:00:00:aa", "--json")
        assert tool("tx", HERE, *words) == 0
        checker, frames = Checker(), []
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


def sent(port: Port, numbers: list[int], size: int = 200) -> None:
    """Test frames of these numbers are on their way to `port`, a loopback."""
    burst = port.alloc_burst(len(numbers), size)
    for i, number in enumerate(numbers):
        stamp(burst[i : i + 1], number)
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


def test_rx_of_nothing_fails(tool: Tool) -> None:
    assert tool("rx", "sim:loopback", "--timeout", "0.1") == 1
    assert tool("rx", "sim:loopback", "--time", "0.1", "--json") == 1
    assert tool.row["received"] == 0


# ---- the end by signal -------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_the_figures_so_far(
    tool: Tool, plug: Callable[[NetDevice], str], number: int, status: int
) -> None:
    def interrupt(frame: bytes) -> list[bytes]:
        signal.raise_signal(number)
        return [frame]

    once = Every(700, interrupt)
    name = plug(Bad(lambda frames: once(frames) if once.seen < 700 else frames))
    assert tool("loop", name, name, "--time", "60", "--size", "60,128", "--json") == status
    assert tool.figures["interrupted"]
    assert not tool.figures["ok"]
    assert tool.row["size"] == 60  # the second size is not begun
    assert tool.row["sent"] == tool.row["received"] >= 700
    assert tool.row["lost"] == 0


def test_a_second_ctrl_c_ends_it_at_once(tool: Tool, plug: Callable[[NetDevice], str]) -> None:
    def interrupt(frames: list[bytes]) -> list[bytes]:
        for _ in frames:
            signal.raise_signal(signal.SIGINT)
        return frames

    name = plug(Bad(interrupt))
    assert tool("loop", name, name, "--time", "60", "--json") == 130
    assert tool.out == ""


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
    assert line.startswith("tools/pktgen")
    assert tool.out == ""


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("tx", "sim:nowhere"), "no simulator 'sim:nowhere'"),
        (("tx", "sim:loopback?mtu=1500", "--size", "60,9014"), "cannot send 9014 bytes"),
        (
            ("loop", HERE, "sim:cable/pktgen/1?mrg_rxbuf=off", "--size", "4085"),
            "cannot receive 4085 bytes",
        ),
    ],
)
def test_an_error_is_its_text(tool: Tool, words: tuple[str, ...], what: str) -> None:
    assert tool(*words) == 1
    assert what in tool.err
    assert "mend:" in tool.err
    assert "Traceback" not in tool.err
    assert tool.out == ""


# ---- the parts ---------------------------------------------------------------------------------


def test_a_row_is_rewritten_only_when_its_send_is_done() -> None:
    device = NetDevice(queue_sizes=(64, 8))
    with Port(SimTransport(device)) as port:
        sender = Sender(port, 60, Stream(HEADER, 0), 4, 8)
        numbers = []
        for _ in range(100):
            assert sender.send(3) + sender.send(4) == 7
            while sender.send(4):
                pass
            assert sender.send(4) == 0  # all rows are the device's
            frames = device.take()
            assert 7 < len(frames) <= 8
            numbers += [int.from_bytes(frame[16:24], "little") for frame in frames]
            assert sender.send(4) == 0  # taken, and still not done
            device.complete(order="shuffled")
        assert numbers == list(range(len(numbers)))
        assert sender.sent == sender.stream.next == len(numbers)


def test_a_late_completion_keeps_its_rows() -> None:
    device = NetDevice(queue_sizes=(64, 8))
    with Port(SimTransport(device)) as port:
        sender = Sender(port, 60, Stream(HEADER, 0), 2, 4)
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


def test_live_line_once_a_second_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for stream, lines in ((Terminal(), 2), (io.StringIO(), 0)):
        monkeypatch.setattr(sys, "stderr", stream)
        report = Report(as_json=True, about={})
        for tenth in range(25):
            now = clock[0] + tenth / 10
            if report.due(now):
                report.live(now, f"at {tenth}")
        assert stream.getvalue().count("at ") == lines


def test_a_row_knows_whether_all_is_well() -> None:
    assert Row(sent=5).whole
    assert Row(sent=5, received=5, lost=0, corrupt=0, duplicated=0, reordered=2).whole
    assert not Row(sent=0).whole
    assert not Row(sent=5, received=0).whole
    for damage in ("lost", "corrupt", "duplicated"):
        row = Row(sent=5, received=5)
        assert row.whole
        setattr(row, damage, 1)
        assert not row.whole, damage
