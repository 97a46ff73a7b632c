"""The control queue of QEMU's own device: filters that filter, addresses, announcements, resets."""

import time
from collections.abc import Iterator

import pytest

import pyvirtnet
from pyvirtnet import CommandRefused, Feature, FeatureMissing, Mac, Port
from pyvirtnet.cli import bind

MACHINE = {"ports": 2}

NIC, PEER = "0000:00:04.0", "0000:00:05.0"
OURS = Mac(bytes.fromhex("525400000002"))
OTHER, GROUP = Mac(bytes.fromhex("0200000000aa")), Mac(bytes.fromhex("01005e0000aa"))
BROADCAST = Mac(b"\xff" * 6)
SECONDS = 20


@pytest.fixture(scope="module")
def bound() -> Iterator[None]:
    assert bind.main(["bind", NIC, PEER]) == 0
    yield
    assert bind.main(["restore", NIC, PEER]) == 0


@pytest.fixture
def ports(bound: None) -> Iterator[tuple[Port, Port]]:
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER, features=["+ctrl_vlan"]) as rx:
        yield tx, rx


def frame(to: Mac, number: int, tag: int | None = None) -> bytes:
    tagged = b"" if tag is None else b"\x81\x00" + tag.to_bytes(2, "big")
    return (
        to + bytes.fromhex("525400000001") + tagged + b"\x88\xb5" + number.to_bytes(4, "big") * 12
    )


def arrive(ports: tuple[Port, Port], *kinds: tuple[Mac, int | None]) -> list[bool]:
    """Which of these frames are let in; one for the NIC itself, sent last, always is."""
    tx, rx = ports
    number = time.monotonic_ns() & 0xFFFF_FF00  # none of an earlier call
    sent = [frame(to, number + at, tag) for at, (to, tag) in enumerate(kinds)]
    last = frame(rx.mac, number + 0xFF)
    waiting = [*sent, last]
    end = time.monotonic() + SECONDS
    while waiting and time.monotonic() < end:
        waiting = waiting[tx.send_burst(waiting) :]
    got: list[bytes] = []
    while last not in got:
        assert time.monotonic() < end, "the frame for the NIC itself did not arrive"
        got += [bytes(one) for one in rx.recv_burst(64, timeout=1)]
    return [one in got for one in sent]


def test_what_qemu_offers_is_negotiated(ports: tuple[Port, Port]) -> None:
    tx, rx = ports
    commands = {Feature.CTRL_VQ, Feature.CTRL_RX, Feature.CTRL_RX_EXTRA, Feature.CTRL_MAC_ADDR,
                Feature.GUEST_ANNOUNCE}  # fmt: skip
    assert commands <= rx.features.negotiated
    assert Feature.CTRL_VLAN in rx.features.negotiated - tx.features.negotiated


def test_promiscuous_mode(ports: tuple[Port, Port]) -> None:
    """QEMU's device begins with it."""
    _, rx = ports
    kinds = [(OTHER, None), (GROUP, None), (BROADCAST, None)]
    assert rx.promiscuous is None
    assert arrive(ports, *kinds) == [True, True, True]
    rx.promiscuous = False
    assert arrive(ports, *kinds) == [False, False, True]
    rx.promiscuous = True
    assert arrive(ports, *kinds) == [True, True, True]


def test_the_other_modes(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    kinds = [(OTHER, None), (GROUP, None), (BROADCAST, None)]
    rx.promiscuous = False
    rx.all_multicast = True
    assert arrive(ports, *kinds) == [False, True, True]
    rx.all_unicast = True
    assert arrive(ports, *kinds) == [True, True, True]
    rx.no_broadcast = True
    assert arrive(ports, *kinds) == [True, True, False]
    rx.no_multicast = True
    assert arrive(ports, *kinds) == [True, False, False]
    rx.all_unicast = False
    assert arrive(ports, *kinds) == [False, False, False]


def test_the_mac_filter(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    kinds = [(OTHER, None), (GROUP, None)]
    rx.promiscuous = False
    rx.mac_filter = [OTHER]
    assert arrive(ports, *kinds) == [True, False]
    rx.mac_filter = [str(GROUP)]
    assert arrive(ports, *kinds) == [False, True]
    rx.mac_filter = [OTHER, GROUP]
    assert arrive(ports, *kinds) == [True, True]
    rx.mac_filter = []
    assert arrive(ports, *kinds) == [False, False]


def test_vlans(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    kinds = [(OURS, 5), (OURS, 4094)]
    rx.promiscuous = False
    assert arrive(ports, *kinds) == [False, False]
    rx.vlans.add(5)
    assert arrive(ports, *kinds) == [True, False]
    rx.vlans.add(4094)
    rx.vlans.discard(5)
    assert arrive(ports, *kinds) == [False, True]
    rx.promiscuous = True
    assert arrive(ports, *kinds) == [True, True]


def test_tagged_frames_pass_a_port_that_did_not_ask_for_vlans(bound: None) -> None:
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx:
        rx.promiscuous = False
        assert arrive((tx, rx), (OURS, 5), (OTHER, None)) == [True, False]
        with pytest.raises(FeatureMissing, match="ctrl_vlan"):
            rx.vlans.add(5)


def test_the_mac_address(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    rx.promiscuous = False
    assert rx.mac == OURS
    rx.mac = OTHER
    assert rx.mac == OTHER
    assert arrive(ports, (OURS, None)) == [False]
    assert {event.what: event.value for event in rx.events()}["mac"] == OTHER
    rx.mac = OURS
    assert [(event.what, event.value) for event in rx.events()] == [("mac", OURS)]


def test_settings_outlive_a_reset(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    rx.promiscuous = False
    rx.mac = OTHER
    rx.mac_filter = [GROUP]
    rx.vlans.add(5)
    kinds = [(OURS, None), (OTHER, 5), (OTHER, 6), (GROUP, None)]
    assert arrive(ports, *kinds) == [False, True, False, True]
    for _ in range(3):
        rx.reset()
        assert rx.mac == OTHER
        assert arrive(ports, *kinds) == [False, True, False, True]


def test_a_port_that_is_opened_anew_begins_anew(bound: None) -> None:
    with pyvirtnet.open(PEER) as port:
        port.promiscuous = False
        port.mac = OTHER
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx:
        assert rx.mac == OURS
        assert arrive((tx, rx), (OTHER, None)) == [True]


def test_what_qemu_refuses(ports: tuple[Port, Port]) -> None:
    """No announcement was asked for, so none can be acknowledged; the queue works on."""
    tx, rx = ports
    with pytest.raises(CommandRefused, match="ANNOUNCE_ACK"):
        tx.announce()
    assert any(bytes(one)[12:14] == b"\x80\x35" for one in rx.recv_burst(64, timeout=SECONDS))
    tx.promiscuous = False


def test_thousands_of_commands(ports: tuple[Port, Port]) -> None:
    """Past every wrap of the ring and of its indices."""
    _, rx = ports
    start = time.monotonic()
    for at in range(5000):
        rx.all_multicast = at % 2 == 0
    print(f"{(time.monotonic() - start) / 5000 * 1e6:.0f} us a command")
    rx.promiscuous = False
    assert arrive(ports, (GROUP, None)) == [False]


def test_what_qemu_does_not_have(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    for deed in (rx.device_stats, rx.coalescing, lambda: rx.rss_limits):
        with pytest.raises(FeatureMissing, match="does not offer"):
            deed()


def test_the_speed_of_the_link(ports: tuple[Port, Port]) -> None:
    """QEMU knows none unless it is told."""
    _, rx = ports
    assert (rx.link.up, rx.link.speed, rx.link.duplex) == (True, None, None)
