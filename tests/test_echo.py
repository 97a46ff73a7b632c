"""Pings, ARP requests and neighbour solicitations answered in place, against scapy's frames."""

import random
from ipaddress import ip_address

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.packet import Raw

import pyvirtnet

OURS, PEER, OTHER = "02:00:00:00:00:01", "02:00:00:00:00:0a", "02:00:00:00:00:0b"
EVERYBODY, GROUP = "ff:ff:ff:ff:ff:ff", "33:33:ff:00:00:01"
MAC = bytes.fromhex(OURS.replace(":", ""))
V4, PEER_V4, V6, PEER_V6 = "192.0.2.1", "192.0.2.10", "2001:db8::1", "2001:db8::a"
TO_US, ANSWER = Ether(dst=OURS, src=PEER), Ether(dst=PEER, src=OURS)
ASKING, ANSWERING = IP(src=PEER_V4, dst=V4), IP(src=V4, dst=PEER_V4)
ASKING_V6, ANSWERING_V6 = IPv6(src=PEER_V6, dst=V6), IPv6(src=V6, dst=PEER_V6)
SOLICITED = IPv6(src=PEER_V6, dst="ff02::1:ff00:1", hlim=255)
ADVERTISED = IPv6(src=V6, dst=PEER_V6, hlim=255)
WHO_HAS = ARP(op=1, hwsrc=PEER, psrc=PEER_V4, pdst=V4)
IS_AT = ARP(op=2, hwsrc=OURS, psrc=V4, hwdst=PEER, pdst=PEER_V4)
NS, SOURCE = ICMPv6ND_NS(tgt=V6), ICMPv6NDOptSrcLLAddr(lladdr=PEER)
NA, TARGET = ICMPv6ND_NA(tgt=V6, R=0, S=1, O=1), ICMPv6NDOptDstLLAddr(lladdr=OURS)
LONG = bytes(random.Random(1).randbytes(1300))


def echo(kind, data=b"x" * 40):
    return ICMP(type=kind, id=7, seq=3) / Raw(data)


def echo_v6(kind, data=b"x" * 40):
    return kind(id=7, seq=3, data=data)


ANSWERED = {
    "arp": (Ether(dst=EVERYBODY, src=PEER) / WHO_HAS, ANSWER / IS_AT),
    "arp to us alone": (TO_US / WHO_HAS, ANSWER / IS_AT),
    "arp, padded": (TO_US / WHO_HAS / Raw(bytes(18)), ANSWER / IS_AT / Raw(bytes(18))),
    "ping": (TO_US / ASKING / echo(8), ANSWER / ANSWERING / echo(0)),
    "ping of no data": (TO_US / ASKING / echo(8, b""), ANSWER / ANSWERING / echo(0, b"")),
    "ping in fragments": (TO_US / ASKING / echo(8, LONG), ANSWER / ANSWERING / echo(0, LONG)),
    "ping with options": (
        TO_US / IP(src=PEER_V4, dst=V4, options=b"\1" * 8) / echo(8),
        ANSWER / IP(src=V4, dst=PEER_V4, options=b"\1" * 8) / echo(0),
    ),
    "ping behind two tags": (
        TO_US / Dot1AD(vlan=7) / Dot1Q(vlan=5) / ASKING / echo(8),
        ANSWER / Dot1AD(vlan=7) / Dot1Q(vlan=5) / ANSWERING / echo(0),
    ),
    "ping over ipv6": (
        TO_US / ASKING_V6 / echo_v6(ICMPv6EchoRequest),
        ANSWER / ANSWERING_V6 / echo_v6(ICMPv6EchoReply),
    ),
    "long ping over ipv6": (
        TO_US / ASKING_V6 / echo_v6(ICMPv6EchoRequest, LONG),
        ANSWER / ANSWERING_V6 / echo_v6(ICMPv6EchoReply, LONG),
    ),
    "neighbour": (
        Ether(dst=GROUP, src=PEER) / SOLICITED / NS / SOURCE,
        ANSWER / ADVERTISED / NA / TARGET,
    ),
    "neighbour, tagged": (
        Ether(dst=GROUP, src=PEER) / Dot1AD(vlan=7) / Dot1Q(vlan=5) / SOLICITED / NS / SOURCE,
        ANSWER / Dot1AD(vlan=7) / Dot1Q(vlan=5) / ADVERTISED / NA / TARGET,
    ),
    "neighbour still there?": (
        TO_US / IPv6(src=PEER_V6, dst=V6, hlim=255) / NS,
        ANSWER / ADVERTISED / NA,
    ),
}
LEFT_ALONE = {
    "an answer": TO_US / ASKING / echo(0),
    "an arp answer": TO_US / IS_AT,
    "an answer over ipv6": TO_US / ASKING_V6 / echo_v6(ICMPv6EchoReply),
    "an advertisement": TO_US / SOLICITED / NA / TARGET,
    "another station's": Ether(dst=OTHER, src=PEER) / ASKING / echo(8),
    "another station's arp": Ether(dst=OTHER, src=PEER) / WHO_HAS,
    "a ping of everybody": Ether(dst=EVERYBODY, src=PEER) / ASKING / echo(8),
    "a ping of a group": TO_US / IP(src=PEER_V4, dst="224.0.0.1") / echo(8),
    "a ping of an ipv6 group": TO_US / IPv6(src=PEER_V6, dst="ff02::1") / ICMPv6EchoRequest(),
    "a ping from nobody": TO_US / IP(src="0.0.0.0", dst=V4) / echo(8),
    "a ping from a group": TO_US / IP(src="239.1.1.1", dst=V4) / echo(8),
    "a ping from nobody over ipv6": TO_US / IPv6(src="::", dst=V6) / ICMPv6EchoRequest(),
    "from a group's address": Ether(dst=OURS, src=GROUP) / ASKING / echo(8),
    "a first fragment": TO_US / IP(src=PEER_V4, dst=V4, flags="MF") / echo(8),
    "a last fragment": TO_US / IP(src=PEER_V4, dst=V4, frag=3) / echo(8),
    "an arp probe": TO_US / ARP(op=1, hwsrc=PEER, psrc="0.0.0.0", pdst=V4),
    "an arp announcement": TO_US / ARP(op=1, hwsrc=PEER, psrc=V4, pdst=V4),
    "is the address free?": Ether(dst=GROUP, src=PEER)
    / IPv6(src="::", dst="ff02::1:ff00:1", hlim=255)
    / NS
    / SOURCE,
    "a solicitation through a router": Ether(dst=GROUP, src=PEER)
    / IPv6(src=PEER_V6, dst="ff02::1:ff00:1", hlim=254)
    / NS
    / SOURCE,
    "no room to say where we are": Ether(dst=GROUP, src=PEER) / SOLICITED / NS,
    "udp": TO_US / ASKING / UDP(sport=8, dport=8) / Raw(b"x" * 20),
    "tcp over ipv6": TO_US / ASKING_V6 / TCP(),
    "a total length beyond the frame": TO_US / IP(src=PEER_V4, dst=V4, len=69) / echo(8),
    "a total length without a message": TO_US / IP(src=PEER_V4, dst=V4, len=27) / echo(8),
    "a payload beyond the frame": TO_US
    / IPv6(src=PEER_V6, dst=V6, plen=49)
    / echo_v6(ICMPv6EchoRequest),
    "arp of another kind": TO_US / ARP(op=1, hwtype=6, hwsrc=PEER, psrc=PEER_V4, pdst=V4),
}


@pytest.fixture(scope="module")
def port():
    with pyvirtnet.open("sim:loopback") as port:
        yield port


def through(port, frames):
    assert port.send_burst(frames) == len(frames)
    burst = port.recv_burst(len(frames))
    assert len(burst) == len(frames)
    return burst


@pytest.mark.parametrize("addresses", [None, [V4, V6], (V4, "198.51.100.1", V6, "2001:db8::2")])
@pytest.mark.parametrize("name", ANSWERED)
def test_requests_become_their_answers(port, name, addresses):
    request, answer = map(bytes, ANSWERED[name])
    burst = through(port, [request, b"\xff" * 60, request])
    answered = pyvirtnet.answer_pings(burst, port.mac, addresses)
    assert answered.dtype == np.bool_
    assert answered.tolist() == [True, False, True]
    back = [bytes(frame)[: len(answer)] for frame in burst]
    assert (back[0], back[2]) == (answer, answer)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_frames_are_left_alone(port, name):
    frame = bytes(LEFT_ALONE[name])
    burst = through(port, [frame])
    assert pyvirtnet.answer_pings(burst, port.mac).tolist() == [False]
    assert bytes(burst[0]) == frame


@pytest.mark.parametrize("name", ANSWERED)
def test_requests_for_other_addresses_are_left_alone(port, name):
    request = bytes(ANSWERED[name][0])
    burst = through(port, [request])
    addresses = ["192.0.2.2", "198.51.100.1", "2001:db8::2"]
    assert pyvirtnet.answer_pings(burst, MAC, addresses).tolist() == [False]
    assert not pyvirtnet.answer_pings(burst, MAC, []).any()
    assert bytes(burst[0]) == request


@pytest.mark.parametrize("name", ANSWERED)
def test_a_request_cut_anywhere_is_left_alone_or_answered_within_its_bounds(port, name):
    request = bytes(ANSWERED[name][0])[:128]
    cut = [request[:length] for length in range(14, len(request))]
    burst = through(port, cut)
    answered = pyvirtnet.answer_pings(burst, MAC)
    padded = "padded" in name  # the padding may be cut off
    assert padded or not answered.any()
    assert [bytes(frame) for frame in burst[~answered]] == [
        frame for frame, done in zip(cut, answered, strict=True) if not done
    ]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(ANSWERED)),
    changes=st.lists(st.tuples(st.integers(12, 93), st.integers(0, 255)), max_size=4),
)
def test_damaged_requests_change_nothing_behind_the_headers(port, name, changes):
    frame = bytearray(bytes(ANSWERED[name][0]).ljust(140, b"\xee"))
    for at, value in changes:
        frame[at] = value
    burst = through(port, [bytes(frame)])
    answered = pyvirtnet.answer_pings(burst, MAC)
    after = bytes(burst[0])
    assert after[94:] == frame[94:]
    if answered[0]:
        assert after[:12] == bytes(frame[6:12]) + MAC
    else:
        assert after == frame


def test_slices_and_bursts_to_be_sent(port):
    request, answer = map(bytes, ANSWERED["ping"])
    burst = through(port, [request] * 5)
    assert pyvirtnet.answer_pings(burst[1::2], MAC).tolist() == [True, True]
    assert [bytes(frame) == answer for frame in burst] == [False, True, False, True, False]
    tx = port.alloc_burst(2, len(request))
    tx.data[:] = np.frombuffer(request, np.uint8)
    assert pyvirtnet.answer_pings(tx[1:], MAC).tolist() == [True]
    assert [row.tobytes() for row in tx.data] == [request, answer]


@pytest.mark.parametrize("address", [V4, ip_address(V4), ip_address(V6)])
def test_one_address_is_a_list_of_one(port, address):
    request, answer = TO_US / ASKING / echo(8), [str(address) == V4]
    port.send_burst([bytes(request)])
    assert pyvirtnet.answer_pings(port.recv_burst(1), MAC, address).tolist() == answer


def test_no_frames_have_no_answers(port):
    assert pyvirtnet.answer_pings(port.recv_burst(1), MAC).tolist() == []


@pytest.mark.parametrize(
    ("mac", "addresses"), [(MAC[:5], None), (MAC, ["192.0.2"]), (MAC, ["here"])]
)
def test_what_is_no_address_is_refused(port, mac, addresses):
    with pytest.raises(ValueError, match="address"):
        pyvirtnet.answer_pings(port.recv_burst(1), mac, addresses)
