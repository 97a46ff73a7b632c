"""Checksums and segmentation left to a device, and by a device: columns, rules, refusals."""

import struct

import numpy as np
import pytest
from nic import HEADER, PAGE, PLAIN, CountedDevice, frame
from test_checksums import BUILDERS, internet_checksum, ipv4, ipv6
from test_checksums import frame as ethernet

import pyvirtnet
from pyvirtnet import Feature, Gso, HashType, HeaderFlag
from pyvirtnet.negotiate import OFFLOADS
from pyvirtnet.testing import NetDevice, mask

NEEDS, VALID = HeaderFlag.NEEDS_CSUM, HeaderFlag.DATA_VALID
NAMES = [feature.name.lower() for feature in OFFLOADS]
OFFERED = PLAIN | mask(*NAMES)
FORMATS = {
    "split": OFFERED,
    "packed": OFFERED | mask("ring_packed"),
    "indirect": OFFERED | mask("indirect_desc"),
    "packed indirect": OFFERED | mask("ring_packed", "indirect_desc"),
    "in order": OFFERED | mask("in_order"),
}


def header(*fields, start=0, offset=0):
    """flags, gso_type, hdr_len, gso_size, csum_start, csum_offset; what is not given is 0."""
    fields = (*fields, *(0,) * (4 - len(fields)))
    return struct.pack("<BBHHHH", *fields, *(() if len(fields) == 6 else (start, offset)))


def tcp(size, *, version=4, cwr=False, ack=b"", checksum=None):
    """A TCP segment of `size` bytes of payload in an Ethernet frame; its transport begins at 34,
    or 54 with IPv6."""
    body = frame(size)
    made = bytearray(ethernet((ipv4 if version == 4 else ipv6)("tcp", body, checksum=checksum)))
    if cwr:
        made[(34 if version == 4 else 54) + 13] |= 0x80
    return bytes(made)


def udp(size, *, version=4):
    return ethernet((ipv4 if version == 4 else ipv6)("udp", frame(size)))


@pytest.fixture(params=FORMATS)
def off(request, make_nic):
    """A port with all offloads there are, in each ring format."""
    return make_nic(offered=FORMATS[request.param], features=NAMES)


def laid_out(nic, *frames):
    """A TxBurst with these frames."""
    burst = nic.port.alloc_burst(len(frames), max(map(len, frames)))
    for row, one in zip(burst.data, frames, strict=True):
        row[: len(one)] = np.frombuffer(one, np.uint8)
    burst.set_lengths([len(one) for one in frames])
    return burst


def sent(nic):
    """What the device finds: header fields, frame."""
    found = [
        (struct.unpack("<BBHHHHH", one[:HEADER]), one[HEADER:])
        for one in nic.device.take_with_headers()
    ]
    nic.device.complete()
    return found


# ---- negotiation ---------------------------------------------------------------------------------


@pytest.mark.rule("NET-004", "NET-005", "NET-008", "NET-009", "NET-059")
def test_offloads_are_taken_on_request_and_whole(make_nic):
    assert not OFFLOADS & make_nic(offered=OFFERED).port.features.negotiated
    assert make_nic(offered=OFFERED, features=NAMES).port.features.negotiated >= OFFLOADS
    for missing, gone in [
        ("csum", {"CSUM", "HOST_TSO4", "HOST_TSO6", "HOST_ECN", "HOST_USO", "GUEST_HDRLEN"}),
        ("guest_csum", {one for one in Feature.__members__ if one.startswith("GUEST_")}
         - {"GUEST_HDRLEN", "GUEST_ANNOUNCE"}),
    ]:  # fmt: skip
        nic = make_nic(offered=OFFERED & ~mask(missing), features=NAMES)
        left = OFFLOADS - {Feature[name] for name in gone}
        assert OFFLOADS & nic.port.features.negotiated == left
    only = make_nic(offered=OFFERED & ~mask("host_tso4", "host_tso6"), features=NAMES)
    assert Feature.HOST_ECN not in only.port.features.negotiated


def test_open_with_offloads():
    with pyvirtnet.open("sim:loopback?csum=on&guest_csum=on&host_tso4=on", offloads=True) as port:
        assert {"csum", "guest_csum", "host_tso4"} <= set(port.info()["features"])
    switches = {"offloads": True, "features": ["-host_tso4"]}
    with pyvirtnet.open("sim:loopback?csum=on&host_tso4=on", **switches) as port:
        assert "csum" in port.info()["features"]
        assert "host_tso4" not in port.info()["features"]


def test_large_frames_are_not_asked_for_without_room(make_nic):
    """A ring of less than 17 pages never holds a frame of 64 KiB."""
    nic = make_nic(offered=OFFERED, features=NAMES, ring_size=16)
    assert Feature.GUEST_CSUM in nic.port.features.negotiated
    assert Feature.GUEST_TSO4 not in nic.port.features.negotiated


# ---- columns -------------------------------------------------------------------------------------


def test_columns_select_as_the_burst_does(off):
    burst = laid_out(off, *(tcp(size) for size in range(8)))
    assert burst.offload.shape == (8,)
    assert not burst.offload["flags"].any()
    burst.offload["csum_start"] = np.arange(8)
    assert burst[2:].offload["csum_start"].tolist() == [2, 3, 4, 5, 6, 7]
    assert burst[::-2].offload["csum_start"].tolist() == [7, 5, 3, 1]
    picked = burst[[3, 1]]
    assert picked.offload["csum_start"].tolist() == [3, 1]
    with pytest.raises(ValueError, match="read-only"):
        picked.offload["flags"] = 1
    burst[1:3].offload["flags"] = 1
    assert burst.offload["flags"].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    assert burst[:0].offload.shape == (0,)


def test_a_column_keeps_its_burst(off):
    assert off.device.deliver(tcp(1000), header=header(NEEDS, start=34, offset=16))
    column = off.port.recv_burst(1).offload
    assert off.held_slots == 1
    assert column["csum_start"].tolist() == [34]
    del column
    assert off.held_slots == 0


# ---- sending -------------------------------------------------------------------------------------


@pytest.mark.rule("NET-035", "NET-051", "NET-053", "NET-054", "NET-060")
@pytest.mark.parametrize("kind", ["tcp", "udp"])
@pytest.mark.parametrize("version", [4, 6])
def test_a_checksum_is_left_to_the_device(off, kind, version):
    made = (tcp if kind == "tcp" else udp)(700, version=version)
    burst = laid_out(off, made, frame(60), made)
    assert pyvirtnet.defer_checksums(burst) == 2
    start, offset = 34 if version == 4 else 54, 16 if kind == "tcp" else 6
    assert burst.offload[0].tolist() == (1, 0, 0, 0, start, offset)
    for _ in range(3):  # the columns stay as they are
        assert off.port.send_burst(burst) == 3
        (first, data), (blank, plain), _ = sent(off)
        assert first == (1, 0, 0, 0, start, offset, 0)
        assert blank == (0,) * 7
        assert plain == frame(60)
        assert data[: start + offset] == made[: start + offset]
    assert pyvirtnet.fix_checksums(burst) == 2
    assert not burst.offload["flags"].any()
    assert bytes(burst[0]) == made
    assert off.port.send_burst(burst) == 3
    assert [one for one, _ in sent(off)] == [(0,) * 7] * 3


@pytest.mark.rule(
    "NET-040", "NET-042", "NET-046", "NET-052", "NET-055", "NET-056", "NET-057", "NET-058"
)
@pytest.mark.parametrize(
    ("made", "gso", "hdr_len"),
    [
        (tcp(20000), Gso.TCPV4, 54),
        (tcp(60000, version=6), Gso.TCPV6, 74),
        (udp(40000), Gso.UDP_L4, 42),
        (udp(40000, version=6), Gso.UDP_L4, 62),
    ],
)
def test_frames_to_be_segmented(off, made, gso, hdr_len):
    burst = laid_out(off, made)
    assert pyvirtnet.defer_checksums(burst, gso_size=1400) == 1
    burst.offload["hdr_len"] = 7  # not the caller's business
    assert off.port.send_burst(burst) == 1
    [(fields, data)] = sent(off)
    assert fields[:4] == (1, gso, hdr_len, 1400)
    assert len(data) == len(made)
    assert pyvirtnet.fix_checksums(burst) == (1 if made[12] == 8 else 0)  # IPv4's own
    assert burst.offload["flags"].tolist() == [1]


@pytest.mark.rule("NET-048", "NET-049")
def test_ecn_is_the_frames_own(make_nic):
    made = tcp(5000, cwr=True)
    nic = make_nic(offered=OFFERED, features=NAMES)
    burst = laid_out(nic, made)
    pyvirtnet.fix_checksums(burst)
    assert pyvirtnet.defer_checksums(burst, gso_size=1000) == 1
    assert nic.port.send_burst(burst) == 1
    assert sent(nic)[0][0][1] == Gso.TCPV4 | Gso.ECN
    without = make_nic(offered=OFFERED & ~mask("host_ecn"), features=NAMES)
    with pytest.raises(ValueError, match="HOST_ECN"):
        without.port.send_burst(burst)


@pytest.mark.rule("NET-025")
def test_a_frame_to_be_segmented_may_be_longer_than_the_mtu(make_nic):
    nic = make_nic(CountedDevice(features=OFFERED, mtu=1500), features=NAMES)
    burst = laid_out(nic, tcp(9000))
    with pytest.raises(ValueError, match="sends 14 to 1514"):
        nic.port.send_burst(burst)
    pyvirtnet.defer_checksums(burst, gso_size=1460)
    assert nic.port.send_burst(burst) == 1
    assert len(sent(nic)) == 1


REFUSED = {
    "a flag that is none": (header(4), "flags"),
    "a checksum past the end": (header(NEEDS, start=60, offset=994), "do not lead"),
    "a start past the end": (header(NEEDS, start=0xFFFF, offset=0xFFFF), "do not lead"),
    "a type that is none": (header(NEEDS, 2, 0, 100, 34, 16), "gso_type"),
    "ufo": (header(NEEDS, 3, 0, 100, 34, 6), "gso_type"),
    "no NEEDS_CSUM": (header(0, 1, 0, 100, 34, 16), "NEEDS_CSUM"),
    "ecn alone": (header(0, 0x80), "NEEDS_CSUM"),
    "no size": (header(NEEDS, 1, 0, 0, 34, 16), "gso_size 0"),
    "another checksum": (header(NEEDS, 1, 0, 100, 34, 6), "do not lead"),
    "a header that is cut": (header(NEEDS, 1, 0, 100, 1036, 16), "ends within"),
}


@pytest.mark.rule("NET-054", "NET-055", "NET-056")
@pytest.mark.parametrize("case", REFUSED)
def test_what_no_frame_may_ask_for_is_refused(off, case):
    """Nothing is sent then, of the frames before it neither."""
    fields, words = REFUSED[case]
    burst = laid_out(off, udp(60), tcp(1000))
    burst.offload[1:] = np.frombuffer(fields, burst.offload.dtype)
    with pytest.raises(ValueError, match=words) as caught:
        off.port.send_burst(burst)
    assert "frame 1" in str(caught.value)
    assert sent(off) == []
    assert off.port.tx_pending == 0
    burst.offload[1:] = 0
    assert off.port.send_burst(burst) == 2
    assert [one for one, _ in sent(off)] == [(0,) * 7] * 2


@pytest.mark.rule("NET-036", "NET-037", "NET-041", "NET-043", "NET-045", "NET-047", "NET-050")
@pytest.mark.parametrize(
    ("missing", "made", "words"),
    [
        (("csum",), udp(700), r"fix_checksums\(burst\)"),
        (("host_tso4",), tcp(7000), "offloads=True"),
        (("host_tso6",), tcp(7000, version=6), "offloads=True"),
        (("host_uso",), udp(7000), "offloads=True"),
    ],
)
def test_what_was_not_negotiated_is_refused(make_nic, missing, made, words):
    nic = make_nic(offered=OFFERED & ~mask(*missing), features=NAMES)
    burst = laid_out(nic, made)
    pyvirtnet.defer_checksums(burst, gso_size=1400)
    with pytest.raises(ValueError, match=words):
        nic.port.send_burst(burst)
    burst.offload[:] = 0
    pyvirtnet.fix_checksums(burst)
    assert nic.port.send_burst(burst) == 1
    assert sent(nic) == [((0,) * 7, made)]


def test_a_ring_full_of_headers(off):
    """Each frame takes a descriptor more; what found no room is sent later, as it was."""
    made = [udp(size) for size in range(1, 301)]
    burst = laid_out(off, *made)
    assert pyvirtnet.defer_checksums(burst) == 300
    got = []
    while len(burst):
        burst = burst[off.port.send_burst(burst) :]
        got += sent(off)
    assert [len(data) for _, data in got] == [len(one) for one in made]
    assert all(fields == (1, 0, 0, 0, 34, 6, 0) for fields, _ in got)


# ---- receiving -----------------------------------------------------------------------------------


@pytest.mark.rule("NET-088", "NET-091", "NET-092", "NET-093")
def test_what_is_received_has_its_header_fields(off):
    made = [
        (udp(60), header()),
        (udp(1400), header(VALID)),
        (tcp(1400), header(NEEDS, start=34, offset=16)),
        (tcp(60000), header(NEEDS, Gso.TCPV4, 54, 1448, 34, 16)),
        (tcp(30000, version=6), header(NEEDS, Gso.TCPV6 | Gso.ECN, 74, 1448, 54, 16)),
        (udp(9000), header(NEEDS, Gso.UDP_L4, 42, 1200, 34, 6)),
        (frame(14), header(0xFC, 0, 9, 8, 34, 16)),
    ]
    for one, fields in made:
        assert off.device.deliver(one, header=fields)
    burst = off.port.recv_burst(16)
    assert [bytes(one) for one in burst] == [one for one, _ in made]
    expected = np.frombuffer(b"".join(fields for _, fields in made), burst.offload.dtype).copy()
    expected[-1] = 0  # unknown flags, and what means nothing without them
    assert burst.offload.tolist() == expected.tolist()
    good = pyvirtnet.checksums_ok(burst)
    assert good[:6].all()


BAD = {
    "a checksum past the end": header(NEEDS, start=34, offset=1000),
    "a checksum at the last byte": header(NEEDS, start=34, offset=707),
    "a start past the end": header(NEEDS, start=0xFFFF, offset=0xFFFF),
    "a type that is none": header(NEEDS, 2, 54, 1000, 34, 16),
    "a type that was not negotiated": header(NEEDS, 3, 42, 1000, 34, 6),
    "segments of no size": header(NEEDS, Gso.TCPV4, 54, 0, 34, 16),
    "ecn alone": header(NEEDS, Gso.ECN, 54, 100, 34, 16),
    "ecn of udp": header(NEEDS, Gso.UDP_L4 | Gso.ECN, 54, 100, 34, 6),
}


@pytest.mark.parametrize("size", [688, 20000])
@pytest.mark.parametrize("case", BAD)
def test_a_header_that_cannot_be_is_dropped_and_counted(off, case, size):
    """The frames around it arrive; no page is lost."""
    fields = BAD[case]
    made = tcp(size)
    if size == 20000:
        fields = header(NEEDS, 9, 0, 1, 34, 16)
    assert len(tcp(688)) == 742
    for one in (made, tcp(100)):
        assert off.device.deliver(one, header=header(NEEDS, start=34, offset=16))
        assert off.device.deliver(one, header=fields)
    burst = off.port.recv_burst(16)
    assert [bytes(one) for one in burst] == [made, tcp(100)]
    assert burst.offload["flags"].tolist() == [1, 1]
    assert off.port.stats.rx_bad_headers == 2
    assert off.port.stats.rx_runts == 0


def test_columns_stay_empty_where_nothing_was_negotiated(make_nic):
    nic = make_nic(offered=OFFERED)
    assert nic.device.deliver(tcp(700), header=header(NEEDS, start=34, offset=16))
    burst = nic.port.recv_burst(4)
    assert not burst.offload["flags"].any()
    assert nic.port.send_burst(burst) == 1


# ---- passing on ----------------------------------------------------------------------------------


@pytest.mark.rule("NET-060", "NET-094")
@pytest.mark.parametrize("size", [20, 700, 60000])
def test_received_frames_are_passed_on_with_their_fields(off, size):
    fields = header(NEEDS, Gso.TCPV4, 0xFFFF, 1448, 34, 16) if size == 60000 else header(
        NEEDS, start=34, offset=16)  # fmt: skip
    made = bytearray(tcp(size))
    prepared = laid_out(off, bytes(made))
    pyvirtnet.defer_checksums(prepared)
    made = bytes(prepared[0])
    assert off.device.deliver(made, header=fields)
    assert off.device.deliver(udp(size), header=header(VALID))
    burst = off.port.recv_burst(4)
    assert off.port.send_burst(burst) == 2
    (first, data), (second, plain) = sent(off)
    assert (data, plain) == (made, udp(size))
    assert first[:2] == ((1, 1) if size == 60000 else (1, 0))
    assert first[2] == (54 if size == 60000 else 0)
    assert second == (0,) * 7
    assert off.port.send_burst(list(burst)) == 2  # frame by frame
    assert [one for one, _ in sent(off)] == [first, second]


def test_a_port_without_checksums_refuses_them_until_they_are_made(off, make_nic):
    plain = make_nic(offered=PLAIN)
    prepared = laid_out(off, tcp(700))
    pyvirtnet.defer_checksums(prepared)
    fields = header(NEEDS, start=34, offset=16)
    assert off.device.deliver(bytes(prepared[0]), header=fields)
    burst = off.port.recv_burst(4)
    for way in (burst, list(burst)):
        with pytest.raises(ValueError, match=r"fix_checksums\(burst\)"):
            plain.port.send_burst(way)
    assert pyvirtnet.fix_checksums(burst) == 1
    assert plain.port.send_burst(burst) == 1
    assert sent(plain) == [((0,) * 7, tcp(700))]


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "padded"])
def test_deferred_checksums_are_made_again_as_they_were(off, name):
    made = BUILDERS[name]()
    burst = laid_out(off, made)
    pyvirtnet.defer_checksums(burst)
    pyvirtnet.fix_checksums(burst)
    assert bytes(burst[0]) == made
    assert not burst.offload["flags"].any()


def test_bytes_behind_the_packet_are_none_of_the_devices_business(off):
    burst = laid_out(off, BUILDERS["padded"]())
    assert pyvirtnet.defer_checksums(burst) == 0
    assert bytes(burst[0]) == BUILDERS["padded"]()


def test_any_checksum_that_was_left_is_made(off):
    """Of a protocol that nobody here knows, from csum_start to the frame's end."""
    made = bytearray(frame(301))
    made[199:201] = bytes(2)
    assert off.device.deliver(bytes(made), header=header(NEEDS, start=101, offset=98))
    burst = off.port.recv_burst(1)
    assert pyvirtnet.fix_checksums(burst) == 1
    assert internet_checksum(bytes(burst[0])[101:]) == 0
    assert bytes(burst[0])[:199] == made[:199]
    assert bytes(burst[0])[201:] == made[201:]


# ---- hashes --------------------------------------------------------------------------------------

HASHED = {
    "split": PLAIN | mask("ctrl_vq", "hash_report"),
    "packed": PLAIN | mask("ctrl_vq", "hash_report", "ring_packed", "indirect_desc"),
    "small": (PLAIN | mask("ctrl_vq", "hash_report")) & ~mask("mrg_rxbuf"),
    "with offloads": OFFERED | mask("ctrl_vq", "hash_report"),
    "big": (OFFERED | mask("ctrl_vq", "hash_report", "indirect_desc")) & ~mask("mrg_rxbuf"),
}


@pytest.mark.rule("NET-030", "NET-034", "NET-079", "NET-081", "NET-085")
@pytest.mark.parametrize("name", HASHED)
def test_hashes_come_with_the_frames(make_nic, name):
    """The model objects to smaller buffers, and to what is not 0 in headers of sent frames."""
    nic = make_nic(offered=HASHED[name], features=[*NAMES, "hash_report"])
    assert Feature.HASH_REPORT in nic.port.features.negotiated
    sizes = [14, 60, 128, 129, 1514, 4084]
    sizes += [] if name == "small" else [4085, 9014, 40000]
    for number, size in enumerate(sizes):
        assert nic.device.deliver(frame(size, number), hashed=(0xDEADBEE0 + number, number))
    burst = nic.port.recv_burst(16)
    assert [bytes(one) for one in burst] == [frame(size, i) for i, size in enumerate(sizes)]
    assert burst.hash_value.tolist() == [0xDEADBEE0 + number for number in range(len(sizes))]
    assert burst.hash_type.tolist() == list(range(len(sizes)))
    assert burst[1::2].hash_type.tolist() == list(range(len(sizes)))[1::2]
    assert nic.port.send_burst(burst) == len(sizes)
    assert nic.device.take() == [bytes(one) for one in burst]
    nic.device.complete()
    assert nic.port.send_burst([frame(60), frame(2000)]) == 2
    assert nic.device.take_with_headers() == [bytes(20) + frame(60), bytes(20) + frame(2000)]
    nic.device.complete()
    if name == "with offloads":
        made = laid_out(nic, tcp(9000))
        pyvirtnet.defer_checksums(made, gso_size=1000)
        assert nic.port.send_burst(made) == 1
        (one,) = nic.device.take_with_headers()
        assert one[:4] == bytes((1, 1, 54, 0))
        assert one[12:20] == bytes(8)
        nic.device.complete()


def test_a_hash_type_that_there_is_none_of(make_nic):
    """It is a number in a column, and nothing is looked up by it."""
    nic = make_nic(offered=HASHED["split"], features=["hash_report"])
    assert nic.device.deliver(frame(60), hashed=(0xFFFFFFFF, 0xFFFF))
    burst = nic.port.recv_burst(1)
    assert bytes(burst[0]) == frame(60)
    assert (burst.hash_value.tolist(), burst.hash_type.tolist()) == ([0xFFFFFFFF], [0xFFFF])


@pytest.mark.rule("NET-086", "NET-030")
def test_hashes_come_on_request_only(make_nic):
    for features, offered in (
        ((), HASHED["split"]), (("hash_report",), PLAIN | mask("hash_report"))
    ):  # fmt: skip
        nic = make_nic(offered=offered, features=features)
        assert Feature.HASH_REPORT not in nic.port.features.negotiated
        assert nic.device.deliver(frame(60))
        assert nic.port.recv_burst(1).hash_type.tolist() == [0]
        with pytest.raises(pyvirtnet.FeatureMissing, match="cannot set what it hashes"):
            nic.port.hash_types = HashType.TCPV4


@pytest.mark.rule("CVQ-020", "CVQ-026")
def test_what_is_hashed(make_nic):
    nic = make_nic(offered=HASHED["split"], features=["hash_report"])
    assert nic.port.hash_types == HashType(0)
    for _ in range(2):
        nic.port.hash_types = HashType.TCPV4 | HashType.IPV6
        assert nic.port.hash_types == HashType.TCPV4 | HashType.IPV6
        assert nic.device.control.hashing[:13] == struct.pack("<I8xB", 2 | 8, 40)
        nic.port.reset()
        assert nic.device.control.hashing[:4] == struct.pack("<I", 2 | 8)
    with pytest.raises(ValueError, match="the device has"):
        nic.port.hash_types = 1 << 9


def test_offloads_are_switched_without_a_reset(make_nic):
    nic = make_nic(
        NetDevice(features=OFFERED | mask("ctrl_vq", "ctrl_guest_offloads"), queue_sizes=(64, 64)),
        features=NAMES,
    )
    assert Feature.GUEST_TSO4 in nic.port.offloads
    nic.port.offloads = ["guest_csum"]
    assert nic.port.offloads == {Feature.GUEST_CSUM}
    assert nic.device.deliver(tcp(100), header=header(NEEDS, start=34, offset=16))
    assert nic.port.recv_burst(4).offload["flags"].tolist() == [1]


def test_the_ring_holds_what_its_headers_need(make_nic):
    """Header room lies in front of slots and pages, and shifts them."""
    nic = make_nic(offered=OFFERED, features=NAMES)
    nic.pass_through([frame(size, size) for size in (60, 1514, PAGE * 4)])
