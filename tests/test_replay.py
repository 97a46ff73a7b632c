"""replay on simulated cables: pace, passes, filters, frames that do not fit, its end."""

import gzip
import itertools
import json
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from scapy.packet import Raw
from scapy.utils import PcapWriter

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import _replay_frames, _replay_loop, replay
from pyvirtnet.cli._replay_loop import Pace
from pyvirtnet.pcap import Reader
from pyvirtnet.testing import NetDevice
from pyvirtnet.transport.sim import SimTransport

NEAR, FAR = "sim:cable/replay/0", "sim:cable/replay/1"
SIZES = [60, 128, 129, 1514, 9014]
FRAMES = [bytes([i]) * 12 + b"\x88\xb5" + bytes(SIZES[i % 5] - 14) for i in range(100)]
ARP = b"\xff" * 12 + b"\x08\x06" + bytes(46)


def write(path: Any, frames: list[bytes], gap: float = 0.0, keep: int | None = None) -> str:
    writer = PcapWriter(str(path), nano=True, linktype=1)
    for i, frame in enumerate(frames):
        packet = Raw(frame[:keep])
        packet.wirelen = len(frame)
        packet.time = 1_600_000_000 + i * gap
        writer.write(packet)
    writer.close()
    return str(path)


@pytest.fixture
def capture(tmp_path):
    return write(tmp_path / "file", FRAMES)


class Collector:
    """Receives at the far end until it has so many frames; when each of them came."""

    def __init__(self, count: int) -> None:
        self.frames: list[bytes] = []
        self.times: list[float] = []
        self._count, self._thread = count, threading.Thread(target=self._collect)

    def _collect(self) -> None:
        end = time.monotonic() + 60
        while len(self.frames) < self._count and time.monotonic() < end:
            came = [bytes(frame) for frame in self._port.recv_burst(256, timeout=0.1)]
            self.frames += came
            self.times += [time.monotonic()] * len(came)

    def __enter__(self) -> "Collector":
        self._port = pyvirtnet.open(FAR)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(70)
        self._port.close()


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    capsys.readouterr()
    assert replay.main([*words, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    figures: dict[str, Any] = json.loads(line)
    return figures


@pytest.mark.parametrize("room", [1 << 20, 100_000, 0], ids=["laid out", "half", "streamed"])
@pytest.mark.parametrize("burst", [1, 7, 64, 1024])
def test_every_frame_is_sent_in_every_pass(capsys, capture, monkeypatch, room, burst):
    monkeypatch.setattr(_replay_frames, "ROOM", room)
    with Collector(300) as far:
        words = ("--fast", "--loop", "3", "--burst", str(burst))
        figures = run(capsys, capture, NEAR, *words)
    assert far.frames == FRAMES * 3
    assert (figures["frames"], figures["passes"]) == (300, 3)
    assert figures["octets"] == 3 * sum(map(len, FRAMES))
    assert figures["asked"] == {"fast": True}
    assert not figures["truncated"] | figures["interrupted"] | figures["stalled"]
    assert figures["unfit"] == figures["cut"] == figures["refused"] == 0


def test_count_ends_it_and_loop_0_goes_on_for_ever(capsys, capture):
    with Collector(250) as far:
        figures = run(capsys, capture, NEAR, "--fast", "--loop", "0", "--count", "250")
    assert far.frames == (FRAMES * 3)[:250]
    assert (figures["frames"], figures["passes"]) == (250, 2)


@pytest.mark.parametrize("burst", [64, 50])
@pytest.mark.parametrize(("frames", "passes"), [(99, 0), (100, 1), (101, 1), (200, 2)])
def test_a_pass_whose_last_frame_is_the_last_of_all_counts(capsys, capture, burst, frames, passes):
    words = ("--fast", "--loop", "0", "--count", str(frames), "--burst", str(burst))
    with Collector(frames) as far:
        figures = run(capsys, capture, NEAR, *words)
    assert far.frames == (FRAMES * 3)[:frames]
    assert (figures["frames"], figures["passes"]) == (frames, passes)


def test_what_comes_after_the_last_frame_of_all_is_not_read(capsys, capture, monkeypatch):
    """It may come by a pipe, and be long in coming."""
    monkeypatch.setattr(_replay_frames, "ROOM", 1)
    packets = Reader.__iter__

    def first(reader: Reader) -> Any:
        yield from itertools.islice(packets(reader), 50)
        raise AssertionError("read on")

    monkeypatch.setattr(Reader, "__iter__", first)
    with Collector(50):
        figures = run(capsys, capture, NEAR, "--fast", "--count", "50", "--burst", "10")
    assert (figures["frames"], figures["passes"]) == (50, 0)


def test_time_ends_it(capsys, capture):
    with Collector(1):
        figures = run(capsys, capture, NEAR, "--rate", "10", "--loop", "0", "--time", "2")
    assert 1 <= figures["frames"] <= 21


def test_the_recorded_pace_and_its_multiple(capsys, tmp_path):
    """Frames may come late on a loaded machine, but never early."""
    path = write(tmp_path / "file", FRAMES[:5], gap=0.1)
    for speed, gap in ((), 0.1), (("--speed", "4"), 0.025):
        with Collector(10) as far:
            begin = time.monotonic()
            figures = run(capsys, path, NEAR, "--loop", "2", *speed)
        assert figures["seconds"] >= 8 * gap
        assert figures["asked"] == {"speed": float(speed[1]) if speed else 1.0}
        assert all(far.times[i] - begin >= i * gap for i in range(5))
        assert far.frames == FRAMES[:5] * 2
        assert figures["latest_ms"] >= 0


def test_rates_are_kept(capsys, capture):
    with Collector(100):
        figures = run(capsys, capture, NEAR, "--rate", "0.5k")
    assert figures["asked"] == {"rate": 500.0}
    assert figures["seconds"] >= 99 / 500
    assert figures["pps"] <= 500
    bits = 8 * sum(map(len, FRAMES))
    with Collector(100):
        figures = run(capsys, capture, NEAR, "--bits", "10M")
    assert figures["asked"] == {"bits": 10e6}
    assert figures["seconds"] >= (bits - 8 * len(FRAMES[-1])) / 10e6
    assert figures["bps"] <= 10e6


@pytest.mark.parametrize("frames", ["1", "2"])
@pytest.mark.parametrize(("option", "figure"), [("--rate", "pps"), ("--bits", "bps")])
def test_the_last_frame_has_its_time_as_well(capsys, capture, frames, option, figure):
    """Two at 20 a second are 50 ms apart, and not 40 a second."""
    asked = {"pps": 20, "bps": 20_000}[figure]
    with Collector(int(frames)):
        figures = run(capsys, capture, NEAR, option, str(asked), "--count", frames)
    assert figures["frames"] == int(frames)
    assert 0 < figures[figure] <= asked


@pytest.mark.parametrize(
    ("pace", "expected"),
    [
        (Pace(), [None, None]),
        (Pace(rate=10), [[0, 0.1, 0.2], [0.3, 0.4, 0.5]]),
        (Pace(bits=800), [[0, 1, 2.2], [3.6, 4.6, 5.8]]),
        (Pace(speed=2), [[0, 0.5, 0.5], [0.5, 1, 1]]),
    ],
    ids=["fast", "rate", "bits", "speed"],
)
def test_when_frames_are_due(pace, expected):
    """The third was captured before the second: it follows it at once."""
    with pyvirtnet.open("sim:loopback") as port:
        burst = port.alloc_burst(3, 140)
        burst.set_lengths([100, 120, 140])
        part = _replay_frames.Part(burst, [5 * 10**9, 6 * 10**9, 5 * 10**9 + 5])
        for times in expected:
            pace.begin_pass()
            found = pace.times(part)
            assert found is None if times is None else np.allclose(found, times)


def test_a_filter_picks_frames(capsys, tmp_path):
    mixed = [frame for one in FRAMES for frame in (one, ARP)]
    with Collector(100) as far:
        figures = run(capsys, write(tmp_path / "file", mixed), NEAR, "arp", "--fast")
    assert far.frames == [ARP] * 100
    assert (figures["frames"], figures["refused"]) == (100, 100)


def test_what_the_filter_left_out_is_told(capsys, tmp_path):
    path = write(tmp_path / "file", [FRAMES[0], ARP])
    assert replay.main([path, "sim:loopback", "--fast", "arp"]) == 0
    assert "\n1 frames left out by the filter\n" in capsys.readouterr().out


def test_frames_that_do_not_fit_and_cut_ones_are_told(capsys, tmp_path):
    path = write(tmp_path / "file", [b"short", *FRAMES[:5]])
    with Collector(4) as far:
        assert replay.main([path, f"{NEAR}?mtu=1500"]) == 0
    out = capsys.readouterr().out
    assert far.frames == FRAMES[:4]
    assert "2 frames not sent: too short or too long for the port" in out
    path = write(tmp_path / "file", FRAMES[:5], keep=100)
    with Collector(5) as far:
        assert replay.main([path, NEAR]) == 0
    assert far.frames == [frame[:100] for frame in FRAMES[:5]]
    assert "4 frames sent without the bytes that were not captured" in capsys.readouterr().out


def test_a_file_that_ends_in_the_middle_is_sent_so_far(capsys, capture):
    with open(capture, "rb+") as file:
        file.truncate(file.seek(0, 2) - 10)
    with Collector(99) as far:
        figures = run(capsys, capture, NEAR, "--fast")
    assert far.frames == FRAMES[:-1]
    assert figures["truncated"]


def test_frames_in_front_of_damage_to_the_compression_are_sent(capsys, capture):
    with open(capture, "rb") as file:
        data = gzip.compress(file.read())
    with open(capture, "wb") as file:
        file.write(data[:-8] + bytes(8))  # its check sequence
    assert replay.main([capture, "sim:loopback", "--fast"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("100 frames sent")
    assert "the file ends in the middle of a packet, or is damaged" in out
    with open(capture, "wb") as file:
        file.write(data[:20])
    assert replay.main([capture, "sim:loopback", "--fast"]) == 1
    assert "what was compressed is cut short or damaged" in capsys.readouterr().err


def test_the_standard_input(tmp_path, capture):
    with open(capture, "rb") as file:
        data = gzip.compress(file.read())
    command = [sys.executable, "-m", "pyvirtnet", "replay", "-", "sim:loopback"]
    words = ["--count", "60", "--fast", "--json"]
    done = subprocess.run([*command, *words], input=data, capture_output=True, check=True, cwd="/")
    assert json.loads(done.stdout)["frames"] == 60


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_its_figures(capsys, tmp_path, number, status):
    path = write(tmp_path / "file", FRAMES[:2], gap=3600.0)
    with Collector(1) as far:

        def stop() -> None:
            far._thread.join(60)
            signal.pthread_kill(threading.main_thread().ident, number)

        stopper = threading.Thread(target=stop)
        stopper.start()
        assert replay.main([path, NEAR, "--json"]) == status
        stopper.join()
    figures = json.loads(capsys.readouterr().out)
    assert (figures["frames"], figures["interrupted"]) == (1, True)


def test_a_device_that_takes_nothing_more_is_given_up(capsys, capture, monkeypatch):
    monkeypatch.setattr(_replay_loop, "PATIENCE", 0.2)
    stuck = Port(SimTransport(NetDevice(queue_sizes=(16, 16)), "sim:stuck"))
    monkeypatch.setattr(pyvirtnet, "open", lambda _: stuck)
    assert replay.main([capture, "sim:stuck", "--fast"]) == 1
    out = capsys.readouterr().out
    assert "the device takes no more frames; gave up" in out
    assert "its device is the limit" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "1M", "--fast"], "not allowed with"),
        (["--rate", "fast"], "'fast' is not a number such as"),
        (["--bits", "-1"], "--bits"),
        (["--speed", "0"], "'0' is not a number such as"),
        (["udp", "prot", "53"], "is no filter: "),
    ],
)
def test_a_wrong_option_is_one_line(capsys, capture, words, said):
    with pytest.raises(SystemExit) as end:
        replay.main([capture, NEAR, *words])
    out, err = capsys.readouterr()
    assert (end.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x7fELF and so on", "begins as neither pcap nor pcapng does"),
        (None, "No such file or directory"),
    ],
)
def test_what_cannot_be_read_is_one_error(capsys, tmp_path, data, said):
    if data is not None:
        (tmp_path / "file").write_bytes(data)
    assert replay.main([str(tmp_path / "file"), NEAR]) == 1
    assert said in capsys.readouterr().err


def test_nothing_to_send_is_one_error(capsys, capture):
    assert replay.main([capture, NEAR, "arp"]) == 1
    err = capsys.readouterr().err
    assert "can be sent: of its frames 100 are refused by the filter, 0 unfit" in err
    with open(capture, "r+b") as file:
        file.truncate(24)
    assert replay.main([str(capture), "sim:loopback"]) == 1
    assert "can be sent: it has no frames" in capsys.readouterr().err
