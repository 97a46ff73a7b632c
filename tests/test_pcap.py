"""Capture files: what we write scapy and dpkt read, what scapy writes we read; damaged ones."""

import gzip
import io
import os
import random
import struct
import sys
from contextlib import suppress

import dpkt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.packet import Raw
from scapy.utils import PcapNgReader, PcapNgWriter, PcapReader, PcapWriter, RawPcapNgReader

import pyvirtnet
from pyvirtnet.pcap import SNAPLEN, Packet, Reader, Writer

STAMP = 1_700_000_000_123_456_789
RANDOM = random.Random(5)
FRAMES = [RANDOM.randbytes(size) for size in (14, 15, 60, 64, 127, 128, 129, 1514, 4085, 65535)]
MICRO, NANO = 0xA1B2C3D4, 0xA1B23C4D


@pytest.fixture(scope="module")
def burst():
    with pyvirtnet.open("sim:loopback") as port:
        assert port.send_burst(FRAMES) == len(FRAMES)
        yield port.recv_burst(64)


@pytest.fixture(params=[False, True], ids=["pcap", "pcapng"])
def ng(request):
    return request.param


def write(burst, **options):
    file = io.BytesIO()
    writer = Writer(file, **options)
    writer.write(burst, STAMP)
    writer.write(burst[2:4], STAMP + 1)
    writer.write(burst[:0], STAMP + 2)
    writer.finish(STAMP + 3, 12, 5)
    assert writer.octets == len(file.getvalue())
    return file.getvalue()


def read(tmp_path, data):
    (tmp_path / "file").write_bytes(data)
    return list(Reader(tmp_path / "file"))


EXPECTED = [(STAMP, frame) for frame in FRAMES] + [(STAMP + 1, frame) for frame in FRAMES[2:4]]


def test_scapy_reads_what_we_write(burst, ng):
    reader = (PcapNgReader if ng else PcapReader)(io.BytesIO(write(burst, ng=ng)))
    packets = list(reader)
    assert [(int(p.time * 10**9), bytes(p)) for p in packets] == EXPECTED
    assert [p.wirelen for p in packets] == [len(frame) for _, frame in EXPECTED]


def test_dpkt_reads_what_we_write(burst, ng):
    reader = (dpkt.pcapng if ng else dpkt.pcap).Reader(io.BytesIO(write(burst, ng=ng)))
    assert reader.datalink() == dpkt.pcap.DLT_EN10MB
    found = [(stamp, frame) for stamp, frame in reader]
    assert [frame for _, frame in found] == [frame for _, frame in EXPECTED]
    assert [float(s) for s, _ in found] == pytest.approx([s / 1e9 for s, _ in EXPECTED], abs=1e-6)


def test_we_read_what_we_write(tmp_path, burst, ng):
    found = read(tmp_path, write(burst, ng=ng))
    assert found == [Packet(stamp, frame, len(frame)) for stamp, frame in EXPECTED]


def test_a_file_read_twice_at_once(tmp_path, burst, ng):
    """One reading took the packets of the other."""
    (tmp_path / "file").write_bytes(write(burst, ng=ng))
    reader = Reader(tmp_path / "file")
    assert all(one == other for one, other in zip(reader, reader, strict=True))
    assert [sum(1 for _ in reader) for _ in reader] == [len(EXPECTED)] * len(EXPECTED)


def test_a_file_without_a_buffer_writes_as_much_as_it_likes(burst, ng):
    """The rest was lost, and counted."""

    class Slow(io.RawIOBase):
        def __init__(self):
            self.whole = io.BytesIO()

        def write(self, data):
            return self.whole.write(data[:1000])

    file = Slow()
    writer = Writer(file, ng=ng)
    writer.write(burst, STAMP)
    assert writer.octets == len(file.whole.getvalue()) > sum(map(len, FRAMES))
    file.write = lambda data: None  # it does not wait
    with pytest.raises(BlockingIOError):
        writer.write(burst, STAMP)


@pytest.mark.parametrize("snaplen", [1, 2, 3, 4, 64, 128, 130, 1000])
def test_no_more_of_a_frame_is_kept_than_asked_for(tmp_path, burst, ng, snaplen):
    found = read(tmp_path, write(burst, ng=ng, snaplen=snaplen))
    assert found == [Packet(s, frame[:snaplen], len(frame)) for s, frame in EXPECTED]


def test_picked_frames_and_bursts_to_be_sent(tmp_path, burst, ng):
    file = io.BytesIO()
    writer = Writer(file, ng=ng)
    writer.write(burst[burst.lengths > 1000], STAMP)
    writer.write(burst[[3, 0]][::-1], STAMP)
    with pyvirtnet.open("sim:loopback") as port:
        tx = port.alloc_burst(2, 200)
        tx.data[:] = 7
        tx.set_lengths([20, 200])
        writer.write(tx, STAMP)
    found = [packet.data for packet in read(tmp_path, file.getvalue())]
    assert found == [*FRAMES[7:], FRAMES[0], FRAMES[3], b"\x07" * 20, b"\x07" * 200]


def test_pcapng_tells_the_interface_and_its_counts(burst):
    data = write(burst, ng=True, interface="0000:00:04.0")
    reader = RawPcapNgReader(io.BytesIO(data))
    packets = list(reader)
    assert len(packets) == len(EXPECTED)
    assert reader.interfaces[0][2]["name"] == b"0000:00:04.0"
    high, low = (STAMP + 3) >> 32, (STAMP + 3) & 0xFFFFFFFF
    counted = struct.pack("=IIIHHQHHQI", 0, high, low, 4, 8, 12, 5, 8, 5, 0)
    assert data.endswith(struct.pack("=II", 5, 52) + counted + struct.pack("=I", 52))


@pytest.mark.parametrize("snaplen", [0, -1, SNAPLEN + 1])
def test_snaplen_has_bounds(snaplen):
    with pytest.raises(ValueError, match="snaplen is 1 to 262144 bytes"):
        Writer(io.BytesIO(), snaplen=snaplen)


@pytest.mark.parametrize("nano", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pcap_of_scapys(tmp_path, order, nano):
    writer = PcapWriter(str(tmp_path / "file"), endianness=order, nano=nano, linktype=1)
    for i, frame in enumerate(FRAMES):
        packet = Raw(frame)
        packet.time, packet.wirelen = 1000 + i / 4, len(frame) + i
        writer.write(packet)
    writer.close()
    assert list(Reader(tmp_path / "file")) == [
        (1000 * 10**9 + i * 250_000_000, frame, len(frame) + i) for i, frame in enumerate(FRAMES)
    ]


def test_pcapng_of_scapys(tmp_path):
    writer = PcapNgWriter(str(tmp_path / "file"))
    for i, frame in enumerate(FRAMES):
        packet = Raw(frame)
        packet.time = 1000 + i / 4
        writer.linktype = 1
        writer.write(packet)
    writer.close()
    assert list(Reader(tmp_path / "file")) == [
        (1000 * 10**9 + i * 250_000_000, frame, len(frame)) for i, frame in enumerate(FRAMES)
    ]


def test_compressed_files_and_the_standard_input(tmp_path, burst, ng, monkeypatch):
    data = gzip.compress(write(burst, ng=ng))
    assert [packet.data for packet in read(tmp_path, data)] == [frame for _, frame in EXPECTED]
    with open(tmp_path / "file") as file:
        monkeypatch.setattr(sys, "stdin", file)
        reader = Reader("-")
        assert [packet.stamp for packet in reader] == [stamp for stamp, _ in EXPECTED]
        os.fstat(file.fileno())  # still open


# ---- pcapng by hand ----------------------------------------------------------------------------


def block(order, kind, body):
    size = struct.pack(f"{order}I", 12 + len(body))
    return struct.pack(f"{order}I", kind) + size + body + size


def section(order):
    return block(order, 0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1))


def interface(order, link=1, snaplen=0, options=b""):
    return block(order, 1, struct.pack(f"{order}HHI", link, 0, snaplen) + options)


def enhanced(order, ticks, frame, number=0, kept=None):
    kept = len(frame) if kept is None else kept
    head = struct.pack(f"{order}5I", number, ticks >> 32, ticks & 0xFFFFFFFF, kept, len(frame))
    return block(order, 6, head + frame + bytes(-len(frame) % 4))


@pytest.mark.parametrize("order", ["<", ">"])
def test_blocks_of_every_kind(tmp_path, order):
    frame = b"f" * 61
    nano = struct.pack(f"{order}HHB3xHHqHH", 9, 1, 9, 14, 8, -7, 0, 0)
    binary = struct.pack(f"{order}HHB3x", 9, 1, 0x80 | 10)  # ticks of 1 / 1024 seconds
    old = struct.pack(f"{order}HH4I", 1, 0, 0, 2048, 61, 99) + frame + bytes(3)
    other = "<" if order == ">" else ">"
    data = (
        section(order)
        + block(order, 0xBAD, b"unknown!")
        + interface(order, snaplen=20, options=nano)
        + interface(order, options=binary)
        + interface(order)
        + enhanced(order, 10**9 * 10 + 1, frame)
        + enhanced(order, 512, frame, number=1)
        + enhanced(order, 3, frame, number=2)
        + block(order, 3, struct.pack(f"{order}I", 61) + frame[:20])
        + block(order, 2, old)
        + section(other)
        + interface(other)
        + enhanced(other, 5, frame)
    )
    assert read(tmp_path, data) == [
        (3 * 10**9 + 1, frame, 61),
        (500_000_000, frame, 61),
        (3000, frame, 61),
        (0, frame[:20], 61),
        (2 * 10**9, frame, 99),
        (5000, frame, 61),
    ]


HEADER = struct.pack("=IHHiIII", NANO, 2, 4, 0, 0, 65535, 1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it begins as neither pcap nor pcapng does"),
        (b"\x0a", "it begins as neither"),
        (b"GET / HTTP/1.1", "it begins as neither"),
        (HEADER[:20], "it ends in its header"),
        (struct.pack("=IHHiIII", NANO, 2, 4, 0, 0, 65535, 113), "its link type is 113"),
        (HEADER + struct.pack("=4I", 0, 0, 1 << 25, 60), "a packet claims 33554432 bytes"),
        (section("<")[:8] + bytes(20), "a section has no byte order"),
        (section("<") + enhanced("<", 0, b"x" * 60), "interface 0, which was not described"),
        (section("<") + interface("<", link=105) + enhanced("<", 0, b"x" * 60), "link type is 105"),
        (section("<") + interface("<") + enhanced("<", 0, b"x" * 60, kept=99), "is too short"),
        (section("<") + interface("<") + block("<", 6, b"short"), "a block is too short"),
        (section("<") + block("<", 1, b""), "a block is too short"),
        (section("<") + b"\1\0\0\0\0\0\0\0", "a packet claims -8 bytes"),
    ],
)
def test_what_is_no_capture_is_refused(tmp_path, data, why):
    with pytest.raises(pyvirtnet.Error) as caught:
        read(tmp_path, data)
    assert why in str(caught.value)
    assert str(tmp_path / "file") in str(caught.value)


def test_a_file_may_end_in_the_middle_of_a_packet(tmp_path, burst, ng):
    """As that of a program that was killed: what came before is read."""
    file = io.BytesIO()
    writer = Writer(file, ng=ng)
    ends = [writer.octets]
    for i in range(2):
        writer.write(burst[i : i + 1], STAMP)
        ends.append(writer.octets)
    reader = Reader(tmp_path / "file")
    for end in range(ends[0], ends[-1] + 1):
        (tmp_path / "file").write_bytes(file.getvalue()[:end])
        whole = sum(end >= one for one in ends[1:])
        assert [packet.data for packet in reader] == FRAMES[:whole]
        assert reader.truncated == (end not in ends)


def test_a_compressed_file_may_end_in_the_middle(tmp_path, burst, ng):
    data = gzip.compress(write(burst, ng=ng))
    (tmp_path / "file").write_bytes(data[: len(data) // 2])
    reader = Reader(tmp_path / "file")
    assert 0 < len(list(reader)) < len(EXPECTED)
    assert reader.truncated


def test_a_compressed_file_may_end_anywhere(tmp_path, burst, ng):
    """Even in gzip's own header or the capture's: packets or an Error, never gzip's EOFError."""
    data = gzip.compress(write(burst[:3], ng=ng))
    reader = Reader(tmp_path / "file")
    for end in range(2, len(data)):
        (tmp_path / "file").write_bytes(data[:end])
        with suppress(pyvirtnet.Error):
            assert len(list(reader)) <= 5
        assert reader.truncated
    (tmp_path / "file").write_bytes(data[:11])
    with pytest.raises(pyvirtnet.Error, match="what was compressed is cut short or damaged"):
        list(reader)


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-8] + bytes(8), lambda data: data + b"junk"],
    ids=["check sequence", "junk behind"],
)
def test_packets_in_front_of_damage_to_the_compression_are_read(tmp_path, burst, ng, damage):
    (tmp_path / "file").write_bytes(damage(gzip.compress(write(burst, ng=ng))))
    reader = Reader(tmp_path / "file")
    assert [packet.data for packet in reader] == [frame for _, frame in EXPECTED]
    assert reader.truncated


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_damaged_files_end_in_packets_or_an_error(tmp_path_factory, data):
    whole = section("<") + interface("<") + enhanced("<", 5, b"x" * 61) * 3
    if data.draw(st.booleans()):
        whole = HEADER + (struct.pack("=4I", 1, 2, 61, 61) + b"x" * 61) * 3
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    with suppress(pyvirtnet.Error):
        for packet in Reader(path):
            assert len(packet.data) <= len(whole)
