"""Each rule of the device model fires when a driver breaks it."""

import re
import struct

import pytest
from model_driver import BASE, BUFFERS, FRAMES, HEADER, INDIRECT, NEXT, PAGE, SIZE, WRITE, Driver

from pyvirtnet.testing import DEFAULT_FEATURES, NetDevice, Violation, mask
from pyvirtnet.testing.chain import Chain

PLAIN = mask("version_1", "access_platform", "mac", "status")
MERGED = PLAIN | mask("mrg_rxbuf")
INDIRECTS = MERGED | mask("indirect_desc")
EVENTS = MERGED | mask("event_idx")
FRAME = bytes(range(60))


def broken(rule):
    return pytest.raises(Violation, match=re.escape(rule))


def breaks(act, rule, **options):
    """`act` on a driver breaks `rule`, and the device remembers it."""
    driver = Driver(**options)
    with broken(rule):
        act(driver)
    assert rule in str(driver.device.violations[0])


# ---- status and features ------------------------------------------------------------------


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


def test_features_after_features_ok():
    def act(driver):
        driver.up(until="queue 0").device.accept_features(PLAIN)

    breaks(act, "no features are accepted after FEATURES_OK")


def test_the_device_refuses_features_it_cannot_do_without():
    driver = Driver(features=DEFAULT_FEATURES & ~mask("access_platform")).up(until="read back")
    assert driver.device.read_status() == 3
    driver.device.write_status(3 | 128)
    driver.device.check()


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


# ---- queue set-up ------------------------------------------------------------------------


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


@pytest.mark.parametrize("offset", [0, 2, 4, 4 + 8 * 8])
def test_used_ring_is_zeroed(offset):
    def act(driver):
        driver.rx.put16(driver.rx.used + offset, 1)
        driver.up()

    breaks(act, "the used ring starts zeroed")


# ---- notifications -----------------------------------------------------------------------


def test_kicks():
    breaks(lambda driver: driver.up(until="driver_ok").device.kick(0), "no kick before DRIVER_OK")
    breaks(lambda driver: driver.up().device.kick(2), "only enabled queues are kicked")


@pytest.mark.parametrize("features", [MERGED, EVENTS])
def test_a_kick_that_was_not_wanted(features):
    def act(driver):
        driver.up().device.silence(1)
        driver.send(FRAME)

    breaks(act, "no kick where the device asked for none", features=features)
    driver = Driver(features=features, strict_kicks=False)
    act(driver)
    assert driver.device.take() == [FRAME]


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


@pytest.mark.parametrize(("features", "flags"), [(MERGED, 2), (EVENTS, 1)])
def test_available_flags(features, flags):
    def act(driver):
        driver.up().rx.put16(driver.rx.avail, flags)
        driver.post()

    breaks(act, "avail.flags is at most", features=features)


# ---- the ring and its descriptors --------------------------------------------------------


def backwards(driver):
    driver.post(2)
    driver.rx.next -= 1
    driver.post(0)


def too_far(driver):
    driver.rx.next += 9
    driver.post(0)


def same_head(driver):
    driver.post()
    driver.rx.offer(0)
    driver.post(0)


def head_out_of_bounds(driver):
    driver.rx.offer(8)
    driver.post(0)


def next_out_of_bounds(driver):
    driver.rx.describe(0, BUFFERS, PAGE, WRITE | NEXT, 8)
    driver.rx.offer(0)
    driver.post(0)


def loop(driver):
    driver.rx.describe(0, BUFFERS, PAGE, WRITE | NEXT, 1)
    driver.rx.describe(1, BUFFERS + PAGE, PAGE, WRITE | NEXT, 0)
    driver.rx.offer(0)
    driver.post(0)


def shared_descriptor(driver):
    driver.rx.describe(0, BUFFERS, PAGE, WRITE | NEXT, 2)
    driver.rx.describe(1, BUFFERS + PAGE, PAGE, WRITE | NEXT, 2)
    driver.rx.describe(2, BUFFERS + 2 * PAGE, PAGE, WRITE)
    driver.rx.offer(0)
    driver.rx.offer(1)
    driver.post(0)


def one(queue, address=BUFFERS, length=PAGE, flags=0):
    def act(driver):
        ring = getattr(driver, queue)
        ring.describe(0, address, length, flags)
        ring.offer(0)
        ring.publish()
        driver.device.kick(ring.index)

    return act


def two_receive(first, second):
    def act(driver):
        driver.rx.add(first, flags=WRITE)
        driver.rx.add(second, flags=WRITE)
        driver.post(0)

    return act


def write_before_read(driver):
    driver.tx.describe(0, BUFFERS, 12, WRITE | NEXT, 1)
    driver.tx.describe(1, BUFFERS + 12, 60, 0)
    driver.tx.offer(0)
    driver.tx.publish()
    driver.device.kick(1)


def send_from_posted(driver):
    driver.post()
    driver.tx.add((BUFFERS, 72), flags=0)
    driver.tx.publish()
    driver.device.kick(1)


def post_what_is_being_sent(driver):
    driver.send(FRAME)
    driver.rx.add((FRAMES, PAGE), flags=WRITE)
    driver.post(0)


CHAINS = [
    (backwards, "the available index never goes back"),
    (too_far, "the available index never goes back, nor exposes more"),
    (same_head, "a buffer is exposed once until it is used"),
    (head_out_of_bounds, "descriptor numbers are below the queue size"),
    (next_out_of_bounds, "descriptor numbers are below the queue size"),
    (loop, "a chain has no loop"),
    (shared_descriptor, "a descriptor in flight belongs to one buffer"),
    (one("rx", flags=8 | WRITE), "only defined flags are set"),
    (one("rx", length=0, flags=WRITE), "an element has a length"),
    (one("rx", length=11, flags=WRITE), "a receive buffer has 12 bytes at least"),
    (one("rx", address=0x1000, flags=WRITE), "buffers lie in DMA memory"),
    (one("rx", address=BASE + SIZE - PAGE + 1, flags=WRITE), "buffers lie in DMA memory"),
    (one("rx"), "receive buffers are all written by the device"),
    (one("tx", flags=WRITE), "transmit buffers are only read by the device"),
    (one("tx", flags=INDIRECT), "INDIRECT only where it was negotiated"),
    (write_before_read, "what the device reads comes before what it writes"),
    (two_receive((BUFFERS, PAGE), (BUFFERS + PAGE - 1, PAGE)), "is lent to it once"),
    (two_receive((BUFFERS, PAGE), (BUFFERS + 64, 64)), "is lent to it once"),
    (one("rx", address=BASE + 0x5000 - PAGE + 1, flags=WRITE), "is lent to it once"),
    (one("tx", address=BASE + 0x5000), "is lent to it once"),
    (send_from_posted, "is lent to it once"),
    (post_what_is_being_sent, "is lent to it once"),
]


@pytest.mark.parametrize("start_index", [0, 0xFFFF])
@pytest.mark.parametrize(("act", "rule"), CHAINS)
def test_chains(act, rule, start_index):
    breaks(lambda driver: act(driver.up()), rule, features=MERGED, start_index=start_index)


def test_a_buffer_is_no_longer_than_the_spec_allows():
    chain = Chain(0, 0)
    for _ in range(2):
        chain.add(0, 1 << 31, True, lambda address, length: memoryview(b""), ("queue", 0))
    with broken("a buffer has 2^32 bytes at most"):
        chain.add(0, 1, True, lambda address, length: memoryview(b""), ("queue", 0))


def test_buffers_side_by_side_do_not_overlap():
    driver = Driver(features=MERGED).up()
    two_receive((BUFFERS, 100), (BUFFERS + 100, 100))(driver)
    assert driver.device.receive_room() == 2


@pytest.mark.parametrize(
    ("table", "flags", "rule"),
    [
        ([(BUFFERS, 72, 0, 0)], NEXT, "INDIRECT and NEXT are not set together"),
        ([], 0, "an indirect table holds whole descriptors"),
        ([(BUFFERS, 72, NEXT, 1)], 0, "indirect entries lie in their table"),
        ([(BUFFERS, 72, NEXT, 0)], 0, "a chain has no loop"),
        ([(BUFFERS, 72, INDIRECT, 0)], 0, "an indirect table has no INDIRECT in it"),
        ([(BUFFERS, 72, 16, 0)], 0, "only defined flags are set"),
        ([(BUFFERS, 8, NEXT, at + 1) for at in range(8)] + [(BUFFERS, 8, 0, 0)], 0,
         "a chain is no longer than the queue"),
    ],
)  # fmt: skip
def test_indirect_tables(table, flags, rule):
    def act(driver):
        driver.up()
        at = driver.buffer()
        driver.put(at, b"".join(struct.pack("<QIHH", *entry) for entry in table))
        driver.tx.describe(0, at, 16 * len(table) or 24, INDIRECT | flags, 1)
        driver.tx.offer(0)
        driver.tx.publish()
        driver.device.kick(1)

    breaks(act, rule, features=INDIRECTS)


@pytest.mark.parametrize(
    ("features", "length"),
    [
        (PLAIN, 1525),
        (PLAIN | mask("mtu"), 9000 + 14 + 11),
        (PLAIN | mask("guest_csum", "guest_tso4"), 65600),
    ],
)
def test_unmerged_buffers_hold_a_frame(features, length):
    def posts(driver, length):
        driver.up().rx.add((BUFFERS, length), flags=WRITE)
        driver.post(0)

    def device():
        return NetDevice(features=features, mtu=9000 if features & mask("mtu") else None)

    rule = f"a receive buffer has {length + 1} bytes at least"
    breaks(lambda driver: posts(driver, length), rule, device=device(), size=256)
    driver = Driver(device(), size=256)
    posts(driver, length + 1)
    assert driver.device.receive_room() == 1


# ---- what is lent stays as it is ---------------------------------------------------------


def write_posted(driver):
    driver.post()
    driver.put(BUFFERS + PAGE - 1, b"\0")
    driver.device.deliver(FRAME)


def write_posted_checked(driver):
    driver.post()
    driver.put(BUFFERS + PAGE - 1, b"\0")
    driver.device.check()


def change_descriptor(driver):
    driver.post()
    driver.rx.describe(0, BUFFERS, PAGE + 1, WRITE)
    driver.device.deliver(FRAME)


def change_entry(driver):
    driver.post(2)
    driver.rx.put16(driver.rx.avail + 4 + 2 * (driver.device.start_index % 8), 1)
    driver.device.deliver(FRAME)


def write_used(driver):
    driver.post()
    driver.rx.put16(driver.rx.used + 2, driver.device.start_index + 1)
    driver.device.deliver(FRAME)


def write_used_flags(driver):
    driver.rx.put16(driver.rx.used, 1)
    driver.device.check()


LENT = [
    (write_posted, "a posted receive buffer is left alone"),
    (write_posted_checked, "a posted receive buffer is left alone"),
    (change_descriptor, "the descriptors of a buffer stay as they were exposed"),
    (change_entry, "an available entry stays as it was exposed"),
    (write_used, "only the device writes the used ring"),
    (write_used_flags, "only the device writes the used ring"),
]


@pytest.mark.parametrize("start_index", [0, 0xFFFF])
@pytest.mark.parametrize(("act", "rule"), LENT)
def test_lent_memory(act, rule, start_index):
    breaks(lambda driver: act(driver.up()), rule, features=MERGED, start_index=start_index)


def test_an_indirect_table_stays_as_it_is():
    def act(driver):
        driver.up()
        at = driver.buffer()
        driver.put(at, struct.pack("<QIHH", driver.buffer(), 72, 0, 0))
        driver.tx.describe(0, at, 16, INDIRECT)
        driver.tx.offer(0)
        driver.tx.publish()
        driver.device.kick(1)
        assert driver.device.take() == [bytes(60)]
        driver.put(at, b"\1")
        driver.device.complete()

    breaks(act, "the descriptors of a buffer stay as they were exposed", features=INDIRECTS)


def test_memory_is_not_unmapped_while_the_device_has_it():
    driver = Driver(features=MERGED).up()
    driver.post()
    driver.device.withdrawn(BUFFERS + PAGE, PAGE)
    driver.device.check()
    driver.device.withdrawn(BUFFERS, 1)
    with broken("memory is unmapped after the device is reset"):
        driver.device.check()
    driver = Driver(features=MERGED).up()
    driver.device.write_status(0)
    driver.device.withdrawn(BASE, SIZE)
    assert driver.device.violations == []


def test_what_a_driver_swallows_comes_up_again():
    driver = Driver(features=MERGED).up()
    with pytest.raises(Violation):
        driver.device.kick(5)
    for act in (driver.device.check, driver.device.take, driver.device.receive_room):
        with broken("only enabled queues are kicked"):
            act()


# ---- what is transmitted -----------------------------------------------------------------

OFFLOADS = MERGED | mask("csum", "host_tso4")
CSUM = MERGED | mask("csum")


@pytest.mark.parametrize(
    ("features", "header", "frame", "rule"),
    [
        (MERGED, HEADER, bytes(13), "a frame has 14 to 65589 bytes"),
        (MERGED, HEADER, bytes(65590), "a frame has 14 to 65589 bytes"),
        (MERGED, bytes(11), b"", "a frame has 14 to 65589 bytes"),
        (MERGED, struct.pack("<BBHHHHH", 0, 0, 0, 0, 0, 0, 1), FRAME, "num_buffers is 0"),
        (MERGED, struct.pack("<BBHHHHH", 1, 0, 0, 0, 0, 0, 0), FRAME, "the header is zero"),
        (MERGED, struct.pack("<BBHHHHH", 0, 0, 12, 0, 0, 0, 0), FRAME, "the header is zero"),
        (MERGED, struct.pack("<BBHHHHH", 0, 1, 0, 0, 0, 0, 0), FRAME, "the header is zero"),
        (CSUM, struct.pack("<BBHHHHH", 2, 0, 0, 0, 0, 0, 0), FRAME, "no flag but NEEDS_CSUM"),
        (CSUM, struct.pack("<BBHHHHH", 1, 0, 0, 0, 50, 9, 0), FRAME, "the checksum that"),
        (CSUM, struct.pack("<BBHHHHH", 1, 1, 54, 6, 34, 16, 0), FRAME, "gso_type asks only"),
        (OFFLOADS, struct.pack("<BBHHHHH", 1, 4, 54, 6, 34, 16, 0), FRAME, "gso_type asks only"),
        (OFFLOADS, struct.pack("<BBHHHHH", 0, 1, 54, 6, 34, 16, 0), FRAME, "segmentation needs N"),
        (OFFLOADS, struct.pack("<BBHHHHH", 1, 1, 54, 0, 34, 16, 0), FRAME, "segmentation needs a"),
        (OFFLOADS, struct.pack("<BBHHHHH", 1, 129, 54, 6, 34, 16, 0), FRAME, "GSO_ECN goes with"),
    ],
)
def test_transmitted_headers(features, header, frame, rule):
    def act(driver):
        driver.up().send(frame, header=header)
        driver.device.take()

    breaks(act, rule, device=NetDevice(features=features))


@pytest.mark.parametrize(
    ("features", "header"),
    [
        (CSUM, struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 16, 0)),
        (OFFLOADS, struct.pack("<BBHHHHH", 1, 1, 54, 6, 34, 16, 0)),
    ],
)
def test_offloads_that_were_negotiated(features, header):
    driver = Driver(NetDevice(features=features)).up()
    driver.send(FRAME, header=header)
    assert driver.device.take_with_headers() == [header + FRAME]


def test_frames_keep_to_the_mtu():
    def act(driver):
        driver.up().send(bytes(1515))
        driver.device.take()

    breaks(act, "a frame is no longer than the MTU and its header", mtu=1500)
    driver = Driver(mtu=1500).up()
    driver.send(bytes(1514))
    assert driver.device.take() == [bytes(1514)]
    driver = Driver(mtu=1500, features=DEFAULT_FEATURES).up()
    driver.send(bytes(1515))
    assert driver.device.take() == [bytes(1515)]
