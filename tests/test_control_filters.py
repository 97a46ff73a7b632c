"""Which frames arrive, by commands: receive modes, MAC addresses, VLANs."""

import numpy as np
import pytest
from commands import ALL, GROUP, MODES, OTHER, OURS, arrives, to

from pyvirtnet import CommandRefused, Feature, FeatureMissing
from pyvirtnet.testing import NetDevice, mask
from pyvirtnet.testing.control import MAX_MACS


@pytest.fixture
def nic(make_nic, start_index):
    return make_nic(NetDevice(features=ALL, start_index=start_index), features=["+ctrl_vlan"])


@pytest.fixture
def unit(device):
    return device.control


@pytest.mark.parametrize("mode", MODES)
def test_modes(port, unit, mode):
    assert getattr(port, mode) is None  # the device's own, until somebody chooses
    for on in (True, False, True):
        setattr(port, mode, on)
        assert getattr(port, mode) is on
        assert getattr(unit.filter, mode) is on
    assert unit.commands == [(0, MODES.index(mode), bytes([on])) for on in (1, 0, 1)]


def test_a_mode_cannot_be_given_back_to_the_device(port, unit):
    """None, which an unset mode reads as, was sent as off, and "no" as on."""
    for mode in MODES:
        for value in (None, "no", [], 2):
            with pytest.raises(TypeError, match="True or False"):
                setattr(port, mode, value)
    assert unit.commands == []


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


def test_vlans_are_a_set(port, unit):
    """What its operators returned was a set without a port, and failed when it was looked at."""
    port.vlans.add(np.int64(5))
    assert port.vlans & {5, 6} == {5, 6} & port.vlans == {5}
    assert port.vlans | {7} == {5, 7}
    assert port.vlans - {5} == port.vlans ^ {5} == set()
    port.vlans |= {9, 0}
    assert unit.filter.vlans == port.vlans == {0, 5, 9}
    port.vlans = [9, 11]
    assert unit.filter.vlans == {9, 11}
    with pytest.raises(ValueError, match="from 0 to 4095"):
        port.vlans = [1, 4096]
    for vlan in 4096, "5", None:
        port.vlans.discard(vlan)  # it is not in there
    assert unit.filter.vlans == {9, 11}


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
