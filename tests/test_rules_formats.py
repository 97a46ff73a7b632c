"""Rules of packed rings, IN_ORDER, EVENT_IDX, indirect tables and notification data, held by the
driver: against the strict model, and looking at the words in memory (VIRTIO 1.3, 2.7 - 2.9)."""

import random
import re
import struct

import pytest
from later import Later
from nic import PAGE, PLAIN, CountedDevice, Nic, finish, frame, frames
from test_rules_rings import NEXT, ROOT, WRITE, body, chains

from pyvirtnet.testing import mask

INDIRECT, AVAIL, USED = 4, 1 << 7, 1 << 15
PACKED = mask("ring_packed")
ALL = mask("event_idx", "indirect_desc", "in_order", "notification_data", "order_platform")
EXTRAS = {
    "plain": 0,
    "events": mask("event_idx", "indirect_desc"),
    "in_order": mask("in_order"),
    "all": ALL,
}
either_format = pytest.mark.parametrize("packed", [0, PACKED], ids=["split", "packed"])


def lists(nic, index):
    """Descriptors that the device has, in ring order, by list: (address, length, id, flags)."""
    queue = nic.device.queues[index]
    ring = list(struct.iter_unpack("<QIHH", queue._table))
    found, open_ = [], False
    for position in range(queue._given, queue._seen):
        entry = ring[position % queue.size]
        assert bool(entry[3] & AVAIL) != bool(entry[3] & USED), "exposed, and not used"
        found = [*found[:-1], [*found[-1], entry]] if open_ else [*found, [entry]]
        open_ = bool(entry[3] & NEXT)
    assert not open_, "the last list has no end"
    return found


def tables(nic, index):
    """Entries of every indirect table that the device has: (address, length, flags, next)."""
    return [
        list(struct.iter_unpack("<QIHH", table))
        for exposed in nic.device.queues[index]._in_flight.values()
        for table, _ in exposed.tables
    ]


def posted_and_sent(make_nic, features, size=64):
    """Frames of 1, 3, and 17 or 18 pieces with the device, and receive buffers."""
    nic = make_nic(offered=PLAIN | features, queue_sizes=(64, size), pages=400)
    nic.device.deliver(frame(65535), frame(60, 1), frame(5000, 2))
    burst = nic.port.recv_burst(8)
    assert nic.port.send_burst(burst) == 3
    assert nic.port.send_burst(frames(4)) == 4
    del burst
    assert nic.device.transmit_pending() == 7
    assert nic.device.receive_room() == 64
    return nic


# ---- packed rings as they lie in memory ----------------------------------------------------------


@pytest.mark.rule("PKD-001")
@pytest.mark.parametrize("size", [2, 3, 7, 100, 255, 256, 300])
def test_the_parts_of_a_packed_ring_are_aligned(make_nic, size):
    nic = make_nic(offered=PLAIN | PACKED, queue_sizes=(size, size))
    spans = {}
    for index in (0, 1):
        areas = nic.device._areas[index]
        assert areas.size == size
        assert (areas.descriptors % 16, areas.driver % 4, areas.device % 4) == (0, 0, 0)
        spans |= {areas.descriptors: 16 * size, areas.driver: 4, areas.device: 4}
    ends = 0
    for start in sorted(spans):
        assert start >= ends, "two parts overlap"
        ends = start + spans[start]


@pytest.mark.rule("PKD-013", "PKD-014", "PKD-015", "PKD-016", "PKD-025")
def test_lists_as_they_lie_in_memory(make_nic):
    """Receive buffers are one written descriptor each; what is sent is only read; no INDIRECT."""
    nic = posted_and_sent(make_nic, PACKED)
    posted, sent = lists(nic, 0), lists(nic, 1)
    assert len(posted) == 64
    for ((_, length, _, flags),) in posted:
        assert (length, flags & ~(AVAIL | USED)) == (PAGE, WRITE)
    assert [len(one) for one in sent] == [1 + 17, 1, 1 + 2, 1, 1, 1, 1]
    for one in sent:
        assert {flags & ~(AVAIL | USED) for *_, flags in one[:-1]} <= {NEXT}
        assert one[-1][3] & ~(AVAIL | USED) == 0
        assert len({name for _, _, name, _ in one}) == 1, "one id a buffer"
    assert nic.transmitted() == [frame(65535), frame(60, 1), frame(5000, 2), *frames(4)]


@pytest.mark.rule("PKD-026", "PKD-027", "PKD-028")
@pytest.mark.parametrize("size", [18, 64])
def test_indirect_tables_of_a_packed_ring(make_nic, size):
    nic = posted_and_sent(make_nic, PACKED | mask("indirect_desc"), size)
    sent = lists(nic, 1)
    assert [len(one) for one in sent] == [1] * 7
    told = [flags & ~(AVAIL | USED) for ((*_, flags),) in sent]
    assert told == [INDIRECT, 0, INDIRECT, 0, 0, 0, 0]
    assert [len(table) for table in tables(nic, 1)] == [1 + 17, 1 + 2]
    assert max(map(len, tables(nic, 1))) <= size
    assert {flags for table in tables(nic, 1) for _, _, flags, _ in table} == {0}
    assert [length for ((_, length, _, _),) in sent][:3:2] == [16 * 18, 16 * 3]


@pytest.mark.rule("PKD-027", "PKD-018")
@either_format
def test_a_frame_that_a_table_of_the_ring_cannot_hold(make_nic, packed):
    """18 pieces for a ring of 16: not as a list, nor as a table."""
    nic = make_nic(offered=PLAIN | packed | mask("indirect_desc"), queue_sizes=(64, 16), pages=400)
    nic.device.deliver(frame(65535), frame(50_000, 1))
    burst = nic.port.recv_burst(8)
    with pytest.raises(ValueError, match="18 pieces"):
        nic.port.send_burst(burst)
    assert nic.device.transmit_pending() == 0
    assert nic.port.send_burst(burst[1:]) == 1
    assert nic.transmitted() == [frame(50_000, 1)]


@pytest.mark.rule("PKD-018", "PKD-019")
def test_a_list_is_exposed_whole_or_not_at_all(make_nic):
    """Room for 10 of its 17 descriptors: nothing of it is seen, nor of what was tried later."""
    nic = make_nic(offered=PLAIN | PACKED, queue_sizes=(64, 27), pages=400)
    long = frame(60_000)
    assert nic.port.send_burst([*frames(12), long, *frames(1, first=20)]) == 12
    assert nic.device.transmit_pending() == 12
    nic.device.take(10)
    nic.device.complete(10)
    assert nic.port.send_burst([long]) == 1
    assert nic.transmitted() == [*frames(2, first=10), long]


class Peeking(tuple):
    """Segments of a frame; whoever puts them together looks at the device."""

    def __new__(cls, segments, look):
        self = super().__new__(cls, segments)
        self.look = look
        return self

    def __iter__(self):
        self.look()
        return super().__iter__()


@pytest.mark.rule("PKD-019", "PKD-037")
@pytest.mark.parametrize("extra", EXTRAS)
def test_nothing_of_a_burst_is_seen_before_all_of_it(make_nic, extra):
    """The first descriptor is marked last, however many lists stand behind it."""
    nic = make_nic(offered=PLAIN | PACKED | EXTRAS[extra], queue_sizes=(64, 48), pages=200)
    seen = []

    def look():
        seen.append(nic.device.transmit_pending())

    for number in range(20):
        burst = [
            Peeking((frame(20), frame(size, number)), look) for size in (60, 9014, 60, 4200, 70)
        ]
        assert nic.port.send_burst(burst) == 5
        assert nic.transmitted() == [b"".join(tuple.__iter__(one)) for one in burst]
    assert seen == [0] * 100


@pytest.mark.rule("PKD-017")
def test_what_is_exposed_can_be_completed_by_itself(make_nic):
    """Every list in a full ring is all there, so its last can be taken and done with first."""
    nic = make_nic(offered=PLAIN | PACKED, queue_sizes=(64, 40), pages=200)
    sizes = (60, 9014, 20_000, 60, 5000)
    sent = [frame(size, i) for i, size in enumerate(sizes * 5)]
    count = nic.port.send_burst(sent)
    assert 10 < count < 25
    assert nic.device.take() == sent[:count]
    nic.device.complete(1, order="lifo")
    assert nic.port.reclaim() == 1
    nic.device.complete(order="shuffled")
    assert nic.port.reclaim() == count - 1


@pytest.mark.rule("PKD-009", "PKD-010", "RSV-008")
@pytest.mark.parametrize("extra", EXTRAS)
def test_exposed_descriptors_are_left_alone(make_nic, extra):
    """The model compares all that is in flight with what was exposed, and every mark, each step."""
    nic = make_nic(offered=PLAIN | PACKED | EXTRAS[extra], queue_sizes=(24, 24), pages=90, seed=7)
    accepted = nic.device.accepted
    assert bool(accepted & mask("order_platform")) == (extra == "all")
    rng, held, sizes = random.Random(5), [], (60, 128, 129, 4085, 9014)
    for number in range(600):
        match rng.randrange(5):
            case 0:
                nic.device.deliver(frame(rng.choice(sizes), number))
            case 1:
                held.append(nic.port.recv_burst(rng.randint(1, 4)))
            case 2:
                content = held.pop(rng.randrange(len(held))) if held else frames(2)
                nic.port.send_burst(content)
            case 3:
                nic.device.take(rng.randint(1, 8))
            case _:
                nic.device.complete(rng.randint(1, 8), order="shuffled")
        nic.device.check()
        nic.device.queues[0].verify_all()
        nic.device.queues[1].verify_all()
    assert nic.port.stats.tx_reclaimed > 100
    held.clear()


# ---- IN_ORDER and indirect tables of split rings -------------------------------------------------


@pytest.mark.rule("SPL-005", "SPL-008", "SPL-010", "SPL-011")
@pytest.mark.parametrize("extra", ["in_order", "events", "all"])
def test_chains_and_tables_of_a_split_ring(make_nic, extra):
    """Two rounds, so that free descriptors were used before."""
    nic = posted_and_sent(make_nic, EXTRAS[extra])
    for last in (False, True):
        sent = chains(nic, 1)
        for chain in sent:
            assert {flags for _, _, flags, _ in chain[:-1]} <= {NEXT}
            assert chain[-1][2] in (0, INDIRECT)
        if EXTRAS[extra] & mask("in_order"):
            heads = list(nic.device.queues[1]._in_flight)
            for head, chain, after in zip(heads, sent, [*heads[1:], None], strict=True):
                ran = [(head + i) % 64 for i in range(len(chain) + 1)]
                assert [entry[3] for entry in chain[:-1]] == ran[1:-1]
                assert after in (None, ran[-1])
        for table in tables(nic, 1):
            told = [(flags, next_) for _, _, flags, next_ in table]
            assert told == [*((NEXT, i) for i in range(1, len(table))), (0, 0)]
        assert (tables(nic, 1) != []) == bool(EXTRAS[extra] & mask("indirect_desc"))
        if not last:
            assert len(nic.transmitted()) == 7
            again = [frame(60_000, 9), *frames(3), frame(9014, 4)]
            assert nic.port.send_burst(again) == 5
            assert nic.device.transmit_pending() == 5


# ---- kicks ---------------------------------------------------------------------------------------


@pytest.mark.rule("SPL-028")
def test_with_event_idx_the_used_rings_flags_mean_nothing(make_nic):
    nic = make_nic(offered=PLAIN | mask("event_idx"))
    used = nic.device.queues[1]._used
    for number in range(1, 5):
        struct.pack_into("<H", used, 0, 1)  # NO_NOTIFY
        nic.port.send_burst(frames(3))
        struct.pack_into("<H", used, 0, 0)
        assert nic.device.kicks[1] == number
        nic.transmitted()


@pytest.mark.rule("SPL-029")
@either_format
@pytest.mark.parametrize("start", [0, 0x7FF0, 0xFFE0, 0xFFFF])
@pytest.mark.parametrize("burst", [1, 3, 32])
def test_a_kick_when_the_event_is_crossed(packed, start, burst):
    """After the first of so many more; not sooner, not again, wherever indices and laps wrap."""
    nic = Nic(
        offered=PLAIN | packed | mask("event_idx"),
        queue_sizes=(32, 32), start_index=start, strict_kicks=True,
    )  # fmt: skip
    device, sent = nic.device, 0
    for after in (1, 2, 3, 31, 32, 7, 30, 5, 32):
        device.queues[1].ask_kick_after(after)
        before, done = device.kicks[1], 0
        while done < after:
            assert device.kicks[1] == before, f"kicked {after - done} too early"
            count = nic.port.send_burst(frames(min(burst, 64), first=sent))
            done += count
            sent += count
            device.take()
            device.complete()
        assert device.kicks[1] == before + 1
    finish(nic)


class Noting(CountedDevice):
    """The model, with the data of every notification, as the driver gave them."""

    def __init__(self, **options):
        self.data = []
        super().__init__(**options)

    def notify(self, index, data):
        if index == 1:
            self.data.append(data)
        super().notify(index, data)


@pytest.mark.rule("PKD-011", "PKD-012")
@either_format
@pytest.mark.parametrize("size", [32, 8])
def test_a_kick_names_what_is_exposed_next(packed, size, start_index):
    """The model asks for each kick; driving it does no harm, however often it comes."""
    device = Noting(
        features=PLAIN | packed | mask("notification_data"),
        queue_sizes=(32, size), start_index=start_index,
    )  # fmt: skip
    nic = Nic(device)
    position, wanted = start_index, []
    for number in range(60):
        content = [frame(60, number), frame(9014, number)][: 1 + number % 2]
        assert nic.port.send_burst(content) == len(content)
        if packed:
            position += sum((1, 4)[: len(content)])
            wanted.append(position % size | (1 ^ position // size & 1) << 15)
        else:
            position += len(content)
            wanted.append(position & 0xFFFF)
        assert nic.transmitted() == content
    assert device.data == wanted
    finish(nic)


@pytest.mark.rule("PKD-011")
@either_format
def test_a_kick_names_what_is_exposed_then(packed):
    """Regression: a bell that is a call rang once more was exposed than it named."""
    offered = PLAIN | packed | mask("notification_data", "event_idx")
    nic = Nic(offered=offered, queue_sizes=(8, 8), pages=8)
    nic.device.deliver(*frames(8, 2000))
    dropped, sent = nic.port.recv_burst(4), nic.port.recv_burst(4)
    assert nic.port.send_burst(sent) == 4
    assert nic.transmitted() == frames(4, 2000, 4)
    del dropped, sent  # four pages are free; four more are, once what was sent is reclaimed
    assert len(nic.port.recv_burst(4)) == 0
    assert nic.device.receive_room() == 8
    finish(nic)


# ---- interrupts ----------------------------------------------------------------------------------


@pytest.mark.rule("SPL-015", "PKD-038")
@either_format
def test_what_is_asked_of_a_device_with_event_idx(make_nic, packed):
    """Split: flags are always 0. Packed: off while nobody waits, on while somebody does."""
    nic = make_nic(offered=PLAIN | packed | mask("event_idx"))
    seen, queue = [], nic.device.queues[0]
    area, where = (queue._driver_area, 2) if packed else (queue._avail, 0)
    fetch = queue.fetch

    def watch():
        seen.append(struct.unpack_from("<H", area, where)[0])
        return fetch()

    queue.fetch = watch
    nic.device.deliver(*frames(10))
    nic.receive()
    with Later(nic, lambda: nic.device.deliver(frame(60))):
        assert len(nic.port.recv_burst(8, timeout=None)) == 1
    nic.device.receive_room()
    assert set(seen) == ({0, 1} if packed else {0})
    assert seen[-1] == (1 if packed else 0)  # 2.8.10: 1 is off


# ---- order in memory -----------------------------------------------------------------------------


@pytest.mark.rule("PKD-035", "PKD-036", "PKD-037", "RSV-008")
def test_the_order_of_a_packed_publication():
    """All behind the first descriptor is stored, then that with release, then comes a full fence,
    then the device's wish is read; no feature chooses a weaker one."""
    packed = (ROOT / "pyvirtnet/_packed.pxd").read_text()
    word = r"(?:publish64|poke64|full_fence|peek32|observe64)\(|desc\.addr ="
    expose = re.findall(word, body(packed, "void packed_expose("))
    assert expose == ["desc.addr =", "poke64("]  # of the first, with what hides it
    assert re.search(
        r"unpublished == 0:\n[^\n]*\n\s+word \|= _hidden\(",
        body(packed, "void packed_expose("),
    )
    publish = re.findall(word, body(packed, "bint packed_publish("))
    assert publish == ["publish64(", "full_fence(", "peek32("]
    barrier = (ROOT / "pyvirtnet/_barrier.h").read_text()
    assert re.search(r"vn_publish64\(.*?\)\n{\n.*ATOMIC_RELEASE\);\n}", barrier)
    assert re.search(r"vn_observe64\(.*?\)\n{\n.*ATOMIC_ACQUIRE\);\n}", barrier)
    assert re.search(r"vn_full_fence\(void\)\n{\n.*thread_fence\(__ATOMIC_SEQ_CST\);\n}", barrier)
    assert len(re.findall(r"mmio_store\d\d\(.*?\)\n{\n.*ATOMIC_RELEASE\);\n", barrier)) == 2
    stores = [
        (path.name, line.strip())
        for path in sorted((ROOT / "pyvirtnet").glob("_*.p[yx][xd]"))
        for line in path.read_text().splitlines()
        if re.search(r"(publish64|poke64)\(&", line)
    ]
    assert stores == [
        ("_packed.pxd", "poke64(&desc.word, word)"),
        ("_packed.pxd", "publish64(&vq.desc[vq.first].word, vq.first_word)"),
        ("_packed.pyx", "poke64(&vq.desc[vq.avail_next].word, _hidden(vq.avail_flags))"),
    ]
