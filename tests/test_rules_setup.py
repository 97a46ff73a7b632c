"""Rules of initialisation, features and configuration, held by the driver (VIRTIO, 2.1 - 3.1)."""

import pytest
from nic import Nic, frames

from pyvirtnet import DeviceBroken, Feature, FeatureMissing, Link, Port
from pyvirtnet.negotiate import ON_REQUEST, SUPPORTED, to_bits
from pyvirtnet.testing import DEFAULT_FEATURES, FEATURES, NetDevice, mask
from pyvirtnet.transport.sim import SimTransport

BARE = mask("version_1", "access_platform")
EVERYTHING = (1 << 70) - 1
ACKNOWLEDGED = [("write_status", 0), ("write_status", 1), ("write_status", 3)]


class Recorded(NetDevice):
    """Keeps what the driver does to it, in order; of a queue's set-up only which queue."""

    def __init__(self, **options):
        self.calls = []
        self.busy = False  # what the device asks of itself is not the driver's
        super().__init__(**options)


def recorded(name):
    inner = getattr(NetDevice, name)

    def call(self, *arguments):
        if self.busy:
            return inner(self, *arguments)
        self.calls.append((name, *arguments[: 1 if name == "configure_queue" else None]))
        self.busy = True
        try:
            return inner(self, *arguments)
        finally:
            self.busy = False

    return call


for _name in ("read_status", "write_status", "offered_features", "accept_features", "read_config",
              "queue_max_size", "configure_queue", "enable", "kick"):  # fmt: skip
    setattr(Recorded, _name, recorded(_name))


def sequence(bits, early=()):
    """What is done to a device that is opened; its status and queue sizes are read between."""
    return [
        *ACKNOWLEDGED,
        ("offered_features",),
        *early,
        ("accept_features", bits),
        ("write_status", 11),
        ("read_config", 0, 6),
        ("configure_queue", 0),
        ("enable", 0),
        ("configure_queue", 1),
        ("enable", 1),
        ("write_status", 15),
        ("kick", 0),
    ]


@pytest.mark.rule("BAS-003", "BAS-004", "BAS-027", "BAS-028", "BAS-029", "BAS-030", "BAS-031",
                  "BAS-032", "BAS-033", "BAS-034", "BAS-035", "BAS-036", "BAS-037", "BAS-040",
                  "BAS-043", "PCI-022", "PCI-024")  # fmt: skip
@pytest.mark.parametrize("mtu", [None, 1500])
def test_the_order_of_initialisation(make_nic, mtu):
    device = Recorded(mtu=mtu)
    nic = make_nic(device)
    early = [("read_config", 10, 2)] if mtu else []
    bits = nic.port.features.bits
    for before in ([], [("write_status", 0)]):  # a port that runs is stopped first
        steps = [call for call in device.calls if call[0] not in ("read_status", "queue_max_size")]
        assert steps == before + sequence(bits, early)
        agreed = device.calls.index(("write_status", 11)) + 1
        assert device.calls[agreed] == ("read_status",)
        assert device.calls.index(("queue_max_size", 0)) > agreed
        device.calls.clear()
        nic.port.reset()


# ---- stages that fail ----------------------------------------------------------------------------


class Failing(SimTransport):
    """A device that breaks its contract when one thing is asked of it, and from then on works."""

    fails = ""


def failing(name):
    inner = getattr(SimTransport, name)

    def call(self, *arguments):
        if name == self.fails:
            self.device.calls.clear()
            raise DeviceBroken(f"{name} failed")
        return inner(self, *arguments)

    return call


STAGES = ("offered_features", "accept_features", "read_config", "queue_max_size", "setup_queue")
for _name in STAGES:
    setattr(Failing, _name, failing(_name))


@pytest.mark.rule("BAS-005", "BAS-038", "BAS-039")
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_fails_ends_initialisation(stage):
    device = Recorded()
    transport = Failing(device)
    transport.fails = stage
    with pytest.raises(DeviceBroken, match=stage):
        Port(transport)
    done = [call for call in device.calls if call[0] != "read_status"]
    failed, *rest = done
    assert failed[0] == "write_status"
    assert failed[1] & 0x84 == 0x80  # FAILED, without DRIVER_OK
    assert set(rest) == {("write_status", 0)}
    device.calls.clear()
    with Port(Failing(device)):
        assert device.calls[0] == ("write_status", 0)


@pytest.mark.rule("BAS-005", "BAS-015", "BAS-035", "BAS-039", "RSV-002", "LEG-001")
@pytest.mark.parametrize(
    ("offered", "required"),
    [
        (DEFAULT_FEATURES & ~mask("version_1"), 0),
        (DEFAULT_FEATURES | mask("sr_iov"), mask("sr_iov")),
    ],
    ids=["legacy", "FEATURES_OK refused"],
)
def test_features_that_cannot_be_agreed_on(offered, required):
    device = Recorded(features=offered, required=required)
    with pytest.raises(FeatureMissing):
        Nic(device)
    written = [call[1] for call in device.calls if call[0] == "write_status"]
    failed = written.index(3 | 0x80)  # FAILED
    assert set(written[failed + 1 :]) == {0}
    assert not {"configure_queue", "enable", "kick"} & {call[0] for call in device.calls}


# ---- features ------------------------------------------------------------------------------------


@pytest.mark.rule("BAS-007", "BAS-009", "BAS-010", "BAS-011", "BAS-012", "BAS-013", "BAS-016",
                  "RSV-001", "RSV-003", "RSV-010", "NET-018", "NET-023")  # fmt: skip
def test_a_device_that_offers_every_bit(make_nic):
    nic = make_nic(NetDevice(features=EVERYTHING, mtu=1500))
    assert nic.device.accepted == to_bits(SUPPORTED - ON_REQUEST)
    assert nic.device.accepted & ~mask(*FEATURES) == 0
    assert not SUPPORTED & {Feature.SR_IOV, Feature.STANDBY}
    nic.pass_through(frames(300))


@pytest.mark.rule("BAS-014", "NET-020", "NET-021")
def test_a_device_that_offers_nothing_more_than_it_must(make_nic):
    nic = make_nic(NetDevice(features=BARE))
    nic.pass_through(frames(300))
    assert nic.port.send_burst(frames(10)) == 10
    assert nic.transmitted() == frames(10)
    assert nic.port.link.up
    assert nic.port.mac[0] & 3 == 2


DEPENDENT = [  # 5.1.3.1: features, and sets of features one of each of which they need
    *((name, ["guest_csum"]) for name in (
        "guest_tso4", "guest_tso6", "guest_ufo", "guest_uso4", "guest_uso6")),
    ("guest_ecn", ["guest_tso4 guest_tso6"]),
    ("guest_udp_tunnel_gso", ["guest_tso4", "guest_tso6", "guest_uso4", "guest_uso6"]),
    ("guest_udp_tunnel_gso_csum", ["guest_udp_tunnel_gso"]),
    *((name, ["csum"]) for name in ("host_tso4", "host_tso6", "host_ufo", "host_uso")),
    ("host_ecn", ["host_tso4 host_tso6"]),
    ("host_udp_tunnel_gso", ["host_tso4", "host_tso6", "host_uso"]),
    ("host_udp_tunnel_gso_csum", ["host_udp_tunnel_gso"]),
    *((name, ["ctrl_vq"]) for name in (
        "ctrl_rx", "ctrl_vlan", "guest_announce", "mq", "ctrl_mac_addr", "notf_coal",
        "vq_notf_coal", "rss", "ctrl_rx_extra", "hash_report")),
    ("rsc_ext", ["host_tso4 host_tso6"]),
    ("hash_tunnel", ["ctrl_vq", "rss hash_report"]),
    ("rss_context", ["ctrl_vq", "rss"]),
]  # fmt: skip
ONE_LACKS = [(name, lacking) for name, needs in DEPENDENT for lacking in needs]


@pytest.mark.rule("BAS-008", "NET-004", "NET-005", "NET-006", "NET-007", "NET-008", "NET-009",
                  "NET-010", "NET-011", "NET-012", "NET-013", "NET-014", "NET-015", "NET-030",
                  "NET-031")  # fmt: skip
@pytest.mark.parametrize(("name", "lacking"), ONE_LACKS, ids=[f"{a}-{b}" for a, b in ONE_LACKS])
def test_a_feature_without_one_it_needs(make_nic, name, lacking):
    """The device offers it all the same, along with everything else."""
    nic = make_nic(NetDevice(features=EVERYTHING & ~mask(*lacking.split()), mtu=1500))
    assert not nic.device.accepted & mask(name)
    nic.pass_through(frames(10))


@pytest.mark.rule("BAS-008")
@pytest.mark.parametrize(
    "dropped", sorted(SUPPORTED - {Feature.VERSION_1, Feature.ACCESS_PLATFORM})
)
def test_a_feature_that_the_caller_declines_takes_what_needs_it_along(make_nic, dropped):
    """The model objects to any feature accepted without what it needs."""
    options = [f"-{dropped.name.lower()}"]
    nic = make_nic(NetDevice(features=EVERYTHING, mtu=1500), features=options)
    assert not nic.device.accepted >> dropped & 1
    nic.pass_through(frames(10))


# ---- configuration -------------------------------------------------------------------------------


@pytest.mark.rule("BAS-023", "NET-019", "NET-022")
@pytest.mark.parametrize(
    ("feature", "fields"),
    [
        (None, set()),
        ("mac", {(0, 6)}),
        ("status", {(6, 2)}),
        ("mtu", {(10, 2)}),
        ("speed_duplex", {(12, 5)}),
    ],
)
def test_only_fields_of_offered_features_are_read(make_nic, feature, fields):
    offered = BARE | (mask(feature) if feature else 0)
    device = Recorded(features=offered, mtu=1500 if feature == "mtu" else None)
    port = make_nic(device).port
    assert (port.mac == device.mac) == (feature == "mac")
    assert (port.mtu, port.link.up, port.info()["mtu"]) == (1500, True, 1500)
    assert {call[1:] for call in device.calls if call[0] == "read_config"} == fields


@pytest.mark.rule("NET-029", "NET-022")
def test_the_link_is_read_anew(make_nic):
    device = NetDevice(features=DEFAULT_FEATURES | mask("speed_duplex"))
    port = make_nic(device).port
    for up, speed, duplex in ((1, 1000, 1), (1, 100, 0), (0, 100, 0)):
        config = bytearray(device.config)
        config[6], config[12:16], config[16] = up, speed.to_bytes(4, "little"), duplex
        device.config = bytes(config)
        assert port.link == Link(bool(up), speed, "full" if duplex else "half")


@pytest.mark.rule("BAS-006")
def test_a_device_that_needs_a_reset_gets_it_and_works(nic):
    """What was in flight is lost, and counted as such: nothing waits for it."""
    assert nic.port.send_burst(frames(10)) == 10
    nic.device.need_reset()
    nic.port.reset()
    assert nic.device.read_status() == 15
    assert (nic.port.tx_pending, nic.port.stats.tx_lost) == (0, 10)
    nic.pass_through(frames(300))
