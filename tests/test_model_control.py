"""The model of the control queue: what it carries out, refuses, and objects to."""

import struct

import pytest
from commands import ALL

from pyvirtnet.testing import Violation, mask
from pyvirtnet.testing.control import ERR, OK, ControlUnit

ENABLED = {0, 1, 2, 3, 8}  # of four pairs two are set up; 8 is the control queue


@pytest.fixture
def unit():
    return ControlUnit(max_pairs=4)


def send(unit, group, number, data=b"", room=64, *, features=ALL):
    return unit.execute(bytes([group, number]) + data, room, features, ENABLED)


def rss(*, types=1, mask_=0, unclassified=0, table=(0,), tx=1, key=b""):
    return (
        struct.pack(f"<IHH{len(table)}H", types, mask_, unclassified, *table)
        + struct.pack("<HB", tx, len(key))
        + key
    )


@pytest.mark.parametrize(
    ("group", "number", "feature", "length"),
    [
        (0, 0, "ctrl_rx", 1),
        (0, 1, "ctrl_rx", 1),
        *((0, number, "ctrl_rx_extra", 1) for number in (2, 3, 4, 5)),
        (1, 0, "ctrl_rx", 8),
        (1, 1, "ctrl_rx", 6),
        (1, 1, "ctrl_mac_addr", 6),
        (2, 0, "ctrl_vlan", 2),
        (2, 1, "ctrl_vlan", 2),
        (3, 0, "guest_announce", 0),
        (4, 0, "mq", 2),
        (4, 1, "rss", 12),
        (5, 0, "ctrl_guest_offloads", 8),
        (6, 0, "notf_coal", 8),
        (6, 1, "notf_coal", 8),
        (6, 2, "vq_notf_coal", 12),
        (6, 3, "vq_notf_coal", 4),
        (8, 0, "device_stats", 0),
        (8, 1, "device_stats", 16),
    ],
)
@pytest.mark.rule("CVQ-002", "CVQ-003", "CVQ-005", "CVQ-022", "CVQ-038", "CVQ-039")
def test_commands_go_with_their_features(unit, group, number, feature, length):
    with pytest.raises(Violation, match="where its feature was negotiated"):
        send(unit, group, number, bytes(length), features=ALL & ~mask(feature))


@pytest.mark.parametrize(
    ("group", "number", "length"),
    [(0, 0, 0), (0, 3, 2), (1, 1, 5), (2, 0, 4), (3, 0, 1), (4, 0, 1), (5, 0, 4), (6, 0, 4),
     (6, 2, 8), (6, 3, 12), (8, 0, 8)],
)  # fmt: skip
def test_data_of_another_length(unit, group, number, length):
    with pytest.raises(Violation, match="bytes of data"):
        send(unit, group, number, bytes(length))


@pytest.mark.parametrize(("data", "room"), [(b"", 1), (b"\0", 1), (b"\0\0\1", 0)])
def test_a_command_has_all_of_its_parts(unit, data, room):
    with pytest.raises(Violation, match="class, command and data"):
        unit.execute(data, room, ALL, ENABLED)


MAC, GROUP = b"\2\0\0\0\0\1", b"\1\0\x5e\0\0\1"


@pytest.mark.parametrize(
    ("group", "number", "data", "rule"),
    [
        pytest.param(0, 0, b"\2", "0 or 1", id="mode"),
        *(
            pytest.param(1, 0, data, words, marks=pytest.mark.rule("CVQ-007"), id=f"macs{at}")
            for at, (data, words) in enumerate(
                [
                    (b"", "two counted lists"),
                    (bytes(4), "two counted lists"),
                    (b"\1\0\0\0" + MAC, "two counted lists"),
                    (b"\2\0\0\0" + MAC + bytes(4), "two counted lists"),
                    (bytes(9), "two counted lists"),
                    (b"\1\0\0\0" + GROUP + bytes(4), "unicast addresses come first"),
                    (bytes(4) + b"\1\0\0\0" + MAC, "unicast addresses come first"),
                ]
            )
        ),
        pytest.param(2, 0, b"\0\x10", "12 bits", id="vlan"),
        pytest.param(4, 0, b"\0\0", "from 1 to max", id="no pairs"),
        pytest.param(4, 0, b"\5\0", "from 1 to max", id="too many pairs"),
        pytest.param(4, 0, b"\3\0", "set up before", id="pairs not set up"),
        pytest.param(4, 1, bytes(4), "all of its fields", id="short rss"),
        pytest.param(4, 1, rss() + b"\0", "all of its fields", id="long rss"),
        pytest.param(4, 1, rss(mask_=3), "all of its fields", id="short table"),
        pytest.param(4, 1, rss(mask_=2, table=(0,) * 3), "power of two", id="odd table"),
        pytest.param(4, 1, rss(mask_=255, table=(0,) * 256), "up to 128", id="long table"),
        pytest.param(4, 1, rss(table=(2,)), "that are enabled", id="table of what is not set up"),
        pytest.param(4, 1, rss(unclassified=2), "that are enabled", id="unclassified"),
        pytest.param(4, 1, rss(types=1 << 9), "that are supported", id="hash types"),
        pytest.param(5, 0, b"\2" + bytes(7), "that were negotiated", id="offloads"),
        pytest.param(6, 2, b"\0\0\1\0" + bytes(8), "reserved is 0", id="reserved"),
        pytest.param(6, 2, b"\4\0\0\0" + bytes(8), "that is enabled", id="vq_set"),
        pytest.param(6, 3, b"\x08\0\0\0", "that is enabled", id="vq_get"),
    ],
)
def test_data_that_no_driver_sends(unit, group, number, data, rule):
    with pytest.raises(Violation, match=rule):
        send(unit, group, number, data)


@pytest.mark.rule("CVQ-042", "CVQ-043", "CVQ-044")
def test_statistics_that_no_driver_asks_for(unit):
    ask = struct.Struct("<HHHHQ").pack
    with pytest.raises(Violation, match="what STATS_QUERY listed"):
        send(unit, 8, 1, ask(0, 0, 0, 0, 1))
    assert send(unit, 8, 0) == OK + struct.pack("<Q", 0x1_000F_000F)
    for data, room, rule in [
        (ask(0, 0, 0, 0, 1 << 16), 999, "suit the queue"),
        (ask(1, 0, 0, 0, 1), 999, "suit the queue"),
        (ask(8, 0, 0, 0, 1), 999, "suit the queue"),
        (ask(0, 0, 0, 0, 1 << 4), 999, "suit the queue"),
        (ask(4, 0, 0, 0, 1), 999, "suit the queue"),
        (ask(0, 1, 0, 0, 1), 999, "reserved is 0"),
        (ask(0, 0, 0, 0, 1) + b"\0", 999, "STATS_QUERY listed"),
        (b"", 999, "STATS_QUERY listed"),
        (ask(0, 0, 0, 0, 1), 56, "room for all"),
    ]:
        with pytest.raises(Violation, match=rule):
            send(unit, 8, 1, data, room)
    assert len(send(unit, 8, 1, ask(0, 0, 0, 0, 1), 57)) == 57
    assert len(send(unit, 8, 1, ask(0, 0, 0, 0, 1) + ask(8, 0, 0, 0, 1 << 32), 99)) == 57 + 24


def test_what_it_refuses(unit):
    unit.refuse = {(0, 0)}
    assert send(unit, 0, 0, b"\0") == ERR
    assert unit.filter.promiscuous
    assert send(unit, 0, 1, b"\1") == OK
    assert send(unit, 9, 9) == ERR  # what it does not know
    assert send(unit, 1, 1, GROUP) == ERR
    macs = b"".join(bytes([2, 0, 0, 0, 0, i]) for i in range(65))
    assert send(unit, 1, 0, b"\x41\0\0\0" + macs + bytes(4)) == ERR
    assert send(unit, 4, 1, rss(tx=0)) == ERR
    assert send(unit, 4, 1, rss(key=bytes(41))) == ERR
    assert unit.rss == b""


def test_what_a_reset_forgets(unit):
    for group, number, data in [(0, 0, b"\0"), (1, 1, MAC), (2, 0, b"\5\0"), (4, 0, b"\2\0"),
                                (6, 0, bytes(8)), (3, 0, b"")]:  # fmt: skip
        assert send(unit, group, number, data) == OK
    assert (unit.mac, unit.pairs, unit.announced) == (MAC, 2, 1)
    assert unit.coalescing.keys() == {1, 3}
    unit.reset()
    assert unit.filter.promiscuous
    assert unit.filter.vlans == set()
    assert (unit.mac, unit.pairs, unit.announced, unit.coalescing) == (None, 1, 0, {})
    assert len(unit.commands) == 6
