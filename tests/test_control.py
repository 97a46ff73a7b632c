"""What is set by commands stays set over resets; what the device lacks is an error."""

from functools import partial

import pytest
from commands import ALL, COMMANDS, GROUP, MODES, OTHER, OURS, arrives, to
from nic import Nic, frames

import pyvirtnet
from pyvirtnet import CommandRefused, DeviceBroken, FeatureMissing, Mac, PortClosed, Rss
from pyvirtnet.testing import DEFAULT_FEATURES, NetDevice, mask
from pyvirtnet.transport.sim import SimTransport

FORMATS = {
    "split": (),
    "split, all": ("event_idx", "in_order", "indirect_desc", "notification_data"),
    "packed": ("ring_packed",),
    "packed, all": ("ring_packed", "event_idx", "in_order", "indirect_desc", "notification_data"),
}


@pytest.fixture
def nic(make_nic, start_index):
    return make_nic(NetDevice(features=ALL, start_index=start_index), features=["+ctrl_vlan"])


@pytest.fixture
def unit(device):
    return device.control


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


@pytest.mark.parametrize("ring", FORMATS)
def test_in_every_ring_format(make_nic, start_index, ring):
    offered = ALL & ~mask("event_idx", "indirect_desc") | mask(*FORMATS[ring])
    nic = make_nic(NetDevice(features=offered, start_index=start_index), features=["+ctrl_vlan"])
    set_everything(nic.port)
    before = state(nic)
    for on in [True, False] * 100:
        nic.port.all_unicast = on
    nic.port.reset()
    assert state(nic) == before
    assert arrives(nic, to(OTHER))
    assert nic.port.send_burst(frames(4)) == 4
    assert nic.transmitted() == frames(4)


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


@pytest.mark.parametrize("alignment", [0, 4096])
@pytest.mark.parametrize("size", [0, 1, 3, 48, 65536])
def test_a_control_queue_of_an_odd_size(monkeypatch, size, alignment):
    """A legacy device's queue has the size that the device says it has."""
    monkeypatch.setattr(SimTransport, "ring_alignment", alignment)
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
