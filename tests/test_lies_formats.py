"""A device that lies about what it used, over packed rings and with IN_ORDER."""

import pytest
from nic import HEADER, PAGE, PLAIN, Liar, Nic, finish, frame, frames
from test_lies import RECEIVE, brought_back, merged, packet, stopped, twice, use

from pyvirtnet import DeviceBroken
from pyvirtnet.testing import mask

PACKED, IN_ORDER = mask("ring_packed"), mask("in_order")
FORMATS = {
    "packed": PACKED,
    "split-in_order": IN_ORDER,
    "packed-in_order": PACKED | IN_ORDER,
    "packed-events": PACKED | mask("event_idx", "indirect_desc"),
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def features(request):
    return request.param


@pytest.fixture
def nic(features, start_index):
    made = Nic(offered=PLAIN | features, start_index=start_index)
    yield made
    finish(made)


@pytest.mark.parametrize("lie", RECEIVE)
def test_a_lie_about_receiving(nic, features, lie):
    """What came before it is received. Ids of packed rings have 16 bits: one lie is none there."""
    nic.device.deliver(*frames(5))
    liar = Liar(nic, 0)
    nic.device.receive_room()
    liar.put(*RECEIVE[lie](liar))
    honest = RECEIVE[lie] is twice or (lie == "id that wraps to a good one" and features & PACKED)
    good = frames(5) + [frame(60)] * bool(honest)
    assert [bytes(one) for one in nic.port.recv_burst(64)] == good
    if not honest or RECEIVE[lie] is twice:
        stopped(nic, nic.port.recv_burst, 64)
    brought_back(nic)


@pytest.mark.parametrize("lie", RECEIVE)
def test_a_lie_leaves_what_was_received_alone(nic, lie):
    sent = [frame(9014, 1), frame(60, 2), frame(4085, 3)]
    nic.device.deliver(*sent)
    liar = Liar(nic, 0)
    nic.device.receive_room()
    liar.put(*RECEIVE[lie](liar))
    burst = nic.port.recv_burst(64)
    nic.port.reset()
    nic.pass_through([frame(65535, i) for i in range(16)])
    assert [bytes(one) for one in burst[:3]] == sent


TRANSMIT = {
    "id out of range": [(256, 0)],
    "id far out of range": [(0xFFFF, 0)],
    "id not in flight": [(200, 0)],
    "id twice": [(0, 0), (0, 0)],
}


@pytest.mark.parametrize("lie", TRANSMIT)
def test_a_lie_about_transmitting(nic, features, lie):
    """Split and in order, an id of what was sent is not even read (2.7.9)."""
    nic.device.deliver(frame(9014))
    burst = nic.port.recv_burst(1)
    assert nic.port.send_burst(frames(2)) == 2
    assert nic.port.send_burst(burst) == 1
    assert nic.device.transmit_pending() == 3
    del burst
    Liar(nic, 1).put(*TRANSMIT[lie])
    if features & PACKED:
        stopped(nic, nic.port.reclaim)
        stopped(nic, nic.port.send_burst, frames(1))
    else:
        assert nic.port.reclaim() == len(TRANSMIT[lie])
    brought_back(nic)


def test_marks_of_the_next_lap(nic, features):
    """As if the device had used the whole ring once more: nothing more than is in flight."""
    if not features & PACKED:
        return
    assert nic.port.send_burst(frames(10)) == 10
    nic.device.take()
    nic.device.complete()
    queue = nic.device.queues[1]
    for place in range(queue.size):
        queue._table[16 * place + 14 : 16 * place + 16] = b"\x80\x80"
    for _ in range(3):
        try:
            assert nic.port.reclaim() <= 10
        except DeviceBroken:
            break
    assert nic.port.stats.tx_reclaimed <= nic.port.stats.tx_frames
    brought_back(nic)


# ---- out of order --------------------------------------------------------------------------------


@pytest.fixture(params=[IN_ORDER, PACKED | IN_ORDER], ids=["split", "packed"])
def orderly(request, start_index):
    made = Nic(offered=PLAIN | request.param, start_index=start_index)
    yield made
    finish(made)


def test_an_id_before_its_turn(orderly):
    """The second stands for both; the first, alone, is then not the turn of."""
    liar = Liar(orderly, 0)
    orderly.device.receive_room()
    first, second = use(liar), use(liar)
    liar.put(second, (7, 0), first)  # in the place of the other one: not even read
    assert list(orderly.port.recv_burst(64).lengths) == [PAGE - HEADER, 60]
    stopped(orderly, orderly.port.recv_burst, 64)
    brought_back(orderly)


def test_a_batch_of_more_than_is_in_flight(orderly):
    """It ends with a buffer that was received, and is not posted again yet."""
    orderly.device.deliver(*frames(3))
    assert len(orderly.port.recv_burst(64)) == 3
    liar = Liar(orderly, 0)
    orderly.device.receive_room()
    head = orderly.device.queues[0].ready[0].head
    liar.put(((head - 1) % 256, 72))
    stopped(orderly, orderly.port.recv_burst, 64)
    assert orderly.port.stats.rx_frames == 3
    brought_back(orderly)


def test_a_batch_stands_for_buffers_that_hold_no_frames(orderly):
    """Those before the last count as full (2.7.9, 2.8.9): what lies there is num_buffers 0."""
    liar = Liar(orderly, 0)
    orderly.device.receive_room()
    for _ in range(4):
        liar.write(bytes(HEADER))
    liar.put(use(liar), advance=None if liar.packed else 5)
    stopped(orderly, orderly.port.recv_burst, 64)
    brought_back(orderly)


def test_a_merged_frame_that_ends_in_a_batch(orderly):
    """Buffers of it come in the batch, and one is missing."""
    liar = Liar(orderly, 0)
    orderly.device.receive_room()
    first, *_ = merged(liar, 3, 1)
    last = (liar.write(packet(bytes(500))), 500)
    liar.put(first, last, advance=None if liar.packed else 2)
    stopped(orderly, orderly.port.recv_burst, 64)
    brought_back(orderly)


def test_reclaim_of_a_batch_that_ends_in_what_was_not_sent(orderly):
    packed = orderly.device.accepted & PACKED
    assert orderly.port.send_burst(frames(10)) == 10
    assert orderly.device.transmit_pending() == 10
    liar = Liar(orderly, 1)
    liar.put((10, 0), advance=None if packed else 11)
    stopped(orderly, orderly.port.reclaim)
    assert orderly.port.stats.tx_reclaimed == 0
    brought_back(orderly)


def test_frames_before_a_buffer_out_of_order_are_received(orderly):
    """They were thrown away with it, when both were found in one look at the ring."""
    orderly.device.deliver(*frames(5))
    orderly.device.receive_room()
    Liar(orderly, 0).put((3, 72))
    assert [bytes(one) for one in orderly.port.recv_burst(64)] == frames(5)
    stopped(orderly, orderly.port.recv_burst, 64)
    brought_back(orderly)
