"""The datapath's tests once more, over every ring format: the matrix of VIRTIO 1.3, 2.7 and 2.8.

Format, IN_ORDER, EVENT_IDX with indirect tables, and where the ring starts; the tests themselves
bring the orders of completion.
"""

from itertools import product

import pytest
import test_receive
import test_transmit
from again import OF_ONE_FORMAT, again
from nic import PLAIN, Nic, finish, frame, frames

from pyvirtnet.testing import mask

EXTRAS = {
    "plain": 0,
    "events": mask("event_idx", "indirect_desc"),
    "in_order": mask("in_order"),
    "all": mask("event_idx", "indirect_desc", "in_order", "notification_data", "order_platform"),
}
STARTS = {"from_0": 0, "from_fff0": 0xFFF0}
FORMATS = {
    f"{ring}-{extra}-{start}": (PLAIN | bits | (mask("ring_packed") if ring == "packed" else 0), at)
    for ring, (extra, bits), (start, at) in product(
        ("split", "packed"), EXTRAS.items(), STARTS.items()
    )
    if (ring, extra) != ("split", "plain")  # the modules themselves
}


for module in (test_receive, test_transmit):
    for _name, _test in vars(module).items():
        if _name.startswith("test_") and _name not in OF_ONE_FORMAT:
            globals()[f"{_name}_of_{module.__name__[5:]}"] = again(_test)


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def make_nic(request):
    features, start_index = request.param
    made = []

    def make(device=None, **options):
        if device is None:
            options.setdefault("start_index", start_index)
            options["offered"] = options.get("offered", PLAIN) | features & ~PLAIN
        made.append(Nic(device, **options))
        return made[-1]

    yield make
    finish(*made)


@pytest.fixture
def start_index():
    """The one of make_nic is meant."""


def test_rings_wrap(make_nic):
    """Frames of one buffer and of several, both ways, several times round rings of 8."""
    nic = make_nic(queue_sizes=(8, 8), fill=False)
    sizes = (60, 128, 129, 60, 4085, 60, 1514, 14)
    nic.pass_through([frame(sizes[i % 8], i) for i in range(500)])
    left, got = [frame(sizes[i % 8], i) for i in range(500)], []
    while left:
        left = left[nic.port.send_burst(left) :]
        got += nic.transmitted()
    assert got == [frame(sizes[i % 8], i) for i in range(500)]


# With IN_ORDER there is one order, and there are three ways to say it
ORDERS = [(extra, order) for extra in ("plain", "events") for order in ("fifo", "lifo", "shuffled")]
ORDERS += [(extra, batch) for extra in ("in_order", "all") for batch in ("none", "all", "random")]


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize(("extra", "order"), ORDERS)
def test_completion_in_any_order(ring, extra, order, start):
    ordered = bool(EXTRAS[extra] & mask("in_order"))
    features = PLAIN | EXTRAS[extra] | (mask("ring_packed") if ring == "packed" else 0)
    options = {"used_batch": order} if ordered else {}
    nic = Nic(
        offered=features, queue_sizes=(64, 64), pages=600, fill=False, seed=3,
        start_index=STARTS[start], **options,
    )  # fmt: skip
    sizes = (60, 9014, 4085, 128, 20_000, 129)
    sent = [frame(sizes[i % 6], i) for i in range(1500)]
    left, got = sent, []
    while left:
        left = left[nic.port.send_burst(left[:40]) :]
        got += nic.device.take()
        half = len(nic.device.queues[1].taken) // 2 + 1
        nic.device.complete(half, order="fifo" if ordered else order)
    assert got == sent
    finish(nic)


@pytest.mark.parametrize("size", [2, 3, 7, 31, 100, 255, 300])
@pytest.mark.parametrize("extra", EXTRAS)
def test_packed_rings_of_any_size(extra, size):
    features = PLAIN | EXTRAS[extra] | mask("ring_packed")
    nic = Nic(offered=features, queue_sizes=(size, size), start_index=5, fill=False)
    nic.pass_through(frames(5 * size))
    left, got = frames(5 * size), []
    while left:
        left = left[nic.port.send_burst(left) :]
        got += nic.transmitted()
    assert got == frames(5 * size)
    assert nic.port.info()["ring_format"] == "packed"
    assert nic.port.info()["ring_sizes"] == [size, size]
    finish(nic)


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("extra", ["plain", "in_order"])
def test_few_pages_go_round_in_a_long_ring(ring, extra):
    """Regression: with IN_ORDER each page came to wait behind descriptors that had none."""
    features = PLAIN | EXTRAS[extra] | (mask("ring_packed") if ring == "packed" else 0)
    nic = Nic(offered=features, queue_sizes=(8, 8), pages=5)
    sizes = (60, 129, 60, 4085)
    nic.pass_through([frame(sizes[i % 4], i) for i in range(200)])
    assert nic.port.info()["posted_pages"] == 5
    finish(nic)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_a_long_chain_is_one_descriptor_with_indirect_tables(ring):
    """2.7.5.3: as many frames of 64 KiB as the ring has entries, where chains take 17 each."""
    features = PLAIN | mask("indirect_desc") | (mask("ring_packed") if ring == "packed" else 0)
    for switch, held in ((), 32), (("-indirect_desc",), 1):
        nic = Nic(offered=features, queue_sizes=(32, 32), pages=600, features=switch)
        assert nic.port.send_burst([frame(65_000, i) for i in range(40)]) == held
        assert nic.transmitted() == [frame(65_000, i) for i in range(held)]
        finish(nic)
