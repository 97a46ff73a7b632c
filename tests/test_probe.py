"""Probes behind any headers: valid checksums at every number, and no damage that passes."""

import struct
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

import pyvirtnet
from pyvirtnet import Port, TxBurst, checksums_ok, fix_checksums
from pyvirtnet._meter import Meter, payload_at
from pyvirtnet._probe import NUMBERS, PROBE_BYTES, Probes

MACS = bytes.fromhex("020000000002020000000001")
RAW = MACS + b"\x88\xb5"
V4 = b"\x45" + bytes(7) + b"\x40\x11" + bytes(2) + bytes([192, 0, 2, 1, 192, 0, 2, 2])
V6 = b"\x60" + bytes(5) + b"\x11\x40" + bytes(15) + b"\x01" + bytes(15) + b"\x02"
UDP = struct.pack(">HHHH", 1024, 9, 0, 0)
TCP = struct.pack(">HHIIBBHHH", 1024, 9, 0, 0, 5 << 4, 16, 8192, 0, 0)
HEADERS = {
    "raw": RAW,
    "vlan": MACS + b"\x81\x00\x00\x05\x88\xb5",
    "qinq": MACS + b"\x88\xa8\x00\x05\x81\x00\x00\x06\x88\xb5",
    "udp4": MACS + b"\x08\x00" + V4 + UDP,
    "udp6": MACS + b"\x86\xdd" + V6 + UDP,
    "tcp4": MACS + b"\x08\x00" + V4[:9] + b"\x06" + V4[10:] + TCP,
    "vlan tcp6": MACS + b"\x81\x00\x00\x05\x86\xdd" + V6[:6] + b"\x06" + V6[7:] + TCP,
}


@pytest.fixture
def port() -> Iterator[Port]:
    with pyvirtnet.open("sim:loopback") as made:
        yield made


def complete(port: Port, header: bytes, size: int) -> NDArray[np.uint8]:
    """The header with lengths and checksums for frames of this size, by other code."""
    at, frame = len(header), bytearray(header) + bytes(size - len(header))
    ip = 14 + 4 * (header[12:14] == b"\x81\x00") + 8 * (header[12:14] == b"\x88\xa8")
    kind = frame[ip - 2 : ip]
    if kind == b"\x08\x00":
        frame[ip + 2 : ip + 4] = struct.pack(">H", size - ip)
    if kind == b"\x86\xdd":
        frame[ip + 4 : ip + 6] = struct.pack(">H", size - ip - 40)
    if b"\x11" in (frame[ip + 6 : ip + 7], frame[ip + 9 : ip + 10]) and kind != b"\x88\xb5":
        frame[at - 4 : at - 2] = struct.pack(">H", size - at + 8)
    burst = port.alloc_burst(1, size)
    burst.data[0] = frame
    table = np.array([frame[:at]], np.uint8)
    Probes({size: table}, 0).prepare(burst, 7)
    burst.data[0, :at] = frame[:at]
    fix_checksums(burst)
    return np.array(burst.data[:, :at])


def probes(port: Port, header: bytes, size: int, n: int, first: int = 0) -> TxBurst:
    made = Probes({size: complete(port, header, size)}, 3)
    burst = port.alloc_burst(n, size)
    made.prepare(burst, 0xFFF0)
    made.number(burst, first)
    return burst


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("size", [112, 113, 1514, 9014])
@pytest.mark.parametrize("first", [0, 0xFFFFFFFF, NUMBERS - 40])
def test_checksums_hold_at_every_number(port: Port, name: str, size: int, first: int) -> None:
    burst = probes(port, HEADERS[name], size, 40, first)
    assert checksums_ok(burst).all()
    assert port.send_burst(burst) == 40
    meter = Meter(3 << 48)
    assert meter.check(port.recv_burst(64)) == 40
    assert (meter.corrupt, meter.foreign, meter.duplicated, meter.reordered) == (0, 0, 0, 0)
    assert meter.lost(first + 40) == first
    assert meter.latency.count == 40


def test_numbering_again_and_again_keeps_checksums(port: Port) -> None:
    table = complete(port, HEADERS["udp4"], 60)
    made, meter = Probes({60: table}, 0xFFFF), Meter(0xFFFF << 48)
    burst = port.alloc_burst(16, 60)
    made.prepare(burst, 0)
    for number in range(0, 16 * 500, 16):
        made.number(burst, number)
        assert checksums_ok(burst).all()
        assert meter.check(burst) == 16
    assert meter.lost(16 * 500) == meter.reordered == 0


@pytest.mark.parametrize("name", ["raw", "udp4", "vlan tcp6"])
def test_no_changed_byte_of_the_payload_passes(port: Port, name: str) -> None:
    size = len(HEADERS[name]) + 70
    burst = probes(port, HEADERS[name], size, 1)
    for at in range(len(HEADERS[name]), size):
        for change in (1, 0x80, 0xFF):
            burst.data[0, at] ^= change
            meter = Meter(3 << 48)
            assert meter.check(burst) == 0, at
            assert meter.corrupt + meter.foreign == 1
            burst.data[0, at] ^= change
    assert Meter(3 << 48).check(burst) == 1


@pytest.mark.parametrize("size", [200, 9014])
def test_neither_cut_nor_swapped_nor_stale_content_passes(port: Port, size: int) -> None:
    whole = [bytes(row) for row in probes(port, RAW, size, 2)]
    burst = port.alloc_burst(1, size)
    damaged = [whole[0][: size - cut] for cut in (1, 2, 8, 100)]
    damaged += [whole[0][:150] + whole[1][150:], whole[0][:-8] + whole[0][-16:-8]]
    for frame in damaged:
        burst.set_lengths([len(frame)])
        burst.data[0, : len(frame)] = np.frombuffer(frame, np.uint8)
        meter = Meter(3 << 48)
        assert (meter.check(burst), meter.corrupt) == (0, 1)


def test_fragments_are_verified_wherever_they_are_cut(port: Port) -> None:
    """9014 bytes lie in a head and three pages."""
    burst = probes(port, HEADERS["vlan"], 9014, 1)
    for at in (127, 128, 129, 4083, 4084, 4085, 8180, 9013):
        burst.data[0, at] ^= 1
        assert port.send_burst(burst) == 1
        meter = Meter(3 << 48)
        assert meter.check(port.recv_burst(8)) == 0
        assert meter.corrupt == 1
        burst.data[0, at] ^= 1


def test_other_frames_are_foreign(port: Port) -> None:
    burst = probes(port, RAW, 60, 4)
    meter = Meter(4 << 48)  # another stream
    assert (meter.check(burst), meter.foreign, meter.astray) == (0, 4, 4)
    others = port.alloc_burst(3, 60)
    others.set_lengths([14, 30, 60])
    others.data[0, 12:14], others.data[1, 12:14] = (8, 0), (0x86, 0xDD)
    meter = Meter()
    assert (meter.check(others), meter.foreign, meter.astray) == (0, 3, 0)


def test_headers_take_turns_and_follow_the_length(port: Port) -> None:
    small, large = (np.full((n, 14), n, np.uint8) for n in (3, 2))
    made = Probes({60: small, 100: large}, 0)
    small[:, 13], large[:, 13] = range(3), range(2)
    burst = port.alloc_burst(8, 100)
    burst.set_lengths([60, 100] * 4)
    made.prepare(burst, 0)
    made.number(burst, 5)
    assert burst.data[:, 0].tolist() == [3, 2] * 4
    assert burst.data[:, 13].tolist() == [5 % 3, 6 % 2, 7 % 3, 8 % 2, 9 % 3, 10 % 2, 11 % 3, 12 % 2]


def test_latency_is_the_time_between_number_and_check(port: Port) -> None:
    made = Probes({60: np.frombuffer(RAW, np.uint8).reshape(1, -1).copy()}, 0)
    burst = port.alloc_burst(1, 60)
    made.prepare(burst, 0)
    meter = Meter(0)
    for number in range(100):
        made.number(burst, number)
        meter.check(burst)
    assert 0 < meter.latency.minimum < 10_000_000
    assert meter.jitter >= 0
    assert meter.latency.count == 100


@pytest.mark.parametrize("name", HEADERS)
def test_payload_begins_behind_the_headers(name: str) -> None:
    assert payload_at(HEADERS[name] + bytes(60)) == len(HEADERS[name])


def test_wrong_tables_and_short_rows_are_refused(port: Port) -> None:
    row = np.zeros((1, 14), np.uint8)
    for tables in ({}, {60: row, 61: np.zeros((1, 16), np.uint8)}, {60: row[:0]},
                   {60: np.zeros((1, 15), np.uint8)}):  # fmt: skip
        with pytest.raises(ValueError, match="header"):
            Probes(tables, 0)
    made = Probes({60: row}, 0)
    burst = port.alloc_burst(2, 60)
    burst.set_lengths([60, 14 + PROBE_BYTES - 1])
    with pytest.raises(ValueError, match="frame 1 has 31 bytes"):
        made.prepare(burst, 0)
    with pytest.raises(ValueError, match="frame 1"):
        made.number(burst, 0)
    assert not burst.data.any()


def test_a_table_cannot_be_resized_under_them() -> None:
    table = np.zeros((4, 14), np.uint8)
    made = Probes({60: table}, 0)
    with pytest.raises(ValueError, match="resize"):
        table.resize((1, 14))
    assert made.at == 14


def test_probes_and_meters_that_were_never_made_are_errors() -> None:
    """They were segmentation faults."""
    with pyvirtnet.open("sim:loopback") as port:
        tx = port.alloc_burst(1, 60)
        with pytest.raises(TypeError, match="after they were made"):
            Probes.__new__(Probes).number(tx, 0)
        made = Probes({60: np.frombuffer(RAW, np.uint8).reshape(1, -1).copy()}, 0)
        made.prepare(tx, 0)
        made.number(tx, 0)
        assert port.send_burst(tx) == 1
        assert Meter.__new__(Meter).check(port.recv_burst(1)) <= 1


def test_tables_that_lie_about_their_number() -> None:
    """It wrote behind the end of an array."""

    class Many(dict[int, NDArray[np.uint8]]):
        def __len__(self) -> int:
            return 1

    table = np.zeros((1, 42), np.uint8)
    assert Probes(Many(dict.fromkeys(range(60, 600), table)), 0).at == 42
