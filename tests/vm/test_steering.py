"""What QEMU's device says and does beside frames: queues, RSS, speed, link, announcements."""

import time
from collections.abc import Callable, Iterator

import pytest

import pyvirtnet
from pyvirtnet import Event, Feature, HashType, Link, Port, Rss
from pyvirtnet.cli import bind

from . import test_formats
from .monitor import ask

MACHINE = test_formats.MACHINE
NIC, PEER = "0000:00:06.0", "0000:00:07.0"
SECONDS = 20


@pytest.fixture(scope="module", autouse=True)
def _bound() -> Iterator[None]:
    assert bind.main(["bind", NIC, PEER]) == 0
    yield
    assert bind.main(["restore", NIC, PEER]) == 0


@pytest.fixture
def ports() -> Iterator[tuple[Port, Port]]:
    """Both work at the end, whatever was asked of them."""
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx:
        yield tx, rx
        assert tx.send_burst([b"end!" * 15]) == 1
        assert [bytes(one) for one in rx.recv_burst(64, timeout=SECONDS)][-1] == b"end!" * 15


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"


def test_the_control_queue_with_multiqueue_features(ports: tuple[Port, Port]) -> None:
    """It is the queue behind all pairs that the device has."""
    _, rx = ports
    assert {Feature.MQ, Feature.RSS} <= rx.features.negotiated
    assert rx._control.max_pairs == 1
    rx._control.set_pairs(1)
    rx.all_multicast = True


def test_rss(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    limits = rx.rss_limits
    assert limits.key >= 40
    assert limits.table >= 128
    assert limits.hash_types >= HashType.TCPV4 | HashType.UDPV6
    rx.rss = Rss()
    rx.rss = wanted = Rss([0] * 128, HashType.IPV4, bytes(range(40)))
    rx.reset()
    assert rx.rss == wanted
    for impossible in (Rss([0] * 2 * limits.table), Rss([1]), Rss(key=bytes(limits.key + 1))):
        with pytest.raises(ValueError):
            rx.rss = impossible


def test_speed_and_duplex(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    assert rx.link == Link(True, 10_000, "full")


def test_the_link_goes_down_and_up(ports: tuple[Port, Port]) -> None:
    _, rx = ports
    assert rx.events()[0] == Event("link", Link(True, 10_000, "full"))
    for up in (False, True):
        ask("set_link", name="nic3", up=up)
        until(lambda up=up: rx.link.up == up)
        assert rx.events() == [Event("link", Link(up, 10_000, "full"))]
        assert rx.events() == []


def test_an_announcement(ports: tuple[Port, Port]) -> None:
    """As after a migration: the device asks for it until it is acknowledged."""
    tx, rx = ports
    rx.events()
    ask("announce-self", initial=50, max=50, rounds=1, step=50, interfaces=["nic3"])
    until(lambda: rx.events() == [Event("announce", None)])
    assert rx.events() == []
    gratuitous = b"\xff" * 6 + rx.mac + b"\x08\x06" + b"here" * 12
    rx.announce([gratuitous])
    frames: list[bytes] = []
    until(lambda: frames.extend(map(bytes, tx.recv_burst(64))) or gratuitous in frames)
    assert rx.events() == []
    with pytest.raises(pyvirtnet.CommandRefused):  # none is asked for any more
        rx.announce()
