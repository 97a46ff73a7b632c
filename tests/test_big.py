"""Big receive buffers: chains of 17 pages, for segments of 64 KiB without mergeable buffers."""

import random

import pytest
from nic import PAGE, PLAIN, Liar, frame
from test_offloads import NAMES, header, tcp

from pyvirtnet import DeviceBroken, Feature, Gso
from pyvirtnet.negotiate import SEGMENTS, negotiate, receive_mode, to_bits
from pyvirtnet.testing import mask

CHAIN = 17
OFFERED = PLAIN & ~mask("mrg_rxbuf") | mask(*NAMES)
FORMATS = {
    "split": OFFERED,
    "indirect": OFFERED | mask("indirect_desc"),
    "packed": OFFERED | mask("indirect_desc", "ring_packed"),
    "in order": OFFERED | mask("indirect_desc", "in_order"),
    "packed in order": OFFERED | mask("indirect_desc", "ring_packed", "in_order"),
}
SIZES = (14, 60, 128, 129, 1514, 4084, 4085, 9014, 30000, 65549, 65589)


@pytest.fixture(params=FORMATS)
def big(request, make_nic):
    nic = make_nic(offered=FORMATS[request.param], features=NAMES, pages=64 * CHAIN)
    assert nic.port.info()["receive_mode"] == "big"
    return nic


@pytest.mark.rule("NET-078")
def test_every_buffer_holds_the_largest_frame(big):
    """The model objects to less than 65601 bytes."""
    direct = "indirect_desc" not in big.port.info()["features"]
    assert big.device.receive_room() == (256 // CHAIN if direct else 64)
    assert big.device.receive_capacity() == CHAIN * PAGE
    assert big.port.info()["posted_pages"] == big.device.receive_room() * CHAIN


def test_frames_of_all_sizes_arrive(big):
    rng = random.Random(1)
    big.pass_through([frame(rng.choice(SIZES), number) for number in range(400)])
    stats = big.port.stats
    assert (stats.rx_frames, stats.rx_buffers) == (400, 400)
    assert big.held_pages == 0


def test_a_frame_keeps_the_pages_it_lies_in(big):
    for size, pages in ((128, 0), (129, 1), (4084, 1), (4085, 2), (65589, 17)):
        assert big.device.deliver(frame(size))
        burst = big.port.recv_burst(1)
        assert bytes(burst[0]) == frame(size)
        assert len(burst[0].frags) == pages
        big.port.recv_burst(1)  # posts what there is
        assert big.held_pages == pages
        del burst
    big.receive()
    assert big.held_pages == 0


def test_segments_come_with_their_fields(big):
    fields = header(1, Gso.TCPV4, 54, 1448, 34, 16)
    assert big.device.deliver(tcp(60000), header=fields)
    assert big.device.deliver(tcp(60000), header=header(1, Gso.TCPV4, 54, 0, 34, 16))
    burst = big.port.recv_burst(4)
    assert [bytes(one) for one in burst] == [tcp(60000)]
    assert burst.offload["gso_size"].tolist() == [1448]
    assert big.port.stats.rx_bad_headers == 1


@pytest.mark.parametrize("name", ["split", "indirect", "packed", "packed in order"])
def test_buffers_wait_for_pages(make_nic, name):
    """With pages held, a buffer that finds too few keeps those it found and goes on waiting."""
    nic = make_nic(offered=FORMATS[name], features=NAMES, pages=2 * CHAIN + 5)
    assert nic.device.receive_room() == 2
    held = []
    for number in range(4):
        if nic.device.receive_room():
            assert nic.device.deliver(frame(20000, number))
            held += nic.port.recv_burst(4)
    assert held
    nic.receive()
    assert nic.device.receive_room() == 1
    assert [bytes(one) for one in held] == [frame(20000, number) for number in range(len(held))]
    del held[:]
    nic.receive()
    assert nic.device.receive_room() == 2
    nic.pass_through([frame(size, size) for size in SIZES] * 3)


def test_received_bursts_are_passed_on(big):
    made = [frame(size, size) for size in SIZES if size < 65536]
    for one in made:
        assert big.device.deliver(one)
    burst = big.port.recv_burst(16)
    sent = []
    while len(burst):
        burst = burst[big.port.send_burst(burst) :]
        sent += big.transmitted()
    assert sent == made
    del burst
    big.port.reclaim()
    big.receive()
    assert big.held_pages == 0


@pytest.mark.parametrize("name", ["split", "indirect", "packed"])
@pytest.mark.parametrize(
    "lie", [(1, 100), (0, 17 * PAGE + 1), (0, 11), (256, 100), (16, 100), (0xFFFF, 100)]
)
def test_lies_about_big_buffers(make_nic, name, lie):
    """Ids within a chain, lengths past its end, buffers that were never posted."""
    nic = make_nic(offered=FORMATS[name], features=NAMES, pages=CHAIN)
    liar = Liar(nic, 0)
    nic.device.receive_room()
    liar.put(lie)
    with pytest.raises(DeviceBroken):
        nic.port.recv_burst(4)
    nic.port.close()


def test_the_mode_follows_the_features(make_nic):
    for offered, mode in ((OFFERED, "big"), (OFFERED | mask("mrg_rxbuf"), "mergeable")):
        assert make_nic(offered=offered, features=NAMES).port.info()["receive_mode"] == mode
        assert make_nic(offered=offered).port.info()["receive_mode"] in ("small", "mergeable")
    few = make_nic(offered=OFFERED, features=NAMES, ring_size=16)
    assert few.port.info()["receive_mode"] == "small"
    assert make_nic(offered=OFFERED, features=NAMES, pages=16).port.info()["pages"] == 16


def test_chains_in_the_ring_itself_are_of_a_split_ring_out_of_order():
    every = {
        Feature.VERSION_1, Feature.RING_PACKED, Feature.IN_ORDER, Feature.GUEST_CSUM, *SEGMENTS
    }  # fmt: skip
    plain = negotiate(to_bits(every), frozenset(every)).negotiated
    assert receive_mode(plain) == "big"
    assert not plain & {Feature.RING_PACKED, Feature.IN_ORDER}
    every.add(Feature.INDIRECT_DESC)
    assert negotiate(to_bits(every), frozenset(every)).negotiated == every


@pytest.mark.rule("SPL-009", "PKD-014")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(
    "options",
    [
        {"ring_size": 16},
        {"queue_sizes": (16, 16)},
        {"queue_sizes": (256, 256, 16, 256), "queue_pairs": 2},
    ],
    ids=["by us", "by the device", "of the second pair"],
)
def test_no_chain_is_longer_than_a_short_ring(make_nic, name, options):
    """Regression: indirect tables of 17 entries for a ring of 16 (2.7.5.3.1)."""
    offered = FORMATS[name] | mask("mq", "ctrl_vq") * ("queue_pairs" in options)
    nic = make_nic(offered=offered, features=NAMES, **options)
    assert nic.port.info()["receive_mode"] == "small"
    nic.pass_through([frame(1514, number) for number in range(40)])
