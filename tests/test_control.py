"""What is set through the control queue: every command, every refusal, and that it stays set."""

from functools import partial

import pytest
from commands import ALL, COMMANDS
from nic import Nic, frames

import pyvirtnet
from pyvirtnet import (
    Coalescing,
    CommandRefused,
    DeviceBroken,
    DeviceTimeout,
    Feature,
    FeatureMissing,
    HashType,
    Mac,
    PortClosed,
    Rss,
)
from pyvirtnet.testing import DEFAULT_FEATURES, NetDevice, mask
from pyvirtnet.testing.control import HASH_TYPES, MAX_MACS

MODES = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast",
         "no_broadcast")  # fmt: skip
OURS, OTHER = Mac(bytes.fromhex("020000000009")), Mac(bytes.fromhex("02000000000a"))
GROUP = Mac(bytes.fromhex("01005e000001"))


@pytest.fixture
def nic(make_nic, start_index):
    return make_nic(NetDevice(features=ALL, start_index=start_index), features=["+ctrl_vlan"])


@pytest.fixture
def unit(device):
    return device.control


def to(mac, tag=None):
    """A frame for an address, with a VLAN tag or without."""
    tagged = b"" if tag is None else b"\x81\x00" + tag.to_bytes(2, "big")
    return bytes(mac) + bytes(6) + tagged + b"\x08\x00" + bytes(60)


def arrives(nic, frame):
    assert nic.device.deliver(frame)
    got = nic.receive()
    assert got in ([], [frame])
    return bool(got)


# ---- receive modes and filters -------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_modes(port, unit, mode):
    assert getattr(port, mode) is None  # the device's own, until somebody chooses
    for on in (True, False, True):
        setattr(port, mode, on)
        assert getattr(port, mode) is on
        assert getattr(unit.filter, mode) is on
    assert unit.commands == [(0, MODES.index(mode), bytes([on])) for on in (1, 0, 1)]


def test_a_filtered_frame_arrives_after_the_change(nic, port):
    port.promiscuous = False
    assert not arrives(nic, to(OTHER))
    assert arrives(nic, to(port.mac))
    assert arrives(nic, to(b"\xff" * 6))
    port.no_broadcast = True
    assert not arrives(nic, to(b"\xff" * 6))
    assert not arrives(nic, to(GROUP))
    port.all_multicast = True
    assert arrives(nic, to(GROUP))
    port.promiscuous = True
    assert arrives(nic, to(OTHER))
    assert nic.device.filtered == 3


@pytest.mark.rule("CVQ-007", "CVQ-008")
def test_the_mac_filter(nic, port, unit):
    assert port.mac_filter == ()
    port.promiscuous = False
    port.mac_filter = [str(OTHER), GROUP, bytearray(OURS), OTHER]
    assert port.mac_filter == (OTHER, GROUP, OURS)
    assert unit.filter.unicast == [OTHER, OURS]
    assert unit.filter.multicast == [GROUP]
    assert unit.commands[-1] == (1, 0, b"\2\0\0\0" + OTHER + OURS + b"\1\0\0\0" + GROUP)
    assert arrives(nic, to(OTHER))
    assert arrives(nic, to(GROUP))
    port.mac_filter = [GROUP]
    assert unit.commands[-1] == (1, 0, bytes(4) + b"\1\0\0\0" + GROUP)
    assert not arrives(nic, to(OTHER))
    port.mac_filter = []
    assert unit.commands[-1] == (1, 0, bytes(8))
    assert not arrives(nic, to(GROUP))


def test_a_mac_filter_too_large_for_the_device_leaves_the_one_before(port, unit):
    port.mac_filter = [OTHER]
    with pytest.raises(CommandRefused, match="did not set its MAC filter") as caught:
        port.mac_filter = [i.to_bytes(6, "little") for i in range(0, 2 * MAX_MACS + 2, 2)]
    assert "MAC_TABLE_SET" in caught.value.why
    assert caught.value.mend
    assert port.mac_filter == (OTHER,)
    assert unit.filter.unicast == [OTHER]


def test_a_mac_filter_too_large_for_any_device(port, unit):
    with pytest.raises(ValueError, match="is the most"):
        port.mac_filter = [i.to_bytes(6, "little") for i in range(0, 20000, 2)]
    assert unit.commands == []


@pytest.mark.parametrize("value", [b"", bytes(5), "02:00", "02-00-00-00-00-0", 7, None, "x" * 17,
                                   "0x:00:00:00:00:00"])  # fmt: skip
def test_what_is_no_mac_address(port, unit, value):
    with pytest.raises(ValueError, match="six bytes"):
        port.mac_filter = [value]
    with pytest.raises(ValueError, match="six bytes"):
        port.mac = value
    assert unit.commands == []


@pytest.mark.parametrize("value", ["02:00:00:00:00:09", OURS])
def test_a_mac_filter_is_a_list(port, value):
    with pytest.raises(TypeError):
        port.mac_filter = value


@pytest.mark.rule("CVQ-006")
@pytest.mark.parametrize("value", [str(OURS), OURS, bytearray(OURS), "02-00-00-00-00-09"])
def test_setting_the_mac_address(nic, port, unit, value):
    before = port.mac
    port.promiscuous = False
    port.mac = value
    assert port.mac == OURS
    assert unit.mac == OURS
    assert arrives(nic, to(OURS))
    assert not arrives(nic, to(before))


@pytest.mark.parametrize("value", [bytes(6), GROUP, b"\xff" * 6])
def test_an_address_that_no_nic_has(port, unit, value):
    with pytest.raises(ValueError, match="unicast and not zero"):
        port.mac = value
    assert unit.commands == []


def test_a_mac_address_without_one_in_the_configuration(make_nic):
    nic = make_nic(NetDevice(features=ALL & ~mask("mac")))
    assert nic.port.mac[0] & 3 == 2
    nic.port.mac = OURS
    nic.port.reset()
    assert nic.port.mac == nic.device.control.mac == OURS


def test_vlans(nic, port, unit):
    port.promiscuous = False
    assert list(port.vlans) == []
    assert arrives(nic, to(port.mac))
    assert not arrives(nic, to(port.mac, 5))
    port.vlans.add(5)
    for vlan in (7, 0, 4095):
        port.vlans.add(vlan)
    assert arrives(nic, to(port.mac, 5))
    assert arrives(nic, to(port.mac, 0x6007))  # its priority is not the VLAN's
    assert 5 in port.vlans
    assert 6 not in port.vlans
    assert "5" not in port.vlans
    port.vlans.discard(5)
    port.vlans.discard(6)
    assert not arrives(nic, to(port.mac, 5))
    assert unit.filter.vlans == set(port.vlans) == {0, 7, 4095}
    assert repr(port.vlans) == "Vlans([0, 7, 4095])"
    with pytest.raises(KeyError):
        port.vlans.remove(5)
    port.vlans.clear()
    assert len(port.vlans) == 0
    assert unit.commands[1] == (2, 0, b"\5\0")


@pytest.mark.parametrize("vlan", [-1, 4096, "5", 5.0, None])
def test_what_is_no_vlan(port, unit, vlan):
    with pytest.raises(ValueError, match="from 0 to 4095"):
        port.vlans.add(vlan)
    assert unit.commands == []


def test_tagged_frames_are_not_filtered_unless_asked(make_nic):
    """A port that was just opened loses no frames because its device can filter VLANs."""
    nic = make_nic(NetDevice(features=ALL))
    assert Feature.CTRL_VLAN not in nic.port.features.negotiated
    nic.port.promiscuous = False
    assert arrives(nic, to(nic.port.mac, 5))
    with pytest.raises(FeatureMissing, match=r'features=\["\+ctrl_vlan"\]'):
        nic.port.vlans.add(5)
    with pytest.raises(FeatureMissing):
        nic.port.vlans.discard(5)


# ---- steering, offloads, interrupts --------------------------------------------------------------


@pytest.mark.rule("CVQ-012", "CVQ-023", "CVQ-024", "CVQ-025", "CVQ-026")
def test_rss(port, unit):
    limits = port.rss_limits
    assert (limits.key, limits.table, limits.hash_types) == (40, 128, HASH_TYPES)
    assert port.rss is None
    key = bytes(range(40))
    wanted = Rss([0] * 128, HashType.IPV4 | HashType.TCPV4, key)
    port.rss = wanted
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
    assert nic.port._control.max_pairs() == 4
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
    for wanted in ([Feature.GUEST_TSO4], ["guest_csum"], [Feature.MRG_RXBUF]):
        with pytest.raises(ValueError, match="that were negotiated"):
            port.offloads = wanted
    assert unit.commands == [(5, 0, bytes(8))]


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


# ---- what is set stays set -----------------------------------------------------------------------


def set_everything(port):
    port.mac = OURS
    port.promiscuous = False
    port.all_multicast = True
    port.mac_filter = [OTHER, GROUP]
    for vlan in (5, 6, 7):
        port.vlans.add(vlan)
    port.vlans.discard(6)
    port.rss = Rss([0, 0])
    port.coalesce(rx_usecs=1, rx_frames=2, pair=0)
    port.coalesce(rx_usecs=3, rx_frames=4, tx_usecs=5, tx_frames=6)
    port.coalesce(tx_usecs=7, tx_frames=8, pair=0)


def state(nic):
    unit = nic.device.control
    return unit.filter, unit.mac, unit.rss, unit.coalescing, unit.offloads, nic.port.mac


def test_a_reset_leaves_everything_set(nic, port, unit):
    fresh = state(nic)
    set_everything(port)
    before = state(nic)
    assert before != fresh
    sent = len(unit.commands)
    port.reset()
    assert state(nic) == before
    assert port.promiscuous is False
    assert set(port.vlans) == {5, 7}
    assert len(unit.commands) - sent == 10  # nothing that was overtaken is sent again
    assert not arrives(nic, to(Mac(b"\2\0\0\0\0\xff")))
    assert arrives(nic, to(OTHER))


def test_settings_are_there_again_before_the_first_frame(nic, port):
    port.promiscuous = False
    room = []
    inner = nic.device.control.execute
    nic.device.control.execute = lambda *a: room.append(nic.device.receive_room()) or inner(*a)
    port.reset()
    assert room == [0]


def test_what_is_refused_after_a_reset_is_said_and_forgotten(nic, port, unit):
    set_everything(port)
    unit.refuse = {(4, 1)}
    with pytest.raises(CommandRefused, match="receive-side scaling as before") as caught:
        port.reset()
    assert "once more" in caught.value.mend
    with pytest.raises(PortClosed):
        port.promiscuous = True
    port.reset()
    assert port.rss is None
    assert port.promiscuous is False
    assert unit.mac == OURS


def test_a_device_that_lost_a_feature_at_a_reset(nic, port):
    port.promiscuous = False
    nic.device.offered &= ~mask("ctrl_rx")
    with pytest.raises(FeatureMissing, match="promiscuous mode as before"):
        port.reset()
    port.reset()
    assert port.promiscuous is None
    nic.pass_through(frames(10))


# ---- what cannot be ------------------------------------------------------------------------------


def put(mode, port):
    setattr(port, mode, True)


DEEDS = {
    "ctrl_rx": [
        lambda port: setattr(port, "promiscuous", True),
        lambda port: setattr(port, "all_multicast", False),
        lambda port: setattr(port, "mac_filter", []),
        lambda port: setattr(port, "mac", OURS),
    ],
    "ctrl_rx_extra": [partial(put, mode) for mode in MODES[2:]],
    "ctrl_mac_addr": [lambda port: setattr(port, "mac", OURS)],
    "ctrl_vlan": [lambda port: port.vlans.add(1), lambda port: port.vlans.discard(1)],
    "guest_announce": [lambda port: port.announce()],
    "mq": [lambda port: port._control.set_pairs(1)],
    "rss": [lambda port: setattr(port, "rss", Rss()), lambda port: port.rss_limits],
    "ctrl_guest_offloads": [lambda port: setattr(port, "offloads", [])],
    "notf_coal": [lambda port: port.coalesce(rx_usecs=1, rx_frames=1)],
    "vq_notf_coal": [
        lambda port: port.coalesce(rx_usecs=1, rx_frames=1, pair=0),
        lambda port: port.coalescing(),
    ],
    "device_stats": [lambda port: port.device_stats()],
}
assert DEEDS.keys() == set(COMMANDS) - {"ctrl_vq"}


def refused(nic, deeds, words):
    """Each of them raises FeatureMissing, and sends nothing."""
    for deed in deeds:
        with pytest.raises(FeatureMissing, match=words) as caught:
            deed(nic.port)
        assert caught.value.mend
    assert nic.device.control.commands == []


@pytest.mark.rule("CVQ-002", "CVQ-003", "CVQ-005", "CVQ-022", "CVQ-035", "CVQ-038", "CVQ-039")
@pytest.mark.parametrize("feature", DEEDS)
def test_nothing_is_sent_without_its_feature(make_nic, feature):
    nic = make_nic(NetDevice(features=ALL & ~mask(feature)), features=["+ctrl_vlan"])
    refused(nic, DEEDS[feature], f"does not offer VIRTIO_NET_F_{feature.upper()}")
    nic = make_nic(NetDevice(features=ALL), features=["+ctrl_vlan", f"-{feature}"])
    refused(nic, DEEDS[feature], f'features=."[+]{feature}"')


@pytest.mark.rule("NET-012")
def test_without_a_control_queue_nothing_works_by_commands(make_nic):
    every = [deed for deeds in DEEDS.values() for deed in deeds]
    nic = make_nic(NetDevice(features=ALL & ~mask("ctrl_vq")), features=["+ctrl_vlan"])
    assert nic.device.accepted & mask(*COMMANDS) == 0
    assert 2 not in nic.device.queues
    refused(nic, every, "does not offer VIRTIO_NET_F_CTRL_VQ")
    nic = make_nic(NetDevice(features=ALL), features=["+ctrl_vlan", "-ctrl_vq"])
    refused(nic, every, r'features=."\+ctrl_vq"')


def test_a_closed_port_takes_no_commands(nic, port, unit):
    port.promiscuous = False
    port.close()
    for deeds in DEEDS.values():
        for deed in deeds:
            with pytest.raises(PortClosed, match="is closed"):
                deed(port)
    assert port.promiscuous is False  # what it was
    assert len(unit.commands) == 1


@pytest.mark.parametrize("pairs", [0, 0x8001, 0xFFFF])
def test_a_number_of_pairs_that_cannot_be(pairs):
    device = NetDevice(features=ALL)
    device.config = device.config[:8] + pairs.to_bytes(2, "little") + device.config[10:]
    with pytest.raises(DeviceBroken, match=rf"{pairs} queue pairs(.|\n)*-mq"):
        Nic(device)


@pytest.mark.parametrize("size", [0, 1, 3, 48])
def test_a_control_queue_of_an_odd_size(size):
    device = NetDevice(features=ALL)
    device.control_size = size
    with pytest.raises(DeviceBroken, match=rf"number 2, has {size} entries(.|\n)*-ctrl_vq"):
        Nic(device)


@pytest.mark.parametrize("size", [2, 4, 64, 128, 32768])
def test_control_queues_of_every_size(make_nic, size):
    device = NetDevice(features=ALL)
    device.control_size = size
    nic = make_nic(device)
    for on in [True, False] * 100:
        nic.port.promiscuous = on
    assert device.queues[2].size == min(size, 64)
    assert len(device.control.commands) == 200


def test_where_the_control_queue_is(make_nic):
    """5.1.2: behind all pairs with MQ or RSS, number 2 without."""
    sizes = (64,) * 6
    for leave_out, index in (((), 6), (("mq",), 6), (("rss",), 6), (("mq", "rss"), 2)):
        features = ALL & ~mask(*leave_out)
        nic = make_nic(NetDevice(features=features, queue_sizes=sizes))
        nic.port.promiscuous = True
        assert nic.device.control_index == index
        assert nic.device.queues.keys() == {0, 1, index}


def test_the_default_model_has_no_control_queue(make_nic):
    nic = make_nic(NetDevice(features=DEFAULT_FEATURES))
    assert nic.device.queues.keys() == {0, 1}


def test_on_the_simulator_by_address():
    switches = "&".join(f"{name}=on" for name in COMMANDS)
    with pyvirtnet.open(f"sim:loopback?{switches}") as port:
        port.promiscuous = False
        assert port.send_burst([to(OTHER), to(port.mac)]) == 2
        assert [bytes(frame) for frame in port.recv_burst(4)] == [to(port.mac)]
