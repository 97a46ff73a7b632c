"""Header work on whole bursts, against frames turned round by hand."""

import random

import pytest

import pyvirtnet

A, B = bytes(range(6)), bytes(range(10, 16))


def ipv4(protocol, payload, options=b"", fragment=0):
    head = bytes([0x45 + len(options) // 4, 0, 0, 0, 0, 0]) + fragment.to_bytes(2, "big")
    return head + bytes([64, protocol, 7, 7]) + b"srcAdstB" + options + payload


def ipv6(protocol, payload):
    return bytes([0x60, 0, 0, 0, 0, 0, protocol, 64]) + b"S" * 16 + b"D" * 16 + payload


def turned(frame, *swaps):
    """`frame` with its MAC addresses swapped, and (offset, size) pairs of neighbours as well."""
    out = bytearray(frame)
    for at, size in ((0, 6), *swaps):
        out[at : at + size], out[at + size : at + 2 * size] = (
            frame[at + size : at + 2 * size],
            frame[at : at + size],
        )
    return bytes(out)


V4, V6, PORTS = bytes.fromhex("0800"), bytes.fromhex("86dd"), b"\x11\x11\x22\x22"
TAG = bytes.fromhex("81000005")
CASES = {
    "udp over ipv4": (A + B + V4 + ipv4(17, PORTS), (26, 4), (34, 2)),
    "tcp over ipv4 with options": (A + B + V4 + ipv4(6, PORTS, b"o" * 8), (26, 4), (42, 2)),
    "icmp keeps its type": (A + B + V4 + ipv4(1, PORTS), (26, 4)),
    "a later fragment": (A + B + V4 + ipv4(17, PORTS, fragment=1), (26, 4)),
    "a first fragment": (A + B + V4 + ipv4(17, PORTS, fragment=0x2000), (26, 4), (34, 2)),
    "tcp over ipv6": (A + B + V6 + ipv6(6, PORTS), (22, 16), (54, 2)),
    "behind a vlan tag": (A + B + TAG + V4 + ipv4(17, PORTS), (30, 4), (38, 2)),
    "behind two tags": (A + B + TAG + TAG + V6 + ipv6(17, PORTS), (30, 16), (62, 2)),
    "arp": (A + B + bytes.fromhex("0806") + b"x" * 28,),
    "cut in the ip header": (A + B + V4 + ipv4(17, b"")[:19],),
    "cut before the ports": (A + B + V4 + ipv4(17, PORTS[:3]), (26, 4)),
    "cut in the tag": (A + B + TAG[:2] + b"\0",),
    "only a header": (A + B + V4,),
    "a lying header length": (A + B + V4 + bytes([0x4F]) + ipv4(17, PORTS)[1:], (26, 4)),
}


@pytest.fixture
def port():
    with pyvirtnet.open("sim:loopback") as port:
        yield port


@pytest.mark.parametrize("name", CASES)
def test_flows_are_turned_round(port, name):
    frame, *swaps = CASES[name]
    assert port.send_burst([frame] * 3) == 3
    burst = port.recv_burst(3)
    ports = pyvirtnet.swap_flows(burst[1:])
    expected = turned(frame, *swaps)
    assert [bytes(f) for f in burst] == [frame, expected, expected]
    assert ports == (2 if swaps and swaps[-1][1] == 2 else 0)


def test_turning_twice_changes_nothing(port):
    random.seed(5)
    frames = [random.randbytes(random.randint(14, 300)) for _ in range(200)]
    assert port.send_burst(frames) == 200
    burst = port.recv_burst(256)
    pyvirtnet.swap_flows(burst)
    pyvirtnet.swap_flows(burst)
    assert [bytes(f) for f in burst] == frames


def test_macs_are_swapped_where_they_lie(port):
    frames = [bytes([i]) * 6 + bytes([100 + i]) * 6 + bytes(48) for i in range(10)]
    port.send_burst(frames)
    burst = port.recv_burst(64)
    pyvirtnet.swap_macs(burst[[1, 3]])
    for i, frame in enumerate(burst):
        assert bytes(frame) == (turned(frames[i]) if i in (1, 3) else frames[i])
    rows = port.alloc_burst(2, 60)
    rows.data[:, :12] = list(A + B)
    pyvirtnet.swap_macs(rows)
    assert (rows.data[:, :12] == list(B + A)).all()


@pytest.mark.parametrize("call", [pyvirtnet.swap_macs, pyvirtnet.swap_flows])
@pytest.mark.parametrize("wrong", [None, b"x" * 60, [b"x" * 60]])
def test_only_bursts_are_taken(call, wrong):
    with pytest.raises(TypeError):
        call(wrong)
