"""The vhost-user front end against a back end of our own: messages, traffic, memory."""

from __future__ import annotations

import struct

import pytest
import vhost_wire as wire
from later import Later
from vhost_backend import FEATURES
from vhost_fixtures import (
    SECONDS,
    conserved,
    open_port,
    path,
    round_trip,
    start,
)

import pyvirtnet
from pyvirtnet import dma
from pyvirtnet.testing import Loopback, mask
from pyvirtnet.transport import vhost_messages
from pyvirtnet.transport.vhost_user import VhostUserTransport

__all__ = ["path", "start"]  # fixtures

ALL_SIZES = (14, 60, 128, 129, 1514, 4084, 4085, 9014, 65535)
REPLY_ACK, EVERYTHING = wire.REPLY_ACK, wire.EVERYTHING
PROTOCOLS = pytest.mark.parametrize(
    "protocol",
    [None, 0, REPLY_ACK, wire.STATUS, wire.MQ, EVERYTHING, EVERYTHING & ~REPLY_ACK],
    ids=["none", "nothing", "ack", "status", "mq", "all", "all_but_ack"],
)


@PROTOCOLS
def test_frames_of_all_sizes_go_round(path, start, protocol):
    back_end = start(protocol=protocol)
    with open_port(path) as port:
        round_trip(port, *ALL_SIZES)
        port.reclaim()
        assert conserved(port)
        back_end.device.check()


@PROTOCOLS
def test_a_reset_starts_anew(path, start, protocol):
    start(protocol=protocol)
    with open_port(path) as port:
        for _ in range(3):
            round_trip(port, 60, 9014)
            port.reset()
        assert port.stats.rx_frames == 6
        assert conserved(port)


def test_many_frames_past_the_wrap_of_the_index(path, start, monkeypatch):
    monkeypatch.setattr(VhostUserTransport, "start_index", 0xFFF0)
    back_end = start()
    with open_port(path) as port:
        tx = port.alloc_burst(32, 60)
        tx.data[:] = 0x5A
        sent = received = 0
        while received < 1000:
            if sent - received < 128:
                sent += port.send_burst(tx)
            burst = port.recv_burst(64, timeout=SECONDS)
            assert len(burst)
            assert (burst.heads[:, :60] == 0x5A).all()
            received += len(burst)
    assert words(0, 0xFFF0) in [m.payload for m in back_end.log if m.request == wire.SET_VRING_BASE]


@pytest.mark.parametrize(("begin", "base"), [(0, 0x80008000), (5, 0x80058005), (261, 0x00050005)])
def test_a_packed_ring_has_a_base_for_each_side(path, start, monkeypatch, begin, base):
    """Bits 16 to 31 say where used descriptors begin; a back end that reads them found 0."""
    monkeypatch.setattr(VhostUserTransport, "start_index", begin)
    back_end = start(Loopback(features=FEATURES | mask("ring_packed")))
    with open_port(path) as port:
        round_trip(port, 60, 9014)
    assert words(0, base) in [m.payload for m in back_end.log if m.request == wire.SET_VRING_BASE]


def exchange(request: int, payload: bytes = b"", need_reply: bool = True) -> tuple[int, int, bytes]:
    return request, 9 if need_reply else 1, payload


def words(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def table(regions: list[dma.Region]) -> bytes:
    rows = [struct.pack("<QQQQ", r.iova, r.size, r.address, 0) for r in regions]
    return words(len(rows), 0) + b"".join(rows)


@pytest.mark.rule("BAS-003", "BAS-027", "BAS-037", "BAS-042")
def test_every_message_of_a_life(path, start):
    """In order, to the byte: with all protocol features, a ring size of 64."""
    back_end = start()
    known = list(dma.memory.regions())
    with open_port(path, ring_size=64) as port:
        region = port._memory.region
    features = FEATURES | wire.PROTOCOL_FEATURES
    rings = []
    for index in (0, 1):
        at = region.address + index * (64 * 16 + 256 + 640)
        parts = (at, at + 64 * 16 + 256 + 60, at + 64 * 16)
        rings += [
            exchange(wire.SET_VRING_NUM, words(index, 64)),
            exchange(wire.SET_VRING_BASE, words(index, 0)),
            exchange(wire.SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, *parts, 0)),
            exchange(wire.SET_VRING_CALL, struct.pack("<Q", index)),
            exchange(wire.SET_VRING_KICK, struct.pack("<Q", index)),
        ]
    count = len(known)
    assert [(m.request, m.flags, m.payload) for m in back_end.log] == [
        exchange(wire.GET_FEATURES, need_reply=False),
        exchange(wire.GET_PROTOCOL_FEATURES, need_reply=False),
        exchange(wire.SET_PROTOCOL_FEATURES, struct.pack("<Q", wire.EVERYTHING), need_reply=False),
        exchange(wire.SET_OWNER),
        exchange(wire.GET_QUEUE_NUM, need_reply=False),
        *(exchange(wire.SET_MEM_TABLE, table(known[: n + 1])) for n in range(count)),
        *(exchange(wire.SET_STATUS, struct.pack("<Q", status)) for status in (0, 1, 3)),
        exchange(wire.SET_FEATURES, struct.pack("<Q", features)),
        exchange(wire.SET_STATUS, struct.pack("<Q", 11)),
        exchange(wire.GET_STATUS, need_reply=False),
        exchange(wire.GET_CONFIG, words(0, 6, 0) + bytes(6), need_reply=False),
        exchange(wire.SET_MEM_TABLE, table([*known, region])),
        *rings,
        exchange(wire.SET_STATUS, struct.pack("<Q", 15)),
        exchange(wire.SET_VRING_ENABLE, words(0, 1)),
        exchange(wire.SET_VRING_ENABLE, words(1, 1)),
        exchange(wire.GET_STATUS, need_reply=False),
        exchange(wire.GET_VRING_BASE, words(0, 0), need_reply=False),
        exchange(wire.GET_VRING_BASE, words(1, 0), need_reply=False),
        exchange(wire.SET_STATUS, bytes(8)),
        exchange(wire.SET_STATUS, bytes(8)),
    ]


def test_configuration_space(path, start):
    device = Loopback(features=FEATURES, mac=bytes.fromhex("020000abcdef"), mtu=9000)
    start(device)
    with open_port(path) as port:
        assert str(port.mac) == "02:00:00:ab:cd:ef"
        assert (port.mtu, port.max_frame) == (9000, 9014)
        assert port.link.up
        device.set_link(False)
        assert not port.link.up


def test_without_a_configuration_space_nothing_is_offered_that_lies_there(path, start):
    start(protocol=wire.EVERYTHING & ~wire.CONFIG)
    with open_port(path) as port:
        names = {feature.name for feature in port.features.offered}
        assert not names & {"MAC", "STATUS", "MTU", "SPEED_DUPLEX", "ACCESS_PLATFORM"}
        assert port.mac[0] & 3 == 2
        assert port.link.up


def test_a_back_end_takes_no_commands_though_it_offers_some(path, start):
    """As DPDK's do, which mean their own front end."""
    start(Loopback(features=FEATURES | mask("ctrl_vq", "ctrl_rx", "mq", "guest_announce")))
    with open_port(path) as port:
        names = {feature.name for feature in port.features.negotiated}
        assert not names & {"CTRL_VQ", "CTRL_RX", "MQ", "GUEST_ANNOUNCE"}
        for ask in (lambda: setattr(port, "promiscuous", True), port.announce, port.device_stats):
            with pytest.raises(pyvirtnet.FeatureMissing, match="takes no commands") as caught:
                ask()
            assert "switch" in caught.value.mend
        round_trip(port, 60)


@pytest.mark.rule("BAS-035")
def test_a_device_that_does_not_keep_features_ok(path, start):
    start(Loopback(features=FEATURES, required=mask("mrg_rxbuf")))
    with pytest.raises(pyvirtnet.FeatureMissing, match="refused the features"):
        open_port(path, features=["-mrg_rxbuf"])


def test_what_is_refused_is_an_error(path, start):
    refuse = {wire.SET_VRING_ADDR: lambda _: wire.answer(wire.SET_VRING_ADDR, struct.pack("<Q", 1))}
    start(hooks=refuse)
    with pytest.raises(pyvirtnet.Error, match="refused SET_VRING_ADDR"):
        open_port(path)


def test_a_configuration_that_is_refused_is_an_error(path, start):
    start(hooks={wire.GET_CONFIG: lambda _: wire.answer(wire.GET_CONFIG, b"")})
    with pytest.raises(pyvirtnet.Error, match="refused GET_CONFIG"):
        open_port(path)


def test_the_number_of_queues(path, start):
    start(Loopback(features=FEATURES, queue_sizes=(256,) * 8))
    transport = VhostUserTransport(path)
    try:
        assert [bool(transport.queue_max_size(index)) for index in (0, 7, 8)] == [True, True, False]
    finally:
        transport.close()


def test_a_wait_ends_with_the_interrupt(path, start):
    back_end = start()
    with open_port(path) as port:
        with Later(back_end, lambda: back_end.device.deliver(bytes(60))):
            assert len(port.recv_burst(1, timeout=None)) == 1
        assert back_end.device.interrupts[0] == 1


def test_answers_are_waited_for_a_bound_time():
    assert vhost_messages.ANSWER_SECONDS <= 10
