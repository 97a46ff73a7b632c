"""Rules of set-up and notification: each fires when a driver breaks it."""

import struct

import pytest
from model_driver import BASE, EVENTS, FRAME, MERGED, PLAIN, SIZE, Driver, breaks

from pyvirtnet.testing import DEFAULT_FEATURES, NetDevice, mask

# ---- status and features -----------------------------------------------------------------------


@pytest.mark.rule(
    "BAS-003",
    "BAS-027",
    "BAS-028",
    "BAS-029",
    "BAS-030",
    "BAS-033",
    "BAS-035",
    "BAS-036",
    "BAS-037",
)
@pytest.mark.parametrize(
    ("missing", "rule"),
    [
        ("reset", "initialisation begins with a reset"),
        ("acknowledge", "status bits are set in order, a stage at a time"),
        ("driver", "features are written after DRIVER is set"),
        ("features", "features are written before FEATURES_OK"),
        ("features_ok", "FEATURES_OK is read back"),
        ("read back", "FEATURES_OK is read back"),
        ("queue 0", "the first queue pair is set up before DRIVER_OK"),
        ("queue 1", "the first queue pair is set up before DRIVER_OK"),
    ],
)
def test_a_missing_step(missing, rule):
    breaks(lambda driver: driver.up(without={missing}), rule)


@pytest.mark.rule("BAS-004", "BAS-005", "BAS-043")
@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ((2,), "no status bit is cleared but by a reset"),
        ((3 | 16,), "only defined status bits are set"),
        ((3 | 4,), "status bits are set in order"),
        ((3 | 128, 3 | 128 | 8), "after FAILED comes a reset"),
    ],
)
def test_status(values, rule):
    def act(driver):
        driver.up(until="features")
        for value in values:
            driver.device.write_status(value)

    breaks(act, rule)


@pytest.mark.rule("BAS-007", "BAS-010", "BAS-011", "RSV-001")
@pytest.mark.parametrize(
    ("offered", "accepted", "rule"),
    [
        (PLAIN, MERGED, "only features that are offered are accepted"),
        (PLAIN | 1 << 45, PLAIN | 1 << 45, "reserved features are not accepted"),
        (PLAIN | 1 << 30, PLAIN | 1 << 30, "reserved features are not accepted"),
        (PLAIN, PLAIN & ~mask("version_1"), "VERSION_1 is accepted where it is offered"),
    ],
)
def test_features(offered, accepted, rule):
    breaks(lambda driver: driver.up(), rule, features=accepted, device=NetDevice(features=offered))


DEPENDENCIES = [
    *((name, "", "guest_csum") for name in (
        "guest_tso4", "guest_tso6", "guest_ufo", "guest_uso4", "guest_uso6")),
    ("guest_ecn", "", "guest_tso4"),
    *((name, "", "csum") for name in ("host_tso4", "host_tso6", "host_ufo", "host_uso")),
    ("host_ecn", "", "host_tso4"),
    *((name, "", "ctrl_vq") for name in (
        "ctrl_rx", "ctrl_vlan", "guest_announce", "mq", "ctrl_mac_addr", "notf_coal",
        "vq_notf_coal", "rss", "ctrl_rx_extra", "hash_report")),
    ("rsc_ext", "", "host_tso6"),
    ("hash_tunnel", "ctrl_vq", "rss"),
]  # fmt: skip


@pytest.mark.rule(
    "BAS-008",
    "NET-004",
    "NET-005",
    "NET-008",
    "NET-009",
    "NET-012",
    "NET-013",
    "NET-014",
    "NET-030",
    "NET-031",
)
@pytest.mark.parametrize(("feature", "present", "lacking"), DEPENDENCIES)
def test_a_feature_needs_another(feature, present, lacking):
    accepted = PLAIN | mask(feature, *present.split())
    device = NetDevice(features=accepted | mask(lacking))
    rule = f"{feature.upper()} needs"
    breaks(lambda driver: driver.up(until="read back"), rule, features=accepted, device=device)
    needs = {"guest_ecn": "guest_csum", "host_ecn": "csum", "rsc_ext": "csum"}.get(feature)
    whole = accepted | mask(lacking, *([needs] if needs else []))
    driver = Driver(NetDevice(features=whole)).up(until="read back")
    assert driver.device.read_status() == 11


@pytest.mark.rule("BAS-034")
def test_features_after_features_ok():
    def act(driver):
        driver.up(until="queue 0").device.accept_features(PLAIN)

    breaks(act, "no features are accepted after FEATURES_OK")


def test_the_device_refuses_features_it_cannot_do_without():
    driver = Driver(features=DEFAULT_FEATURES & ~mask("access_platform")).up(until="read back")
    assert driver.device.read_status() == 3
    driver.device.write_status(3 | 128)
    driver.device.check()


@pytest.mark.rule("BAS-023", "BAS-032", "NET-017")
def test_configuration():
    breaks(lambda driver: driver.device.read_config(0, 6), "configuration is read after DRIVER")

    def read_mtu(driver):
        driver.up().device.read_config(10, 2)

    breaks(read_mtu, "an optional field is read only where its feature is offered")
    driver = Driver(mtu=1500).up()
    assert driver.device.read_config(0, 8) == bytes.fromhex("020000000001") + b"\1\0"
    assert driver.device.read_config(10, 2) == struct.pack("<H", 1500)

    def write(driver):
        driver.up().device.write_config(0, b"\2")

    breaks(write, "configuration is never written")


# ---- queue set-up ------------------------------------------------------------------------------


@pytest.mark.rule("SPL-001", "PCI-021")
@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"size": 0}, "a size is a power of two"),
        ({"size": 6}, "a size is a power of two"),
        ({"size": 16}, "a size is a power of two up to the maximum"),
        ({"desc": BASE + 8}, "the descriptor table is aligned to 16"),
        ({"driver": BASE + 0x4001}, "the available ring is aligned to 2"),
        ({"device": BASE + 0x5002}, "the used ring is aligned to 4"),
        ({"desc": 0x1000}, "virtqueues lie in DMA memory"),
        ({"device": BASE + SIZE - 64}, "virtqueues lie in DMA memory"),
        ({"driver": BASE + 16}, "memory that the device may write is lent to it once"),
    ],
)
def test_queue_set_up(changes, rule):
    def act(driver):
        driver.up(until="queue 0")
        driver.set_up(driver.rx, **changes)

    breaks(act, rule)


@pytest.mark.rule("BAS-036", "PCI-022", "PCI-024")
def test_queue_set_up_order():
    def again(driver):
        driver.up(until="driver_ok").set_up(driver.rx)

    def late(driver):
        driver.up().set_up(driver.rx)

    def absent(driver):
        driver.up(until="queue 0").device.configure_queue(2, 8, BASE, BASE, BASE)

    def disable(driver):
        driver.up(until="driver_ok").device.enable(0, 0)

    def unprepared(driver):
        driver.up(until="queue 0").device.enable(0)

    def twice(driver):
        driver.up(until="driver_ok").device.enable(0)

    breaks(twice, "a queue is enabled once")
    breaks(again, "an enabled queue is not set up again")
    breaks(late, "queues are set up before DRIVER_OK")
    breaks(absent, "only queues that exist are set up")
    breaks(disable, "queue_enable is only ever written 1")
    breaks(unprepared, "a queue is set up before it is enabled")
    assert Driver().device.queue_max_size(2) == 0


@pytest.mark.rule("SPL-024")
@pytest.mark.parametrize("offset", [0, 2, 4, 4 + 8 * 8])
def test_used_ring_is_zeroed(offset):
    def act(driver):
        driver.rx.put16(driver.rx.used + offset, 1)
        driver.up()

    breaks(act, "the used ring starts zeroed")


# ---- notifications -----------------------------------------------------------------------------


@pytest.mark.rule("BAS-040")
def test_kicks():
    breaks(lambda driver: driver.up(until="driver_ok").device.kick(0), "no kick before DRIVER_OK")
    breaks(lambda driver: driver.up().device.kick(2), "only enabled queues are kicked")


@pytest.mark.rule("SPL-026", "SPL-030")
@pytest.mark.parametrize("features", [MERGED, EVENTS])
def test_a_kick_that_was_not_wanted(features):
    def act(driver):
        driver.up().device.silence(1)
        driver.send(FRAME)

    breaks(act, "no kick where the device asked for none", features=features)
    driver = Driver(features=features, strict_kicks=False)
    act(driver)
    assert driver.device.take() == [FRAME]


@pytest.mark.rule("SPL-027", "SPL-029")
@pytest.mark.parametrize("start_index", [0, 0xFFFE])
@pytest.mark.parametrize("features", [MERGED, EVENTS])
def test_a_missed_kick(features, start_index):
    driver = Driver(features=features, start_index=start_index).up()
    driver.post(2)
    driver.send(FRAME, kick=False)
    assert driver.device.missed_kicks() == [1]
    assert driver.device.missed_kicks() == [1]
    driver.device.kick(1)
    assert driver.device.missed_kicks() == []
    driver.device.silence(1)
    driver.send(FRAME, kick=False)
    assert driver.device.missed_kicks() == []
    driver.device.silence(1, on=False)
    assert driver.device.missed_kicks() == []
    driver.send(FRAME, kick=False)
    assert driver.device.missed_kicks() == [1]


@pytest.mark.rule("SPL-013", "SPL-015")
@pytest.mark.parametrize(("features", "flags"), [(MERGED, 2), (EVENTS, 1)])
def test_available_flags(features, flags):
    def act(driver):
        driver.up().rx.put16(driver.rx.avail, flags)
        driver.post()

    breaks(act, "avail.flags is at most", features=features)
