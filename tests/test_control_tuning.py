"""Commands beside filters: RSS, queue pairs, offloads, coalescing, statistics, announcements."""

import struct

import pytest
from commands import ALL, commander
from nic import frames

from pyvirtnet import (
    Coalescing,
    CommandRefused,
    DeviceBroken,
    DeviceTimeout,
    Feature,
    HashType,
    Rss,
)
from pyvirtnet.control import Tuning, statistics
from pyvirtnet.testing import NetDevice
from pyvirtnet.testing.control import HASH_TYPES


@pytest.fixture
def nic(make_nic, start_index):
    return make_nic(NetDevice(features=ALL, start_index=start_index), features=["+ctrl_vlan"])


@pytest.fixture
def unit(device):
    return device.control


@pytest.mark.rule("CVQ-012", "CVQ-023", "CVQ-024", "CVQ-025", "CVQ-026")
def test_rss(port, unit):
    limits = port.rss_limits
    assert (limits.key, limits.table, limits.hash_types) == (40, 128, HASH_TYPES)
    assert port.rss is None
    key = bytes(range(40))
    wanted = Rss([0] * 128, HashType.IPV4 | HashType.TCPV4, key)
    port.rss = wanted
    with pytest.raises(TypeError, match=r"takes a pyvirtnet\.Rss, not None"):
        port.rss = None
    assert port.rss == wanted
    assert unit.rss == b"\3\0\0\0" + b"\x7f\0" + b"\0\0" + bytes(256) + b"\1\0" + b"\x28" + key
    port.rss = Rss()
    assert unit.rss[:8] == HASH_TYPES.to_bytes(4, "little") + bytes(4)


@pytest.mark.rule("CVQ-023", "CVQ-024", "CVQ-025", "CVQ-026")
@pytest.mark.parametrize(
    ("rss", "words"),
    [
        (Rss(table=[0] * 3), "power of two"),
        (Rss(table=[]), "power of two"),
        (Rss(table=[0] * 256), "up to 128"),
        (Rss(table=[0, 1]), "from 0 to 0"),
        (Rss(table=[-1]), "from 0 to 0"),
        (Rss(unclassified=1), "from 0 to 0"),
        (Rss(hash_types=1 << 9), "hash types"),
        (Rss(key=bytes(41)), "40 is the most"),
        (Rss(tx_queues=2), "from 1 to 1"),
        (Rss(tx_queues=0), "from 1 to 1"),
    ],
)
def test_rss_that_cannot_be(port, unit, rss, words):
    with pytest.raises(ValueError, match=words):
        port.rss = rss
    assert port.rss is None
    assert unit.commands == []


@pytest.mark.rule("CVQ-014", "CVQ-015", "CVQ-016", "CVQ-017")
def test_no_queue_pairs_but_those_that_are_set_up(make_nic):
    """One pair is; with more offered, none of the others is asked for or used."""
    nic = make_nic(NetDevice(features=ALL, queue_sizes=(256,) * 8))
    assert nic.device.control_index == 8
    assert nic.port._control.max_pairs == 4
    nic.port._control.set_pairs(1)
    assert nic.device.control.commands == [(4, 0, b"\1\0")]
    for pairs in (0, 2, 4, 5, -1, 0x8001):
        with pytest.raises(ValueError, match="from 1 to 1"):
            nic.port._control.set_pairs(pairs)
    assert nic.port.send_burst(frames(300)) == 256
    assert nic.device.queues.keys() == {0, 1, 8}


@pytest.mark.rule("CVQ-035")
def test_offloads(port, unit):
    """None is negotiated yet, so none can be switched on."""
    assert port.offloads == frozenset()
    port.offloads = []
    assert unit.offloads == 0
    for wanted in ([Feature.GUEST_TSO4], ["guest_csum"], [Feature.MRG_RXBUF], ["nonsense"]):
        with pytest.raises(ValueError, match="that were negotiated"):
            port.offloads = wanted
    assert unit.commands == [(5, 0, bytes(8))]


def test_offloads_that_were_negotiated():
    """They start switched on; all those that are to be on are named each time (5.1.6.5.8)."""
    with commander("guest_csum", "guest_tso4", "guest_uso6") as made:
        face = Tuning()
        face._control = made.control
        every = {Feature.GUEST_CSUM, Feature.GUEST_TSO4, Feature.GUEST_USO6}
        assert face.offloads == every
        for wanted in ([], ["guest_csum"], [Feature.GUEST_CSUM, "GUEST_USO6"], every):
            face.offloads = wanted
            mask = sum(1 << feature for feature in face.offloads)
            assert made.device.control.offloads == mask
            assert len(face.offloads) == len(wanted)
        assert mask == 1 << 1 | 1 << 7 | 1 << 55
        with pytest.raises(ValueError, match="not guest_tso6"):
            face.offloads = ["guest_csum", "guest_tso6"]


@pytest.mark.rule("CVQ-037", "CVQ-038", "CVQ-039")
def test_coalescing(port, unit):
    port.coalesce(rx_usecs=50, rx_frames=10)
    assert unit.coalescing == {0: (10, 50)}
    port.coalesce(tx_usecs=7, tx_frames=8, rx_usecs=0, rx_frames=0)
    assert unit.coalescing == {0: (0, 0), 1: (8, 7)}
    port.coalesce(tx_usecs=1, tx_frames=2, pair=0)
    assert port.coalescing() == (Coalescing(0, 0), Coalescing(1, 2))
    assert unit.commands[-3:] == [
        (6, 2, b"\1\0\0\0" + b"\2\0\0\0\1\0\0\0"),
        (6, 3, bytes(4)),
        (6, 3, b"\1\0\0\0"),
    ]


def test_a_setting_for_all_queues_of_a_side_leaves_the_other_side(port, unit):
    port.coalesce(tx_usecs=1, tx_frames=2, pair=0)
    port.coalesce(rx_usecs=3, rx_frames=4)
    port.reset()
    assert unit.coalescing == {0: (4, 3), 1: (2, 1)}


def test_the_last_word_on_steering_is_the_last_after_a_reset_too(port, unit):
    port.rss = Rss()
    port._control.set_pairs(1)
    port.rss = wanted = Rss([0, 0])
    port.reset()
    assert port.rss == wanted
    assert [number for group, number, _ in unit.commands if group == 4][-2:] == [0, 1]


@pytest.mark.rule("CVQ-037")
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"pair": 0},
        {"rx_usecs": 1},
        {"tx_frames": 1},
        {"rx_usecs": 1, "rx_frames": 1, "tx_usecs": 1},
        {"rx_usecs": -1, "rx_frames": 1},
        {"rx_usecs": 1, "rx_frames": 1 << 32},
        {"rx_usecs": 1.5, "rx_frames": 1},
        {"rx_usecs": 1, "rx_frames": 1, "pair": 1},
        {"rx_usecs": 1, "rx_frames": 1, "pair": -1},
    ],
)
def test_coalescing_that_cannot_be(port, unit, arguments):
    with pytest.raises(ValueError):
        port.coalesce(**arguments)
    assert unit.commands == []


@pytest.mark.rule("CVQ-040")
def test_what_a_refused_question_gave_is_ignored(port, unit):
    unit.refuse = {(6, 3), (8, 0)}
    with pytest.raises(CommandRefused, match="how a queue's interrupts are coalesced"):
        port.coalescing()
    with pytest.raises(CommandRefused, match="which statistics"):
        port.device_stats()


def entry(kind, queue, *counters, size=None):
    size = 8 + 8 * len(counters) if size is None else size
    return struct.pack(f"<BBHHH{len(counters)}Q", kind, 0, queue, 0, size, *counters)


SIX, FOUR, TWO = range(6), range(4), range(2)
WHOLE = entry(0, 0, *SIX) + entry(1, 0, *FOUR) + entry(2, 0, *FOUR) + entry(3, 0, *TWO)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        WHOLE[:-1],
        WHOLE[:-16],
        WHOLE + b"\0",
        WHOLE + entry(16, 0, *SIX),
        WHOLE + entry(4, 0, 1),
        WHOLE + entry(0, 0, *SIX),
        WHOLE[:-24] + entry(3, 1, *TWO),
        WHOLE[:-24] + entry(3, 0, 1),
        WHOLE[:-24] + entry(3, 0, *TWO, size=0),
        WHOLE[:-24] + entry(3, 0, *TWO, size=23) + b"\0\0",
        WHOLE[:-24] + entry(3, 0, *TWO, size=32),
        WHOLE[:-24] + entry(3, 0, *TWO, size=0xFFF8),
    ],
    ids=range(13),
)
def test_statistics_that_nobody_asked_for(reply):
    assert len(statistics.parse(0, 0xF, WHOLE)) == 16
    with pytest.raises(ValueError):
        statistics.parse(0, 0xF, reply)


def test_statistics_of_another_queue_than_was_asked(nic, port):
    inner = nic.device.control.execute
    nic.device.control.execute = lambda data, *rest: (
        b"\0" + WHOLE if data[:4] == b"\x08\1\1\0" else inner(data, *rest)
    )
    with pytest.raises(DeviceBroken, match=r"56 bytes for queue 0 .5\.1\.6\.5\.10"):
        port.device_stats()
    nic.device.control.execute = inner
    assert port.device_stats()["rx0"]["drop_overruns"] == 5


def test_statistics_that_have_grown(nic, port):
    inner = nic.device.control.execute
    grown = entry(0, 0, *SIX, 99, 98) + WHOLE[56:]
    nic.device.control.execute = lambda data, *rest: (
        b"\0" + grown if data[:4] == b"\x08\1\0\0" else inner(data, *rest)
    )
    stats = port.device_stats()["rx0"]
    assert [stats["drop_overruns"], stats["csum_valid"], len(stats)] == [5, 0, 16]


@pytest.mark.rule("CVQ-042", "CVQ-043", "CVQ-044")
def test_device_stats(port, unit):
    """The model's counters say which queue, type and place they are of."""
    stats = port.device_stats()
    assert stats.keys() == {"rx0", "tx0", "control"}
    assert stats["rx0"]["drop_overruns"] == 5
    assert stats["rx0"]["csum_bad"] == 1 << 8 | 3
    assert stats["rx0"]["gso_bytes_coalesced"] == 2 << 8 | 3
    assert stats["tx0"]["drop_malformed"] == 1 << 16 | 16 << 8 | 5
    assert stats["tx0"]["gso_bytes_noseg"] == 1 << 16 | 18 << 8 | 5
    assert stats["tx0"]["bytes_allowance_exceeded"] == 1 << 16 | 19 << 8 | 1
    assert stats["control"] == {"commands": 4, "commands_ok": 3}
    assert [len(counters) for counters in stats.values()] == [16, 16, 2]
    assert [data for _, _, data in unit.commands] == [
        b"",
        bytes(8) + b"\x0f" + bytes(7),
        b"\1" + bytes(7) + b"\0\0\x0f" + bytes(5),
        b"\2" + bytes(7) + b"\0\0\0\0\1\0\0\0",
    ]


def test_announce(nic, port, unit):
    nic.device.change(announcing=True)
    port.announce()
    (rarp,) = nic.transmitted()
    assert rarp[:14] == b"\xff" * 6 + port.mac + b"\x80\x35"
    assert rarp[14:42] == b"\0\1\x08\0\6\4\0\3" + (port.mac + bytes(4)) * 2
    assert len(rarp) == 60
    assert unit.commands == [(3, 0, b"")]
    assert not nic.device.announcing


def test_what_could_not_be_announced_is_not_acknowledged(monkeypatch, nic, port, unit):
    monkeypatch.setattr("pyvirtnet.control.events.ANNOUNCE_SECONDS", 0.01)
    with pytest.raises(DeviceTimeout, match="did not send 44 announcements"):
        port.announce(frames(300))
    assert unit.commands == []


@pytest.mark.rule("CVQ-010", "CVQ-011")
def test_what_is_announced_is_sent_before_it_is_acknowledged(nic, port, unit):
    own = frames(3)
    port.announce(own)
    assert nic.transmitted() == own
    assert unit.announced == 1
