"""Filters over bursts, against libpcap's own interpreter; programs that must not run."""

import ctypes
import random
import struct

import numpy as np
import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Raw

import pyvirtnet
from pyvirtnet import Filter, bpf
from pyvirtnet._bpf import MAX_INSTRUCTIONS, Program

MACS = Ether(src="02:00:00:00:00:0a", dst="02:00:00:00:00:01")
V4, V6 = IP(src="192.0.2.10", dst="192.0.2.1"), IPv6(src="2001:db8::a", dst="2001:db8::1")
QUESTION = DNS(qd=DNSQR(qname="example.org"))
LONG = Raw(bytes(range(256)) * 40)
FRAMES = [
    bytes(frame)
    for frame in (
        MACS / ARP(pdst="192.0.2.1"),
        MACS / V4 / UDP(sport=1000, dport=53) / QUESTION,
        MACS / V4 / TCP(sport=1000, dport=80, flags="S"),
        MACS / V4 / ICMP() / LONG,
        MACS / IP(src="192.0.2.10", dst="192.0.2.1", options=b"\1" * 8) / UDP(dport=53) / LONG,
        MACS / IP(src="192.0.2.10", dst="192.0.2.1", frag=100) / UDP(dport=53) / Raw(b"x" * 60),
        MACS / V6 / UDP(dport=53) / LONG,
        MACS / V6 / TCP(dport=443) / Raw(b"x" * 100),
        MACS / Dot1Q(vlan=5) / V4 / UDP(dport=53) / Raw(b"x" * 60),
        MACS / Raw(b"\0"),
        Ether(src="02:00:00:00:00:0b", dst="ff:ff:ff:ff:ff:ff", type=0x88B5) / Raw(b"q" * 5000),
    )
]
EXPRESSIONS = [
    "",
    "arp",
    "ip",
    "ip6",
    "udp port 53",
    "tcp[tcpflags] & tcp-syn != 0",
    "icmp[icmptype] == icmp-echo",
    "host 192.0.2.1",
    "src net 192.0.2.0/28 and not arp",
    "ether src 02:00:00:00:00:0a",
    "broadcast",
    "vlan 5 and udp",
    "less 60",
    "greater 5000",
    "ip[2:2] > 576",
    "ether[1000] == 0xb6",
    "ether[4100:4] = 0xd2d3d4d5",
    "ip[6:2] & 0x1fff != 0",
    "udp[8:4] * 3 - 7 > 1000000 or len % 7 = 3",
    "ip6 and (udp or tcp) and portrange 50-500",
    "(ether[6:4] >> 3) ^ ether[10] != ether[0:4] << 2",
    "ip proto 17 and (ip[0] & 0xf) * 4 > 20",
    "len / 100 = 52",
]


@pytest.fixture(scope="module")
def port():
    with pyvirtnet.open("sim:loopback") as port:
        yield port


@pytest.fixture(scope="module")
def burst(port):
    assert port.send_burst(FRAMES) == len(FRAMES)
    return port.recv_burst(64)


class _Header(ctypes.Structure):
    """struct pcap_pkthdr."""

    _fields_ = (
        ("stamp", ctypes.c_long * 2),
        ("kept", ctypes.c_uint32),
        ("length", ctypes.c_uint32),
    )


def libpcap_says(code, frame):
    """Whether libpcap's interpreter lets the frame through."""
    raw = ctypes.create_string_buffer(code, len(code))
    program = bpf._Compiled(len(code) // 8, ctypes.addressof(raw))
    header = _Header((ctypes.c_long * 2)(), len(frame), len(frame))
    library = bpf._library()
    return bool(library.pcap_offline_filter(ctypes.byref(program), ctypes.byref(header), frame))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_filters_find_what_libpcap_finds(burst, expression):
    filtered = Filter(expression)(burst)
    assert filtered.dtype == np.bool_
    code = bpf.compiled(expression)
    assert filtered.tolist() == [libpcap_says(code, frame) for frame in FRAMES]
    assert len(Filter(expression)) == len(code) // 8


def test_which_frames_are_found(burst):
    found = {text: np.flatnonzero(Filter(text)(burst)).tolist() for text in EXPRESSIONS}
    assert found["arp"] == [0]
    assert found["udp port 53"] == [1, 4, 6]
    assert found["ether[4100:4] = 0xd2d3d4d5"] == [4]
    assert found["vlan 5 and udp"] == [8]
    assert found[""] == list(range(len(FRAMES)))


def test_slices_picked_frames_and_bursts_to_be_sent(port, burst):
    dns = Filter("udp port 53")
    assert dns(burst[1:]).tolist() == dns(burst).tolist()[1:]
    picked = burst[dns(burst)]
    assert [bytes(frame) for frame in picked] == [FRAMES[1], FRAMES[4], FRAMES[6]]
    assert dns(picked).all()
    assert dns(burst[:0]).tolist() == []
    tx = port.alloc_burst(2, len(FRAMES[6]))
    tx.data[1] = np.frombuffer(FRAMES[6], np.uint8)
    assert dns(tx).tolist() == [False, True]


@pytest.mark.parametrize("expression", ["udp prot 53", "(", "ether[0:3] = 1", "vlan 99999"])
def test_a_wrong_expression_is_refused(expression):
    with pytest.raises(ValueError, match="is no filter: "):
        Filter(expression)


def test_an_expression_goes_on_behind_a_nul():
    with pytest.raises(ValueError, match="has a NUL in it"):
        Filter("udp\0 this is no filter")


def test_an_expression_is_a_text():
    with pytest.raises(TypeError, match="a filter is a string such as"):
        Filter(5)


def test_without_libpcap_it_says_what_is_missing(monkeypatch):
    bpf._library.cache_clear()
    monkeypatch.setattr(bpf, "_NAMES", ("libnosuchpcap.so",))
    with pytest.raises(pyvirtnet.LibraryMissing, match="apt-get install libpcap"):
        Filter("arp")
    monkeypatch.undo()
    assert len(Filter("arp")) > 0


# ---- programs by hand --------------------------------------------------------------------------

CODES = {
    **{
        f"ld{size} {mode}": s | m
        for size, s in (("", 0), ("h", 8), ("b", 16))
        for mode, m in (("abs", 0x20), ("ind", 0x40))
    },
    "ld imm": 0x00,
    "ld mem": 0x60,
    "ld len": 0x80,
    "ldx imm": 0x01,
    "ldx mem": 0x61,
    "ldx len": 0x81,
    "ldx msh": 0xB1,
    "st": 0x02,
    "stx": 0x03,
    "neg": 0x84,
    "ja": 0x05,
    "ret": 0x06,
    "ret a": 0x16,
    "tax": 0x07,
    "txa": 0x87,
    **{
        f"alu {op:#x} {by}": 4 | op | by
        for op in (0, 16, 32, 48, 64, 80, 96, 112, 144, 160)
        for by in (0, 8)
    },
    **{f"jump {op:#x} {by}": 5 | op | by for op in (16, 32, 48, 64) for by in (0, 8)},
}


def program(*instructions):
    return b"".join(struct.pack("=HBBI", *(*it, 0, 0, 0)[:4]) for it in instructions)


def random_program(rng):
    """Sound ones: of every kind of instruction, jumps forward, constants of every size."""
    count = rng.randint(2, 40)
    made = []
    for at in range(count - 1):
        name, code = rng.choice(list(CODES.items()))
        left = count - at - 1
        k = rng.choice([rng.randrange(16), rng.randrange(300), rng.getrandbits(32), 31, 33])
        if "mem" in name or name in ("st", "stx"):
            k %= 16
        elif name == "ja":
            k = rng.randrange(left)
        elif code & 7 == 4:
            k = max(k, 1) % (32 if code & 0xF0 in (0x60, 0x70) else 1 << 32) or 1
        if name.startswith("ret") and rng.random() < 0.8:
            code = 0x87
        made.append((code, rng.randrange(min(left, 256)), rng.randrange(min(left, 256)), k))
    zeroed = [
        (0x00,),
        *((0x02, 0, 0, cell) for cell in range(16)),
    ]  # libpcap leaves them as they are
    return program(*zeroed, *made, (rng.choice([0x06, 0x16]), 0, 0, rng.choice([0, 1, 96])))


def test_random_programs_say_what_libpcaps_interpreter_says(burst):
    """Shifts by 32 and more are left out: there C's own rules are all that libpcap has."""
    rng = random.Random(7)
    verdicts = set()
    for _ in range(1500):
        code = random_program(rng)
        if any(it[0] & 0xFF in (0x6C, 0x7C) for it in struct.iter_unpack("=HBBI", code)):
            continue
        found = Program(code)(burst).tolist()
        assert found == [libpcap_says(code, frame) for frame in FRAMES], code.hex()
        verdicts |= {tuple(found)}
    assert len(verdicts) > 10


@pytest.mark.parametrize(("code", "amount"), [(0x64, 32), (0x74, 32), (0x64, 255), (0x74, 1 << 31)])
def test_what_is_shifted_out_is_gone(burst, code, amount):
    for by_x in (0, 8):
        shifted = program(
            (0x00, 0, 0, 7), (0x01, 0, 0, amount), (code | by_x, 0, 0, amount), (0x16,)
        )
        assert not Program(shifted)(burst).any()


@pytest.mark.parametrize(
    "code",
    [
        b"",
        b"1234567",
        program((0x06, 0, 0, 1)) + b"1",
        program((0x00, 0, 0, 1)),  # runs past its end
        program((0x05, 0, 0, 1), (0x06, 0, 0, 1)),  # jumps there
        program((0x05, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 1)),  # jumps back
        program((0x15, 1, 0, 1), (0x06, 0, 0, 1)),
        program((0x15, 0, 1, 1), (0x06, 0, 0, 1)),
        program((0x60, 0, 0, 16), (0x06, 0, 0, 1)),  # out of scratch memory
        program((0x61, 0, 0, 16), (0x06, 0, 0, 1)),
        program((0x02, 0, 0, 16), (0x06, 0, 0, 1)),
        program((0x03, 0, 0, 0xFFFFFFFF), (0x06, 0, 0, 1)),
        program((0x34, 0, 0, 0), (0x06, 0, 0, 1)),  # divides by zero
        program((0x94, 0, 0, 0), (0x06, 0, 0, 1)),
        program(*[(0x00, 0, 0, 1)] * MAX_INSTRUCTIONS, (0x06, 0, 0, 1)),
    ],
)
def test_a_program_that_is_not_sound_is_refused(code):
    with pytest.raises(ValueError, match="BPF program"):
        Program(code)


def test_codes_that_mean_nothing_are_refused():
    known = {*CODES.values(), 0x8C}
    for code in range(0x200):
        tried = program((code, 0, 0, 1), (0x06, 0, 0, 1))
        if code in known - {0x05}:
            Program(tried)
        else:
            with pytest.raises(ValueError, match="is not sound"):
                Program(tried)


def test_division_by_an_x_of_zero_refuses_the_frame(burst):
    for code in (0x3C, 0x9C):
        divides = program((0x00, 0, 0, 7), (code, 0, 0, 0), (0x06, 0, 0, 1))
        assert not Program(divides)(burst).any()


def test_a_load_behind_the_end_refuses_the_frame(burst):
    last = program((0x80,), (0x07,), (0x01, 0, 0, 0xFFFFFFFF), (0x40, 0, 0, 5), (0x06, 0, 0, 1))
    assert not Program(last)(burst).any()
    for length in {len(frame) for frame in FRAMES}:
        within = Program(program((0x30, 0, 0, length - 1), (0x06, 0, 0, 1)))(burst)
        assert within.tolist() == [len(frame) >= length for frame in FRAMES]


def test_a_filter_is_made_once_and_before_it_is_used(burst):
    unmade = Program.__new__(Program)
    with pytest.raises(TypeError, match="after it was made"):
        unmade(burst)
    made = Program(program((0x06, 0, 0, 1)))
    with pytest.raises(TypeError, match="made once"):
        made.__init__(program((0x06, 0, 0, 0)))
    assert made(burst).all()
