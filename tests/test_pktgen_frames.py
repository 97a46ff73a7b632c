"""pktgen's frames, rates and pace: layers of headers, fields that vary, sizes and mixes."""

import argparse
import ipaddress
import json
import struct
import time
from collections import Counter
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
from bad_cable import Tool
from scapy.layers.inet import UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

import pyvirtnet
from pyvirtnet import Port, checksums_ok
from pyvirtnet._meter import Meter
from pyvirtnet.cli._command import WrongUsage
from pyvirtnet.cli._pktgen_frames import Template, build
from pyvirtnet.cli._pktgen_options import Mix, rate, sizes, vary
from pyvirtnet.cli._pktgen_pace import FREE, Pace
from pyvirtnet.cli._pktgen_prebuilt import Plain, recorded
from pyvirtnet.cli._pktgen_report import limit_of
from pyvirtnet.cli._pktgen_sender import Player, Sender, Stream
from pyvirtnet.dma import memory
from pyvirtnet.errors import Error
from pyvirtnet.pcap import Packet, Writer

pytest_plugins = ["pktgen_fixtures"]

HERE, THERE = "sim:cable/frames/0", "sim:cable/frames/1"
DST, SRC = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
LAYERS = [
    "",
    "vlan(id=5,prio=3)",
    "qinq(id=7)/vlan(id=5)",
    "ipv4",
    "ipv4(dst=198.51.100.1,ttl=3)/udp(src=7,dst=9)",
    "ipv6/udp",
    "vlan/ipv4/tcp(dst=80)",
    "ipv6(src=fe80::1)/tcp",
    "ipv4/icmp(id=77)",
    "ipv6/icmp",
]


@pytest.fixture
def port() -> Iterator[Port]:
    with pyvirtnet.open("sim:loopback?queue_size=256") as made:
        yield made


def frames(port: Port, layers: str, size: int = 128, n: int = 64, *varied: str) -> list[bytes]:
    """The first frames of a stream, as they arrive."""
    stream = Stream(build(layers, DST, SRC), varies=[vary(text) for text in varied])
    sender, meter, found = Sender(port, Mix.of(size), stream, 64, 128), Meter(0), []
    while len(found) < n:
        sender.send(min(64, n - len(found)))
        burst = port.recv_burst(64)
        assert checksums_ok(burst).all()
        assert meter.check(burst) == len(burst)
        found += [bytes(frame) for frame in burst]
    assert meter.lost(n) == meter.reordered == 0
    return found


# ---- headers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("size", [128, 1513])
def test_every_kind_of_frame_is_whole_and_recognised(port: Port, layers: str, size: int) -> None:
    for frame in frames(port, layers, size):
        assert len(frame) == size
        assert frame[:12] == DST + SRC


def test_what_a_header_says(port: Port) -> None:
    (frame,) = frames(port, "vlan(id=5,prio=3)/ipv4(src=10.0.0.1,dst=10.0.0.2,tos=8)/udp(src=7)",
                      100, 1)  # fmt: skip
    assert frame[12:18].hex() == "8100" + "6005" + "0800"
    version, tos, length = struct.unpack_from(">BBH", frame, 18)
    assert (version, tos, length) == (0x45, 8, 82)
    assert str(ipaddress.IPv4Address(frame[30:34])) == "10.0.0.1"
    assert struct.unpack_from(">HHH", frame, 38) == (7, 9, 62)


@pytest.mark.parametrize(
    "layers",
    ["ipv5", "udp", "ipv4/dns", "ipv4(src=1.2.3)", "ipv4(to=1)", "vlan(id=x)", "ipv4/udp/udp",
     "ipv4/udp(src=70000)", "ipv4 udp"],
)  # fmt: skip
def test_no_frame_is_an_error_that_tells_the_grammar(layers: str) -> None:
    with pytest.raises(Error) as caught:
        build(layers, DST, SRC)
    assert layers in caught.value.what
    assert "ipv4(src=" in caught.value.mend


def test_scapy_reads_what_was_built(port: Port) -> None:
    frame = Ether(frames(port, "vlan(id=9)/ipv6/tcp(src=1,dst=2)", 200, 1)[0])
    assert (frame.vlan, frame.sport, frame.dport) == (9, 1, 2)
    assert frame[IPv6].src == "2001:db8::1"


def test_what_scapy_built_is_sent(tool: Tool) -> None:
    expression = "Ether(dst='02:00:00:00:00:09')/Dot1Q(vlan=9)/IP(dst='10.0.0.9')/UDP(dport=5)"
    words = ("--scapy", expression, "--count", "50", "--json")
    assert tool("loop", HERE, THERE, *words) == 0
    assert tool.row["received"] == 50
    assert tool("tx", HERE, "--dry-run", "1", "--scapy", expression) == 0
    dumped = "".join(line.split("  ")[1] for line in tool.out.splitlines()[1:])
    frame = Ether(bytes.fromhex(dumped))
    assert (frame.dst, frame.vlan, frame[UDP].dport) == ("02:00:00:00:00:09", 9, 5)
    assert tool("tx", HERE, "--scapy", "Ether(", "--count", "1") == 2
    assert "SyntaxError" in tool.err


@pytest.mark.parametrize("expression", ["IP()/UDP()", "60", "[Ether()]"])
def test_what_scapy_made_must_be_a_frame(tool: Tool, expression: str) -> None:
    """An IP packet's first bytes went out as addresses."""
    assert tool("tx", HERE, "--scapy", expression, "--count", "1") == 2
    assert "a frame begins with Ether" in tool.err


@pytest.mark.parametrize(
    ("layers", "culprit"),
    [("ARP()", "ARP"), ("IPv6()/IPv6ExtHdrHopByHop()/UDP()", "UDP"), ("IP()/GRE()/IP()", "IP"),
     ("IP()/UDP()/DNS()", "DNS"), ("IP(proto=17)/b'abc'", "IP")],
)  # fmt: skip
def test_headers_that_no_probe_can_follow_are_refused(
    tool: Tool, layers: str, culprit: str
) -> None:
    """They were left out of the frame, which still announced them."""
    words = ("--dry-run", "1", "--scapy")
    assert tool("tx", HERE, *words, f"Ether(dst='02:00:00:00:00:09')/{layers}") == 2
    assert f"{culprit} is none of the headers" in tool.err
    for fine in ("Dot1Q()/IP(options=[IPOption_NOP()])/TCP(options=[('MSS', 9)])", "IP()/ICMP()",
                 "IPv6()/UDP()/b'abc'", "IP()", "IPv6()/ICMPv6EchoRequest(data=b'abc')",
                 "bytes(IP()/UDP())"):  # fmt: skip
        assert tool("tx", HERE, *words, f"Ether(dst='02:00:00:00:00:09')/{fine}") == 0, fine


def test_a_rate_counts_the_last_frames_interval(
    tool: Tool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five frames at 50 a second took 80 ms and were told as 62 a second."""
    commands = (("tx", "sim:loopback"), ("loop", HERE, THERE))
    asked = ("--count", "5", "--rate", "50", "--json")
    for command in commands:
        start = time.monotonic()
        assert tool(*command, *asked) == 0
        assert time.monotonic() - start > 0.08
        assert tool.row["seconds"] >= 0.1
        assert tool.row["sent_pps"] <= 50.0
        assert tool.row["pps"] <= 50.0
    monkeypatch.setattr(Pace, "due", lambda self, now, sent: FREE)
    for command in commands:  # a rate that was not kept is told
        assert tool(*command, *asked) == 0
        assert tool.row["sent_pps"] > 75.0


def test_a_file_is_not_read_beyond_what_can_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    endless = repeat(Packet(0, bytes(60), 60))
    monkeypatch.setattr("pyvirtnet.cli._pktgen_prebuilt.Reader", lambda path: endless)
    monkeypatch.setattr("pyvirtnet.cli._pktgen_sender.FRAMES_MEMORY", 1 << 20)
    with pytest.raises(Error, match="they take more than 1 MiB"):
        recorded("endless.pcap", 1514)


# ---- fields that vary --------------------------------------------------------------------------


def test_ranges_lists_and_random_values_take_turns(port: Port) -> None:
    macs = "src-mac=02:00:00:00:01:00-02:00:00:00:01:02"
    varied = ("src-ip=10.0.0.1-10.0.0.3", "dst-port=53,80", "vlan=4,5,6,7", macs)
    found = frames(port, "vlan(prio=7)/ipv4/udp", 100, 24, *varied)
    assert [frame[33] for frame in found[:6]] == [1, 2, 3, 1, 2, 3]
    assert [int.from_bytes(frame[40:42], "big") for frame in found[:4]] == [53, 80, 53, 80]
    assert [frame[14:16].hex() for frame in found[:5]] == ["e004", "e005", "e006", "e007", "e004"]
    assert [frame[11] for frame in found[:4]] == [0, 1, 2, 0]
    assert len({frame[:42] for frame in found[:12]}) == 12  # the least common multiple
    assert [frame[:26] for frame in found[:12]] == [frame[:26] for frame in found[12:]]


def test_random_values_lie_in_their_range_and_are_the_same_each_time(port: Port) -> None:
    spec = "dst-ip=2001:db8::10-2001:db8::ffff/random"
    first, second = (frames(port, "ipv6/udp", 100, 200, spec) for _ in range(2))
    values = [int.from_bytes(frame[52:54], "big") for frame in first]
    assert min(values) >= 0x10
    assert len(set(values)) > 150
    assert [frame[38:54] for frame in first] == [frame[38:54] for frame in second]


@pytest.mark.parametrize(
    ("layers", "spec"),
    [
        ("", "vlan=1,2"),
        ("ipv4", "src-port=1-2"),
        ("ipv4/udp", "src-ip=::1,::2"),
        ("", "dst-ip=10.0.0.1"),
    ],
)
def test_a_field_that_is_not_there_cannot_vary(layers: str, spec: str) -> None:
    with pytest.raises(Error, match="cannot vary"):
        Template(build(layers, DST, SRC)).tables([128], [vary(spec)])


@pytest.mark.parametrize(
    "text",
    ["color=1", "vlan", "vlan=", "vlan=4096", "src-port=9-3", "src-port=1,2/random", "vlan=1-2/up",
     "src-ip=10.0.0.1-::2", "src-ip=10.0.0.0-10.255.0.0", "src-mac=02:00"],
)  # fmt: skip
def test_what_does_not_vary_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        vary(text)


# ---- sizes, rates, pace ------------------------------------------------------------------------


def test_sizes_ranges_and_mixes() -> None:
    assert [mix.label for mix in sizes("60,100-300:100,rfc2544")][:5] == [
        "60", "100", "200", "300", "60"]  # fmt: skip
    (imix,) = sizes("imix")
    assert Counter(imix.sizes) == {60: 7, 590: 4, 1514: 1}
    assert imix.sizes[:7] != (60,) * 7  # spread
    (own,) = sizes("60*2+1000*1")
    assert Counter(own.sizes) == {60: 2, 1000: 1}
    for wrong in ("", "31", "60-", "imax", "60*0", "200-100"):
        with pytest.raises(argparse.ArgumentTypeError):
            sizes(wrong)


def test_a_mix_keeps_its_proportions(port: Port) -> None:
    (imix,) = sizes("imix")
    sender, found = Sender(port, imix, Stream(build("", DST, SRC)), 64, 128), Counter[int]()
    for _ in range(36):
        sender.send(64)
        found.update(port.recv_burst(64).lengths.tolist())
    total = found.total()
    assert found[60] / total == pytest.approx(7 / 12, abs=0.01)
    assert found[1514] / total == pytest.approx(1 / 12, abs=0.01)


@pytest.mark.parametrize(
    ("text", "size", "line", "pps"),
    [
        ("1500", 60, None, 1500),
        ("100k", 60, None, 1e5),
        ("1.5Mpps", 60, None, 1.5e6),
        ("1Gbps", 125, None, 1e6),
        ("100%", 60, 10e9, 10e9 / (84 * 8)),
        ("10%", 1514, 1e9, 1e8 / (1538 * 8)),
    ],
)
def test_rates(text: str, size: int, line: float | None, pps: float) -> None:
    found = rate(text)
    assert found is not None
    assert found.pps(size, line) == pytest.approx(pps)


def test_rates_that_are_none() -> None:
    assert rate("max") is None
    for wrong in ("", "fast", "0", "-1", "101%", "5x", "1e6"):
        with pytest.raises(argparse.ArgumentTypeError):
            rate(wrong)
    share = rate("10%")
    assert share is not None
    with pytest.raises(Error, match="--line 10G"):
        share.pps(60, None)


def test_a_pace_is_even_and_makes_good_what_was_late() -> None:
    pace = Pace(1000.0)
    pace.start(10.0)
    assert pace.due(10.0, 0) == 1
    assert pace.due(10.0004, 1) == 0
    assert pace.wait(10.0, 1) == pytest.approx(0.0009)
    assert pace.due(10.0011, 1) == 1
    assert pace.due(10.0301, 2) == 29  # late, and made good
    assert pace.due(11.0001, 31) == 50  # much too late, and forgiven
    assert pace.forgiven == 1001 - 31 - 50
    assert pace.due(11.0001, 81) == 0
    assert pace.due(11.0011, 81) == 1


def test_frames_go_together() -> None:
    pace = Pace(1000.0, 10)
    pace.start(0.0)
    assert pace.due(0.0, 0) == 10
    assert pace.due(0.0099, 10) == 0
    assert pace.wait(0.0, 10) == pytest.approx(0.0099)
    assert pace.due(0.0101, 10) == 10
    assert pace.due(0.0101, 14) == 6  # those the ring had no room for


def test_without_a_rate_any_time_is_right() -> None:
    assert Pace().due(0.0, 10**9) == FREE
    assert Pace().wait(0.0, 5) == 0.0


@pytest.mark.parametrize(
    ("asked", "sent", "full", "limit"),
    [
        (1000.0, 999.0, 50.0, "rate"),
        (1000.0, 900.0, 50.0, "device"),
        (1000.0, 900.0, 0.0, "program"),
        (None, 900.0, 99.0, "device"),
        (None, 900.0, 1.0, "program"),
    ],
)
def test_what_the_limit_was(asked: float | None, sent: float, full: float, limit: str) -> None:
    assert limit_of(asked, sent, full) == limit


# ---- the tool ----------------------------------------------------------------------------------


def test_a_rate_is_kept_and_latency_is_told(tool: Tool) -> None:
    words = ["loop", HERE, THERE, "--rate", "2k", "--time", "0.5", "--frame", "ipv4/udp", "--json"]
    assert tool(*words) == 0
    row = tool.row
    assert row["asked_pps"] == 2000
    assert row["sent"] <= 1001
    assert row["received"] == row["sent"] > 100
    found = [row["latency_us"][name] for name in ("min", "p50", "p90", "p99", "p99.99", "max")]
    assert found == sorted(found)
    assert found[0] > 0


def test_a_row_for_each_size_and_rate(tool: Tool) -> None:
    words = ["loop", HERE, THERE, "--size", "60,imix", "--rate", "5k,max", "--count", "100"]
    assert tool(*words, "--json") == 0
    rows = [(row["mix"], row.get("asked_pps")) for row in tool.figures["rows"]]
    assert rows == [("60", 5000), ("60", None), ("imix", 5000), ("imix", None)]
    assert all(row["received"] == 100 for row in tool.figures["rows"])


def test_the_smallest_frame_is_the_default(tool: Tool) -> None:
    assert tool("loop", HERE, THERE, "--frame", "ipv6/tcp", "--count", "5", "--json") == 0
    assert tool.row["size"] == 14 + 40 + 20 + 18
    assert tool("loop", HERE, THERE, "--frame", "ipv6/tcp", "--size", "60", "--count", "5") == 2
    assert "--size 92 or more" in tool.err


def test_a_dry_run_prints_frames_and_opens_nothing(tool: Tool) -> None:
    words = ["--dry-run", "2", "--frame", "ipv4/udp", "--src", "02:00:00:00:00:09"]
    assert tool("tx", "0000:99:99.9", *words) == 0
    first, line, *_ = tool.out.splitlines()
    assert first == "# frame 0: 60 bytes"
    assert line == "000000  02 00 00 00 00 02 02 00 00 00 00 09 08 00 45 00"
    assert "# frame 1: 60 bytes" in tool.out
    assert tool("tx", "0000:99:99.9", *words, "--json") == 0
    frames = [bytes.fromhex(one) for one in json.loads(tool.out)["frames"]]
    assert [len(one) for one in frames] == [60, 60]
    assert frames[0].hex(" ").startswith("02 00 00 00 00 02 02 00 00 00 00 09 08 00 45 00")


def test_frames_of_a_file_are_sent_as_they_are(tool: Tool, tmp_path: Path, port: Port) -> None:
    path, contents = tmp_path / "frames.pcap", [b"a" * 60, b"b" * 1514, b"c" * 99]
    burst = port.alloc_burst(3, 1514)
    burst.set_lengths([60, 1514, 99])
    for row, frame in zip(burst.data, contents, strict=True):
        row[: len(frame)] = np.frombuffer(frame, np.uint8)
    with path.open("wb") as file:
        Writer(file).write(burst, 0)
    with pyvirtnet.open(THERE) as peer:
        assert tool("tx", HERE, "--pcap", str(path), "--count", "7", "--json") == 0
        found = [bytes(frame) for frame in peer.recv_burst(64)]
    assert found == [*contents, *contents, contents[0]]
    assert tool("tx", HERE, "--pcap", str(tmp_path / "none"), "--count", "7") != 0
    assert "mend" in tool.err


@pytest.mark.parametrize("size", ["60", "9014"])
def test_a_dry_run_prints_as_many_frames_as_were_asked_for(tool: Tool, size: str) -> None:
    """It stopped at what a ring takes."""
    for more in ((), ("--plain",)):
        words = ["--frame", "ipv4/udp", "--vary", "src-port=1-1000", "--size", size, *more]
        assert tool("tx", "sim:loopback", *words, "--dry-run", "600", "--json") == 0
        found = [bytes.fromhex(one) for one in json.loads(tool.out)["frames"]]
        assert [int.from_bytes(one[34:36], "big") for one in found] == list(range(1, 601))


def capture(path: Path, *records: tuple[bytes, int]) -> str:
    """A pcap file of frames and the lengths that they had on the wire."""
    data = struct.pack("=IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    for kept, length in records:
        data += struct.pack("=4I", 0, 0, len(kept), length) + kept
    path.write_bytes(data)
    return str(path)


def test_frames_of_a_file_that_do_not_fit_and_cut_ones_are_told(tool: Tool, tmp_path: Path) -> None:
    good, runt, giant, part = b"a" * 60, b"r" * 9, b"g" * 1515, b"p" * 40
    records = [(good, 60), (runt, 9), (b"", 0), (giant, 1515), (part, 1500)]
    path = capture(tmp_path / "frames.pcap", *records)
    with open(path, "ab") as file:
        file.write(b"begun")
    with pyvirtnet.open(THERE) as peer:
        words = ("--pcap", path, "--count", "4", "--json")
        assert tool("tx", f"{HERE}?mtu=1500", *words) == 0
        assert [bytes(frame) for frame in peer.recv_burst(64)] == [good, part] * 2
    assert [tool.figures[key] for key in ("unfit", "cut", "truncated")] == [3, 1, True]
    assert "3 of the file's frames not sent: too short or too long for the port" in tool.err
    assert "1 of the file's frames sent without the bytes that were not captured" in tool.err
    assert "the file ends in the middle of a packet, or is damaged" in tool.err


def test_a_file_without_a_frame_that_fits_is_one_error(tool: Tool, tmp_path: Path) -> None:
    path = capture(tmp_path / "frames.pcap", (b"r" * 9, 9))
    assert tool("tx", HERE, "--pcap", path, "--count", "1") == 1
    assert "of its 1 frames none has 14 to 65535 bytes" in tool.err
    assert "mend: choose another file" in tool.err


def test_what_is_no_gzip_file_after_all_has_a_reason(tool: Tool, tmp_path: Path) -> None:
    path = tmp_path / "frames.pcap"
    path.write_bytes(b"\x1f\x8bjunk")
    assert tool("tx", HERE, "--pcap", str(path), "--count", "1") == 1
    assert "what was compressed is cut short or damaged" in tool.err


@pytest.mark.parametrize(
    "words",
    [("--size", "60"), ("--dst", "02:00:00:00:00:07"), ("--src", "02:00:00:00:00:07"),
     ("--vary", "src-port=1-5")],
)  # fmt: skip
def test_what_a_file_cannot_follow_is_wrong_usage(tool: Tool, words: tuple[str, ...]) -> None:
    assert tool("tx", "0000:99:99.9", "--pcap", "none.pcap", *words, "--dry-run") == 2
    assert f"cannot follow {words[0]}" in tool.err


def test_addresses_of_scapys_frame_are_replaced(tool: Tool) -> None:
    ends = "dst='02:00:00:00:00:01', src='02:00:00:00:00:02'"
    words = ("--scapy", f"Ether({ends})/IP()/UDP()", "--dry-run", "1", "--json")
    for more, dst, src in (((), 1, 2), (("--dst", "02:00:00:00:00:07"), 7, 2),
                           (("--src", "02:00:00:00:00:09"), 1, 9)):  # fmt: skip
        assert tool("tx", HERE, *words, *more) == 0
        (frame,) = (bytes.fromhex(one) for one in json.loads(tool.out)["frames"])
        assert (frame[5], frame[11]) == (dst, src)


def test_plain_frames_are_a_stream_that_repeats(tool: Tool) -> None:
    with pyvirtnet.open(THERE) as peer:
        words = ["--plain", "--frame", "ipv4/udp", "--vary", "src-port=1-3", "--count", "600"]
        assert tool("tx", HERE, *words, "--json") == 0
        found = []
        while burst := list(peer.recv_burst(64)):
            found += [bytes(frame) for frame in burst]
    assert len(found) == 600
    assert {frame[35] for frame in found} == {1, 2, 3}


def test_plain_frames_have_a_row_for_each_size(tool: Tool) -> None:
    with pyvirtnet.open(THERE) as peer:
        words = ["--plain", "--size", "60,1514,60*2+99*1", "--count", "90", "--json"]
        assert tool("tx", HERE, *words) == 0
        rows = [(row["mix"], row["sent"]) for row in tool.figures["rows"]]
        lengths = [int(n) for _ in range(5) for n in peer.recv_burst(64).lengths]
    assert rows == [("60", 90), ("1514", 90), ("60*2+99*1", 90)]
    assert lengths == [60] * 90 + [1514] * 90 + [60, 99, 60] * 30


def test_plain_frames_have_all_headers(tool: Tool) -> None:
    words = ["--plain", "--frame", "vlan/ipv4/udp", "--vary", "src-port=1-1000"]
    assert tool("tx", HERE, *words, "--size", "70*2+99*1", "--dry-run", "1000", "--json") == 0
    found = [bytes.fromhex(one) for one in json.loads(tool.out)["frames"]]
    assert [int.from_bytes(one[38:40], "big") for one in found] == list(range(1, 1001))
    assert Counter(map(len, found)) == {70: 667, 99: 333}


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("size", [128, 1513])
def test_plain_frames_are_whole(port: Port, layers: str, size: int) -> None:
    made = Plain(build(layers, DST, SRC), []).frames(Mix.of(size))
    assert [len(one) for one in made] == [size]
    assert port.send_burst(made) == 1
    assert checksums_ok(port.recv_burst(1)).all()


@pytest.mark.parametrize("size", [58, 60, 64])
def test_plain_frames_have_no_room_for_a_number(port: Port, size: int) -> None:
    """Those of 60 bytes with TCP headers were refused."""
    plain = Plain(build("ipv4/tcp", DST, SRC), [])
    plain.check(Mix.of(size))
    (content,) = plain.frames(Mix.of(size))
    assert len(content) == size
    assert port.send_burst([content]) == 1
    assert checksums_ok(port.recv_burst(1)).all()
    with pytest.raises(WrongUsage, match="57 bytes: headers and payload of such a frame take 58"):
        plain.check(Mix.of(57))


def test_plain_headers_that_there_is_no_room_for_are_told(tool: Tool) -> None:
    words = ["--plain", "--frame", "ipv4/udp", "--vary", "src-port=0-65535", "--size", "9014"]
    assert tool("tx", "sim:loopback", *words, "--count", "1") == 0
    assert "9014 bytes: the first 7384 of 65536 headers are sent: --plain keeps 64 MiB" in tool.err


def test_frames_made_beforehand_lie_in_few_pieces() -> None:
    """A vhost-user back end sees no more than eight."""
    with pyvirtnet.open("sim:cable/player/0") as port:
        before = len(list(memory.regions()))
        player = Player(port, [bytes(1514)] * 10000, 64)
        assert len(list(memory.regions())) <= before + 1
        assert player.send(64) == 64
        mixed = Player(port, [bytes(65000), *[bytes(60)] * 2000], 64)
        assert mixed.send(64) == 64


def test_a_player_resends_what_is_still_on_its_way() -> None:
    with pyvirtnet.open("sim:cable/player/0?queue_size=8") as port:
        player = Player(port, [bytes(60)] * 3, 4)
        assert sum(player.send(4) for _ in range(4)) == 8
        assert player.full
        assert player.sent == 8


def test_a_wrong_rate_is_one_line(tool: Tool) -> None:
    for words in (("--rate", "fast"), ("--vary", "x=1"), ("--size", "1-2-3"), ("--plain", "5")):
        with pytest.raises(SystemExit) as end:
            tool("tx", HERE, *words)
        assert end.value.code == 2
        assert tool.err.count("\n") == 1
