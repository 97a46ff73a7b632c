"""A port: opening it, what it says of itself, its errors, its end."""

import os
import resource
from itertools import count

import pytest
from nic import PLAIN, Nic, frame, frames
from vhost_fixtures import descriptors

import pyvirtnet
from pyvirtnet import (
    DeviceBroken,
    DeviceGone,
    Error,
    Feature,
    FeatureMissing,
    Link,
    Mac,
    NotVirtioNet,
    OutOfMemory,
    PortClosed,
)
from pyvirtnet.testing import DEFAULT_FEATURES, Loopback, NetDevice, mask
from pyvirtnet.testing.layout import NET_CONFIG
from pyvirtnet.transport.sim import SimTransport

# ---- open ----------------------------------------------------------------------------------------


def test_open_on_the_simulator():
    with pyvirtnet.open("sim:loopback") as port:
        assert port.send_burst(frames(10, 1000)) == 10
        assert [bytes(one) for one in port.recv_burst(64)] == frames(10, 1000)
        assert repr(port) == "<Port sim:loopback>"
    assert repr(port) == "<Port sim:loopback (closed)>"


def test_open_with_too_few_descriptors():
    """However few: each time the error says what allows more, and none is kept."""
    pyvirtnet.open("sim:loopback").close()  # which imports modules, too
    limits, before, mends = resource.getrlimit(resource.RLIMIT_NOFILE), descriptors(), []
    free = os.dup(0)
    os.close(free)
    for more in count():
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + more, limits[1]))
        try:
            pyvirtnet.open("sim:loopback").close()
            break
        except OutOfMemory as error:
            mends.append(error.mend)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert descriptors() == before
    assert mends
    assert all("ulimit -n" in mend for mend in mends)


def test_open_with_options():
    with pyvirtnet.open("sim:loopback", ring_size=16, pages=100, features=["-mrg_rxbuf"]) as port:
        info = port.info()
    assert info["ring_sizes"] == [16, 16]
    assert info["pages"] == 100
    assert info["receive_mode"] == "small"
    assert "mrg_rxbuf" not in info["features"]


@pytest.mark.parametrize(
    "address", ["", "sim:", "sim:other", "0000:ff:1f.7", "eth", "vhost-user:", "no/such", "\0"]
)
def test_an_address_of_nothing(address):
    with pytest.raises(Error) as caught:
        pyvirtnet.open(address)
    assert caught.value.what
    assert caught.value.mend


@pytest.mark.parametrize("ring_size", [0, 1, 3, 100, 257, 512, -8, 1 << 40])
def test_ring_sizes_that_cannot_be(ring_size):
    with pytest.raises(ValueError, match="powers of two from 2 to 256"):
        pyvirtnet.open("sim:loopback", ring_size=ring_size)


@pytest.mark.parametrize("pages", [0, -1])
def test_a_port_needs_a_page(pages):
    with pytest.raises(ValueError, match="at least one page"):
        pyvirtnet.open("sim:loopback", pages=pages)


def test_a_setting_that_is_misspelt_is_refused():
    """`port.promiscous = True` did nothing, and said nothing."""
    with pyvirtnet.open("sim:loopback") as port:
        with pytest.raises(AttributeError, match="no setting 'promiscous'"):
            port.promiscous = True

        class Mine(pyvirtnet.Port):
            pass

        mine = Mine(SimTransport(Loopback(), "sim:loopback"))
        mine.label = "left"  # their own are theirs
        mine.close()


def test_switches_are_a_list():
    with pytest.raises(TypeError, match=r"a list of switches: \['-ring_packed'\]"):
        pyvirtnet.open("sim:loopback", features="-ring_packed")


@pytest.mark.parametrize("name", ["ring_size", "pages", "queue_pairs"])
@pytest.mark.parametrize("value", ["256", 256.0, [256]])
def test_counts_are_integers(name, value):
    with pytest.raises(TypeError, match=f"^{name} takes an integer, not "):
        pyvirtnet.open("sim:loopback", **{name: value})


@pytest.mark.parametrize("option", ["x=on", "noiommu=on&iommufd=on", "noiommu"])
def test_options_that_a_pci_address_has_not(option):
    with pytest.raises(pyvirtnet.NoSuchDevice, match=r"no option .*\n.*?noiommu=on"):
        pyvirtnet.open(f"0000:00:04.0?{option}")


@pytest.mark.parametrize("pages", [1 << 31, 1 << 40])
def test_more_pages_than_there_are(pages):
    with pytest.raises((OutOfMemory, OverflowError)):
        pyvirtnet.open("sim:loopback", pages=pages)


def test_a_port_that_could_not_be_opened_holds_nothing():
    with pytest.raises(ValueError):
        pyvirtnet.open("sim:cable/test_port/0", ring_size=3)
    pyvirtnet.open("sim:cable/test_port/0").close()


class Faulty(NetDevice):
    """Refuses FEATURES_OK, or has queues of an odd kind."""

    refuse = False
    sizes = None

    def write_status(self, value):
        super().write_status(value)
        if self.refuse:
            self._status &= ~8

    def queue_max_size(self, index):
        return super().queue_max_size(index) if self.sizes is None else self.sizes[index]


def faulty(**attributes):
    device = Faulty()
    vars(device).update(attributes)
    return device


@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        (
            faulty(refuse=True),
            FeatureMissing,
            "asked for access_platform, event_idx, indirect_desc, mac",
        ),
        (faulty(sizes=(0, 256)), NotVirtioNet, "no queue 0"),
        (faulty(sizes=(256, 0)), NotVirtioNet, "no queue 1"),
        (faulty(sizes=(100, 256)), DeviceBroken, "size 100"),
        (faulty(sizes=(256, 65536)), DeviceBroken, "size 65536"),
        (NetDevice(features=DEFAULT_FEATURES & ~mask("version_1")), FeatureMissing, "legacy"),
    ],
    ids=["features refused", "no receive queue", "no transmit queue", "odd", "huge", "legacy"],
)
def test_a_device_that_cannot_be_driven(device, error, words):
    with pytest.raises(error, match=words):
        Nic(device)
    assert device.read_status() == 0
    assert device.translate is None


@pytest.mark.rule("BAS-005", "BAS-038")
def test_a_device_that_fails_is_told_so():
    written = []

    class Recorded(Faulty):
        refuse = True

        def write_status(self, value):
            written.append(value)
            super().write_status(value)

    with pytest.raises(FeatureMissing):
        Nic(Recorded())
    assert written.index(3 | 128) < len(written) - 1
    assert written[-1] == 0


# ---- what it says of itself ----------------------------------------------------------------------


@pytest.mark.rule("NET-019")
def test_mac(make_nic):
    nic = make_nic(mac=bytes.fromhex("525400123456"))
    assert nic.port.mac == bytes.fromhex("525400123456")
    assert isinstance(nic.port.mac, Mac)
    assert str(nic.port.mac) == "52:54:00:12:34:56"
    assert repr(nic.port.mac) == "Mac(52:54:00:12:34:56)"


@pytest.mark.rule("NET-020")
def test_a_device_without_a_mac_gets_a_local_one(make_nic):
    one, other = (make_nic(features=["-mac"]).port.mac for _ in range(2))
    assert one != other
    assert len(one) == 6
    assert one[0] & 3 == 2  # locally administered, not a group


@pytest.mark.rule("NET-022")
def test_link_up_and_down(make_nic):
    nic = make_nic(link=False)
    assert nic.port.link == Link(False, None, None)
    nic.device.set_link(True)
    assert nic.port.link == Link(True, None, None)


@pytest.mark.rule("NET-021")
def test_a_link_without_status_is_up(make_nic):
    assert make_nic(link=False, features=["-status"]).port.link.up


@pytest.mark.rule("NET-027", "NET-028")
@pytest.mark.parametrize(
    ("speed", "duplex", "link"),
    [
        (0xFFFFFFFF, 0xFF, Link(True, None, None)),
        (10_000, 1, Link(True, 10_000, "full")),
        (100, 0, Link(True, 100, "half")),
        (0x7FFFFFFF, 7, Link(True, 0x7FFFFFFF, None)),
        (0x80000000, 1, Link(True, None, "full")),
        (0, 1, Link(True, 0, "full")),
    ],
)
def test_speed_and_duplex(make_nic, speed, duplex, link):
    device = NetDevice(features=DEFAULT_FEATURES | mask("speed_duplex"))
    nic = make_nic(device)
    device.config = NET_CONFIG.pack(device.mac, 1, 1, 0, speed, duplex, 0, 0, 0, 0)
    assert nic.port.link == link


def test_mtu(make_nic):
    assert make_nic().port.mtu == 1500
    assert make_nic().port.max_frame == 65535
    nic = make_nic(mtu=9000)
    assert (nic.port.mtu, nic.port.max_frame) == (9000, 9014)
    nic = make_nic(mtu=65535)
    assert (nic.port.mtu, nic.port.max_frame) == (65535, 65535)


@pytest.mark.rule("NET-024")
def test_an_mtu_that_no_page_holds_is_not_accepted_without_mrg_rxbuf(make_nic):
    nic = make_nic(mtu=9000, features=["-mrg_rxbuf"])
    assert Feature.MTU not in nic.port.features.negotiated
    assert nic.port.max_frame == 65535
    nic = make_nic(mtu=4070, features=["-mrg_rxbuf"])
    assert Feature.MTU in nic.port.features.negotiated


def test_features(make_nic):
    features = make_nic(features=["-mac"]).port.features
    assert features.offered_bits == PLAIN
    assert Feature.MAC in features.offered - features.negotiated
    assert features.negotiated == {
        Feature.VERSION_1,
        Feature.ACCESS_PLATFORM,
        Feature.STATUS,
        Feature.MRG_RXBUF,
    } | (features.negotiated - features.offered)


def test_info(nic):
    info = nic.port.info()
    assert info["name"] == "sim:test"
    assert info["transport"] == "SimTransport"
    assert info["mac"] == "02:00:00:00:00:01"
    assert (info["mtu"], info["max_frame"]) == (1500, 65535)
    assert info["receive_mode"] == "mergeable"
    assert info["ring_sizes"] == [256, 256]
    assert info["pages"] == info["free_pages"] + info["posted_pages"] == 768
    assert info["posted_pages"] == 256
    assert info["page_size"] in (4096, 2 << 20)
    assert info["features"] == sorted(info["features"])


def test_counters_add_up_over_resets(nic):
    for number in range(3):
        nic.device.deliver(*frames(10), frame(5), frame(9014))
        assert len(nic.receive()) == 11
        assert nic.port.send_burst(frames(7, 100)) == 7
        nic.transmitted()
        nic.port.reclaim()
        stats = nic.port.stats
        assert stats.rx_frames == 11 * (number + 1)
        assert stats.rx_bytes == (600 + 9014) * (number + 1)
        assert stats.rx_buffers == 14 * (number + 1)
        assert stats.rx_runts == number + 1
        assert stats.tx_frames == stats.tx_reclaimed == 7 * (number + 1)
        assert stats.tx_bytes == 700 * (number + 1)
        nic.port.reset()
    nic.port.close()
    assert nic.port.stats.rx_frames == 33


def test_public_names():
    for name in pyvirtnet.__all__:
        assert getattr(pyvirtnet, name).__doc__, f"{name} has no docstring"
        assert name in dir(pyvirtnet)
    with pytest.raises(AttributeError, match="no_such"):
        assert pyvirtnet.no_such


@pytest.mark.parametrize(
    "kind", [pyvirtnet.Port, pyvirtnet.RxBurst, pyvirtnet.TxBurst, pyvirtnet.Frame]
)
def test_public_methods_are_documented(kind):
    for name in dir(kind):
        if not name.startswith("_"):
            assert getattr(kind, name).__doc__, f"{kind.__name__}.{name} has no docstring"


def test_methods_of_a_port_are_those_of_its_queue(port):
    assert port.queues[0].recv_burst == port.recv_burst
    assert len(port.queues) == 1


def test_errors_name_the_mend():
    error = Error("it failed", "because", "do this")
    assert str(error) == "it failed: because\n  mend: do this"
    assert str(Error("it failed")) == "it failed"
    assert (error.what, error.why, error.mend) == ("it failed", "because", "do this")


# ---- its end -------------------------------------------------------------------------------------


def test_closing_twice(nic):
    nic.port.close()
    nic.port.close()
    assert nic.device.read_status() == 0


def test_a_closed_port(nic):
    made = nic.port.alloc_burst(4, 60)
    nic.port.close()
    for call in (
        lambda: nic.port.recv_burst(1),
        lambda: nic.port.recv_burst(1, timeout=5),
        lambda: nic.port.send_burst(frames(1)),
        lambda: nic.port.send_burst(made),
        nic.port.reclaim,
        lambda: nic.port.alloc_burst(1, 60),
        nic.port.reset,
    ):
        with pytest.raises(PortClosed, match="sim:test is closed"):
            call()
    with pytest.raises((PortClosed, DeviceGone)):
        assert nic.port.link
    assert nic.port.tx_pending == 0
    assert nic.port.mac == nic.device.mac
    assert nic.port.stats.rx_frames == 0


def test_an_exception_in_a_with_statement_closes_the_port():
    with pytest.raises(RuntimeError, match="mine"):
        with pyvirtnet.open("sim:loopback") as port:
            raise RuntimeError("mine")
    with pytest.raises(PortClosed):
        port.recv_burst(1)


def test_a_forgotten_port_is_closed():
    device = Loopback()
    Nic(device)
    assert device.read_status() == 0


def test_reset_empties_the_rings(nic):
    nic.device.deliver(*frames(10))
    assert nic.port.send_burst(frames(10)) == 10
    nic.port.reset()
    assert nic.port.tx_pending == 0
    assert nic.receive() == []
    assert nic.transmitted() == []
    nic.pass_through(frames(600))


def test_a_device_that_dies_at_a_reset(nic):
    """The port can still be closed, and says what is wrong."""
    burst = nic.port.alloc_burst(1, 60)
    nic.device.refuse = True
    nic.device._queue_sizes = (0, 0)
    with pytest.raises(NotVirtioNet):
        nic.port.reset()
    with pytest.raises(PortClosed):
        nic.port.recv_burst(1)
    with pytest.raises(PortClosed):
        nic.port.send_burst(burst)
    nic.device._queue_sizes = (256, 256)
    nic.port.reset()
    nic.pass_through(frames(10))
