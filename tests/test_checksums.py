"""Checksums of whole bursts, against frames built by plain Python that knows what is right."""

import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvirtnet

MACS = bytes(range(12))
TAG = bytes.fromhex("81000005")
SERVICE_TAG = bytes.fromhex("88a80005")
PROTOCOLS = {"icmp": 1, "tcp": 6, "udp": 17, "icmpv6": 58, "gre": 47, "sctp": 132}


def internet_checksum(data):
    """RFC 1071 by the book: big-endian words, end-around carry."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def segment(kind, body, pseudo, checksum=None):
    """What IP carries; `checksum` None is the right one."""
    if kind == "tcp":
        front, behind = b"\x11\x11\x22\x22" + bytes(8) + b"\x50\x10\x01\x00", b"\0\0"
    elif kind == "udp":
        front, behind = b"\x11\x11\x22\x22" + struct.pack("!H", 8 + len(body)), b""
    elif kind in ("icmp", "icmpv6"):
        front, behind = b"\x08\0" if kind == "icmp" else b"\x80\0", b"\0\1\0\2"
    else:
        return body
    if checksum is None:
        length = len(front) + 2 + len(behind) + len(body)
        prefix = b"" if kind == "icmp" else pseudo + struct.pack("!II", length, PROTOCOLS[kind])
        checksum = internet_checksum(prefix + front + bytes(2) + behind + body)
        if kind == "udp":
            checksum = checksum or 0xFFFF
    return front + struct.pack("!H", checksum) + behind + body


def ipv4(kind, body, *, options=b"", fragment=0, checksum=None, header_checksum=None):
    addresses = bytes([10, 0, 0, 1, 192, 168, 200, 250])
    payload = segment(kind, body, addresses, checksum)
    front = bytes([0x45 + len(options) // 4, 0]) + struct.pack(
        "!HHHBB", 20 + len(options) + len(payload), 0x1234, fragment, 64, PROTOCOLS[kind]
    )
    if header_checksum is None:
        header_checksum = internet_checksum(front + bytes(2) + addresses + options)
    return front + struct.pack("!H", header_checksum) + addresses + options + payload


def ipv6(kind, body, *, extensions=(), checksum=None):
    """`extensions` are pairs: the number of a header, and the header but its first byte."""
    addresses = bytes(range(0x20, 0x40))
    numbers = [number for number, _ in extensions] + [PROTOCOLS[kind]]
    chain = b"".join(
        bytes([following]) + rest
        for following, (_, rest) in zip(numbers[1:], extensions, strict=True)
    )
    payload = chain + segment(kind, body, addresses, checksum)
    return struct.pack("!IHBB", 0x60000000, len(payload), numbers[0], 64) + addresses + payload


def frame(packet, tags=b"", padding=b""):
    kind = {4: b"\x08\x00", 6: b"\x86\xdd"}[packet[0] >> 4]
    return MACS + tags + kind + packet + padding


OPTIONS = bytes([1, 1, 1, 0]) * 10
HOP_BY_HOP = (0, b"\0" + bytes(6))
DESTINATION = (60, b"\2" + bytes(range(22)))
ROUTING_DONE = (43, b"\2\4\0" + bytes(20))
ROUTING_ON = (43, b"\2\4\1" + bytes(20))
ATOMIC = (44, b"\0\0\0abcd")
FIRST_PART = (44, b"\0\0\1abcd")
LONG_ROUTING = (43, b"\x10\4\0" + bytes(132))  # ends behind the linear head

# Each builder makes one frame: right by default, with other checksums if told.
BUILDERS = {
    "udp over ipv4": lambda **k: frame(ipv4("udp", b"hello", **k)),
    "tcp over ipv4": lambda **k: frame(ipv4("tcp", b"hello!", **k)),
    "icmp": lambda **k: frame(ipv4("icmp", b"ping", **k)),
    "tcp without payload": lambda **k: frame(ipv4("tcp", b"", **k)),
    "with options": lambda **k: frame(ipv4("udp", b"hello", options=OPTIONS, **k)),
    "behind a tag": lambda **k: frame(ipv4("udp", b"hello", **k), TAG),
    "behind two tags": lambda **k: frame(ipv4("tcp", b"hello", **k), SERVICE_TAG + TAG),
    "padded": lambda **k: frame(ipv4("udp", b"odd", **k), padding=b"\xff" * 21),
    "udp over ipv6": lambda **k: frame(ipv6("udp", b"hello", **k)),
    "tcp over ipv6": lambda **k: frame(ipv6("tcp", b"hello", **k), TAG),
    "icmpv6": lambda **k: frame(ipv6("icmpv6", b"ping", **k)),
    "extension headers": lambda **k: frame(
        ipv6("udp", b"x", extensions=[HOP_BY_HOP, DESTINATION, ROUTING_DONE, ATOMIC], **k)
    ),
    "headers longer than the head": lambda **k: frame(
        ipv6("tcp", b"y" * 50, extensions=[LONG_ROUTING], **k)
    ),
    "a long frame": lambda **k: frame(ipv4("udp", bytes(range(256)) * 5, **k)),
    "a jumbo frame": lambda **k: frame(ipv4("tcp", random.Random(1).randbytes(8950), **k)),
    "the longest frame": lambda **k: frame(ipv6("udp", random.Random(2).randbytes(65000), **k)),
}
UNTOUCHED = {  # not IP, or no checksum of ours
    "arp": MACS + bytes.fromhex("0806") + bytes(28),
    "only an ethernet header": MACS + b"\x88\xb5",
    "three tags": MACS + TAG * 3 + b"\x08\0" + ipv4("udp", b"x", checksum=1, header_checksum=2),
    "sctp over ipv6": frame(ipv6("sctp", bytes(12))),
    "icmp over ipv6": frame(ipv6("icmp", bytes(12), checksum=7)),
    "no next header": frame(ipv6("gre", b"")),
    "the first part of a datagram": frame(ipv6("udp", b"x", extensions=[FIRST_PART], checksum=7)),
    "on its way": frame(ipv6("udp", b"x", extensions=[ROUTING_ON], checksum=7)),
}


def patched(data, at, new):
    return data[:at] + new + data[at + len(new) :]


V4 = frame(ipv4("udp", b"hello", checksum=1, header_checksum=2))
V4_TCP = frame(ipv4("tcp", b"hello", checksum=1, header_checksum=2))
V6 = frame(ipv6("tcp", b"hello", checksum=1))
EXTENDED = frame(ipv6("udp", b"x", extensions=[DESTINATION], checksum=1))
LIES = {
    "a tag cut short": MACS + TAG[:3],
    "ipv4 cut in its header": V4[: 14 + 19],
    "ipv4 of version 6": patched(V4, 14, b"\x65"),
    "ipv4 header too short": patched(V4, 14, b"\x44"),
    "ipv4 header longer than the packet": patched(V4, 14, b"\x4f"),
    "ipv4 total below its header": patched(V4, 16, b"\0\x13"),
    "ipv4 total beyond the frame": patched(V4, 16, struct.pack("!H", len(V4) - 14 + 1)),
    "ipv4 cut by a byte": V4[:-1],
    "udp length below its header": patched(V4, 38, b"\0\7"),
    "udp length beyond the packet": patched(V4, 38, b"\0\x0e"),
    "udp length into the padding": patched(V4, 38, b"\0\x0e") + bytes(9),
    "udp without room for its header": patched(V4, 16, b"\0\x1b"),
    "tcp offset below its header": patched(V4_TCP, 46, b"\x40"),
    "tcp offset beyond the packet": patched(V4_TCP, 46, b"\xf0"),
    "tcp without room for its header": patched(V4_TCP, 16, b"\0\x27"),
    "icmp of three bytes": frame(
        ipv4("gre", b"\x08\0\0", header_checksum=2).replace(b"\x2f", b"\1")
    ),
    "ipv6 cut in its header": V6[: 14 + 39],
    "ipv6 of version 4": patched(V6, 14, b"\x40"),
    "ipv6 length beyond the frame": V6[:-1],
    "sctp over ipv6 cut by a byte": frame(ipv6("sctp", bytes(12)))[:-1],
    "a jumbogram's length": patched(EXTENDED, 18, b"\0\0"),
    "an extension header beyond the packet": patched(EXTENDED, 55, b"\4"),
    "an extension header into the padding": patched(EXTENDED, 55, b"\4") + b"\x08\0" * 50,
    "an extension header's endless length": patched(EXTENDED, 55, b"\xff"),
}


@pytest.fixture(scope="module", params=["fill", "random"])
def port(request):
    """A loopback that merges full pages, and one that splits frames anywhere."""
    with pyvirtnet.open(f"sim:loopback?queue_size=512&merge={request.param}") as port:
        yield port


@pytest.fixture(scope="module")
def memory():
    with pyvirtnet.open("sim:loopback") as port:
        yield port


@pytest.fixture(scope="module")
def scattering():
    with pyvirtnet.open("sim:loopback?queue_size=512&merge=random") as port:
        yield port


def received(port, frames):
    assert port.send_burst(frames) == len(frames)
    burst = port.recv_burst(256)
    assert len(burst) == len(frames)
    return burst


def rows(port, frames):
    burst = port.alloc_burst(len(frames), max(map(len, frames)))
    for row, data in zip(burst.data, frames, strict=True):
        row[: len(data)] = list(data)
    burst.set_lengths([len(data) for data in frames])
    return burst


def contents(burst):
    return [bytes(one) for one in burst]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("laid_out", [received, rows])
def test_checksums_are_written(port, name, laid_out):
    build = BUILDERS[name]
    right = build()
    v4 = b"\x08\0" in (right[12:14], right[16:18], right[20:22])
    wrong = build(checksum=0x1234, **({"header_checksum": 0} if v4 else {}))
    bad = [wrong, build(checksum=0x1234), right]
    burst = laid_out(port, bad)
    assert pyvirtnet.checksums_ok(burst).tolist() == [False, False, True]
    assert pyvirtnet.fix_checksums(burst) == 3
    assert contents(burst) == [right] * 3
    assert pyvirtnet.checksums_ok(burst).all()


@pytest.mark.parametrize("name", UNTOUCHED)
def test_what_has_no_checksum_is_left_alone(port, name):
    burst = received(port, [UNTOUCHED[name]])
    assert pyvirtnet.fix_checksums(burst) == 0
    assert contents(burst) == [UNTOUCHED[name]]
    assert pyvirtnet.checksums_ok(burst).tolist() == [True]


@pytest.mark.parametrize("name", LIES)
@pytest.mark.parametrize("laid_out", [received, rows])
def test_a_frame_that_lies_about_lengths_is_left_alone(port, name, laid_out):
    good = BUILDERS["udp over ipv4"]()
    burst = laid_out(port, [LIES[name], good])
    assert pyvirtnet.fix_checksums(burst) == 1
    assert contents(burst) == [LIES[name], good]
    assert pyvirtnet.checksums_ok(burst).tolist() == [False, True]


@pytest.mark.parametrize("fragment", [0x2000, 1, 0x3FFF])
def test_a_datagrams_fragment_has_its_header_mended_alone(memory, fragment):
    wrong = frame(ipv4("udp", b"part", fragment=fragment, checksum=7, header_checksum=0))
    right = frame(ipv4("udp", b"part", fragment=fragment, checksum=7))
    burst = rows(memory, [wrong, right])
    assert pyvirtnet.checksums_ok(burst).tolist() == [False, True]
    assert pyvirtnet.fix_checksums(burst) == 2
    assert contents(burst) == [right, right]


def test_other_protocols_have_their_ipv4_header_mended(memory):
    burst = rows(memory, [frame(ipv4("gre", b"tunnel", header_checksum=0))])
    assert pyvirtnet.fix_checksums(burst) == 1
    assert contents(burst) == [frame(ipv4("gre", b"tunnel"))]


def test_udp_without_a_checksum_is_right_over_ipv4_alone(memory):
    none = [frame(ipv4("udp", b"hello", checksum=0)), frame(ipv6("udp", b"hello", checksum=0))]
    burst = rows(memory, none)
    assert pyvirtnet.checksums_ok(burst).tolist() == [True, False]
    assert pyvirtnet.fix_checksums(burst) == 2
    assert contents(burst) == [frame(ipv4("udp", b"hello")), frame(ipv6("udp", b"hello"))]


def test_udp_checksums_of_zero_are_written_as_ones(memory):
    for word in range(1 << 16):  # the one payload whose sum comes out as zero
        body = struct.pack("!H", word)
        if (right := frame(ipv4("udp", body)))[40:42] == b"\xff\xff":
            break
    burst = rows(memory, [frame(ipv4("udp", body, checksum=0x5555))])
    assert pyvirtnet.fix_checksums(burst) == 1
    assert contents(burst) == [right]
    assert right[40:42] == b"\xff\xff"


def test_an_icmp_message_of_zeroes_has_a_checksum_of_ones(memory):
    packet = patched(ipv4("icmp", b"", checksum=0), 20, bytes(8))
    burst = rows(memory, [frame(packet)])
    assert not pyvirtnet.checksums_ok(burst)[0]
    assert pyvirtnet.fix_checksums(burst) == 1
    assert contents(burst)[0][36:38] == b"\xff\xff"
    assert pyvirtnet.checksums_ok(burst)[0]


def test_every_byte_may_lie_in_a_page_of_its_own(make_nic):
    build = BUILDERS["headers longer than the head"]
    nic = make_nic(queue_sizes=(512, 512))
    wrong = build(checksum=0x1234)
    assert nic.device.deliver(wrong, lengths=[12] + [1] * len(wrong))
    burst = nic.port.recv_burst(1)
    assert len(burst[0].frags) == len(wrong) - 128
    assert pyvirtnet.fix_checksums(burst) == 1
    assert contents(burst) == [build()]


def test_slices_and_picked_frames(port):
    wrong = [frame(ipv4("udp", bytes([i]), checksum=1)) for i in range(8)]
    right = [frame(ipv4("udp", bytes([i]))) for i in range(8)]
    burst = received(port, wrong)
    assert pyvirtnet.fix_checksums(burst[1:3]) == 2
    assert pyvirtnet.fix_checksums(burst[[7, 5]]) == 2
    expected = [right[i] if i in (1, 2, 5, 7) else wrong[i] for i in range(8)]
    assert contents(burst) == expected
    good = pyvirtnet.checksums_ok(burst)
    assert contents(burst[good]) == [right[i] for i in (1, 2, 5, 7)]
    assert pyvirtnet.fix_checksums(burst[:0]) == 0
    assert pyvirtnet.checksums_ok(burst[:0]).shape == (0,)


def test_mended_frames_can_be_forwarded(port):
    burst = received(port, [BUILDERS["a jumbo frame"](checksum=1)])
    pyvirtnet.fix_checksums(burst)
    assert port.send_burst(burst) == 1
    assert contents(port.recv_burst(1)) == [BUILDERS["a jumbo frame"]()]


def test_only_rows_are_written(memory):
    burst = rows(memory, [BUILDERS["padded"](checksum=1)] * 3)
    before = burst.data.copy()
    burst.set_lengths([len(before[0]) - 21, len(before[0]), 14 + 30])
    assert pyvirtnet.fix_checksums(burst) == 2
    changed = np.argwhere(burst.data != before).tolist()
    assert {at for _, at in changed} <= {40, 41}
    assert {row for row, _ in changed} == {0, 1}


@pytest.mark.parametrize("call", [pyvirtnet.fix_checksums, pyvirtnet.checksums_ok])
@pytest.mark.parametrize("wrong", [None, b"x" * 60, [b"x" * 60]])
def test_only_bursts_are_taken(call, wrong):
    with pytest.raises(TypeError):
        call(wrong)


BODIES = st.binary(max_size=300)


@st.composite
def packets(draw):
    checksum = draw(st.sampled_from([None, 0, 1, 0xFFFF]))
    body = draw(BODIES)
    if draw(st.booleans()):
        kind = draw(st.sampled_from(["udp", "tcp", "icmp", "gre"]))
        options = OPTIONS[: 4 * draw(st.integers(0, 10))]
        return ipv4(kind, body, options=options, checksum=checksum)
    kind = draw(st.sampled_from(["udp", "tcp", "icmpv6", "sctp"]))
    known = [HOP_BY_HOP, DESTINATION, ROUTING_DONE, ATOMIC, LONG_ROUTING]
    return ipv6(
        kind, body, extensions=draw(st.lists(st.sampled_from(known), max_size=3)), checksum=checksum
    )


@given(packets(), st.sampled_from([b"", TAG, SERVICE_TAG + TAG]), st.binary(max_size=20))
@settings(deadline=None, max_examples=300)
def test_any_packet_is_mended_as_the_book_says(scattering, packet, tags, padding):
    right = by_the_book(packet)
    for laid_out in (received, rows):
        burst = laid_out(scattering, [frame(packet, tags, padding)])
        pyvirtnet.fix_checksums(burst)
        assert contents(burst) == [frame(right, tags, padding)]
        assert pyvirtnet.checksums_ok(burst).all()


def by_the_book(packet):
    """A packet whose payload is known to begin where the builders put it, mended."""
    if packet[0] >> 4 == 4:
        at, kind, addresses = (packet[0] & 15) * 4, packet[9], packet[12:20]
        packet = patched(packet, 10, bytes(2))
        packet = patched(packet, 10, struct.pack("!H", internet_checksum(packet[:at])))
    else:
        at, kind, addresses = 40, packet[6], packet[8:40]
        while kind in (0, 43, 44, 60):
            kind, at = packet[at], at + 8 * (1 + packet[at + 1])
    field = {1: 2, 6: 16, 17: 6, 58: 2}.get(kind)
    if field is None:
        return packet
    body = patched(packet[at:], field, bytes(2))
    pseudo = b"" if kind == 1 else addresses + struct.pack("!II", len(body), kind)
    checksum = internet_checksum(pseudo + body)
    if kind == 17:
        checksum = checksum or 0xFFFF
    return packet[:at] + patched(body, field, struct.pack("!H", checksum))


@given(st.binary(min_size=14, max_size=200), st.sampled_from(["0800", "86dd", "81000800"]))
@settings(deadline=None, max_examples=300)
def test_any_bytes_are_survived_and_mending_twice_is_mending_once(scattering, data, kind):
    data = data[:12] + bytes.fromhex(kind) + data[12:]
    burst = received(scattering, [data])
    fixed = pyvirtnet.fix_checksums(burst)
    once = contents(burst)
    assert len(once[0]) == len(data)
    assert fixed or once == [data]
    assert pyvirtnet.fix_checksums(burst) == fixed
    assert contents(burst) == once
    if fixed:
        assert pyvirtnet.checksums_ok(burst).all()
