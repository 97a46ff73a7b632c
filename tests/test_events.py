"""What the device says of itself: link, speed, duplex, MTU, MAC, live; a change is seen."""

import pytest
from commands import ALL

from pyvirtnet import DeviceBroken, Event, Link, Mac, PortClosed
from pyvirtnet.testing import NetDevice, mask

EVERY = ALL | mask("speed_duplex")
FIRST, SECOND = Mac(bytes.fromhex("020000000001")), Mac(bytes.fromhex("020000000002"))


@pytest.fixture
def nic(make_nic):
    return make_nic(NetDevice(features=EVERY, mtu=1500))


def test_the_first_look_says_how_all_of_it_is(port):
    link = Link(True, None, None)
    assert port.events() == [Event("link", link), Event("mtu", 1500), Event("mac", FIRST)]
    assert port.events() == []


@pytest.mark.parametrize(
    ("change", "event"),
    [
        ({"link": False}, Event("link", Link(False, None, None))),
        ({"speed": 10_000}, Event("link", Link(True, 10_000, None))),
        ({"full_duplex": True}, Event("link", Link(True, None, "full"))),
        ({"full_duplex": False}, Event("link", Link(True, None, "half"))),
        ({"mtu": 9000}, Event("mtu", 9000)),
        ({"mac": SECOND}, Event("mac", SECOND)),
        ({"announcing": True}, Event("announce", None)),
    ],
)
def test_a_change_is_seen_once(device, port, change, event):
    port.events()
    before = {name: getattr(device, name) for name in change}
    device.change(**change)
    assert port.events() == [event]
    assert port.events() == []
    device.change(**before)
    assert len(port.events()) == (0 if event.what == "announce" else 1)


def test_changes_together(device, port):
    port.events()
    device.change(link=False, mtu=68, mac=SECOND, speed=1, full_duplex=True)
    assert [event.what for event in port.events()] == ["link", "mtu", "mac"]
    assert (port.link, port.mtu, port.mac) == (Link(False, 1, "full"), 68, SECOND)
    device.change(link=True)
    device.change(link=False)
    assert port.events() == []  # as it was


def test_an_announcement_is_asked_for_until_it_is_made(device, port):
    device.change(announcing=True)
    assert port.events()[-1] == Event("announce", None)
    assert port.events() == []  # it was said
    port.announce()
    device.change(announcing=True)
    assert port.events() == []  # asked for anew in between: nobody looked
    port.announce()
    assert port.events() == []
    device.change(announcing=True)
    assert port.events() == [Event("announce", None)]


def test_an_announcement_that_was_not_negotiated_is_not_seen(make_nic):
    nic = make_nic(NetDevice(features=EVERY), features=["-guest_announce"])
    nic.device.change(announcing=True)
    assert "announce" not in {event.what for event in nic.port.events()}


def test_a_mac_address_set_by_command_is_a_change_too(port):
    port.events()
    port.mac = SECOND
    assert port.events() == [Event("mac", SECOND)]


def test_values_of_a_device_without_any(make_nic):
    port = make_nic(NetDevice(features=mask("version_1", "access_platform"))).port
    own = port.mac
    assert own[0] & 3 == 2
    assert [event.value for event in port.events()] == [Link(True, None, None), 1500, own]
    assert port.events() == []


def test_what_it_said_last_is_known_when_it_is_stopped(device, port):
    device.change(mac=SECOND, mtu=1400)
    assert (port.mac, port.mtu) == (SECOND, 1400)
    port.close()
    assert (port.mac, port.mtu) == (SECOND, 1400)
    with pytest.raises(PortClosed):
        port.events()


def test_a_device_that_asks_for_a_reset_says_nothing_else(device, port):
    port.events()
    device.need_reset()
    with pytest.raises(DeviceBroken, match="DEVICE_NEEDS_RESET"):
        port.events()
    port.reset()
    assert port.events() == []


def test_speed_and_duplex_are_of_one_moment(device, port):
    """Both come with one read of the configuration, and so of one generation (2.5.1)."""
    reads = []
    inner = device.read_config
    device.read_config = lambda *span: reads.append(span) or inner(*span)
    assert port.link.up
    assert reads == [(6, 2), (12, 5)]
