"""A device that lies about what it used: told apart, reported, survived."""

import pytest
from nic import HEADER, PAGE, Liar, frame, frames

from pyvirtnet import DeviceBroken, Port

HEAD_OF = bytes(HEADER - 2)


def packet(data: bytes, buffers: int = 1) -> bytes:
    return HEAD_OF + buffers.to_bytes(2, "little") + data


def use(liar, data=None, length=None):
    """An honest used element of one receive buffer, but for what the test changes."""
    data = packet(frame(60)) if data is None else data
    return (liar.write(data), len(data) if length is None else length)


def twice(liar):
    entry = use(liar)
    return entry, entry


def merged(liar, buffers, given):
    """A frame that says it lies in `buffers` buffers, where `given` come."""
    first = use(liar, packet(bytes(1000), buffers))
    return (first, *(use(liar, bytes(500)) for _ in range(given - 1)))


def merged_then(liar, entry):
    return (use(liar, packet(bytes(1000), 2)), entry(liar))


RECEIVE = {
    "id out of range": lambda liar: [(256, 72)],
    "id far out of range": lambda liar: [(0xFFFFFFFF, 72)],
    "id that wraps to a good one": lambda liar: [(0x10000 + use(liar)[0], 72)],
    "id used twice": twice,
    "length over the buffer": lambda liar: [use(liar, length=PAGE + 1)],
    "length far over the buffer": lambda liar: [use(liar, length=0xFFFFFFFF)],
    "length that wraps": lambda liar: [use(liar, length=0x80000048)],
    "length under the header": lambda liar: [use(liar, length=HEADER - 1)],
    "length 0": lambda liar: [use(liar, length=0)],
    "num_buffers 0": lambda liar: merged(liar, 0, 1),
    "num_buffers more than came": lambda liar: merged(liar, 3, 2),
    "num_buffers 65535": lambda liar: merged(liar, 65535, 2),
    "a merged buffer out of range": lambda liar: merged_then(liar, lambda _: (300, 10)),
    "a merged buffer twice": lambda liar: [use(liar, packet(bytes(1000), 2))] * 2,
    "a merged buffer too long": lambda liar: merged_then(
        liar, lambda liar: use(liar, length=PAGE + 1)
    ),
}
INDEX_JUMPS = [257, 1000, 0x7FFF, 0x8000, 0xFFFF]


def brought_back(nic):
    """After a reset the port has all its pages, and works."""
    nic.device.fill = True
    nic.port.reset()
    assert nic.held_pages == 0
    assert nic.held_slots == 0
    nic.pass_through(frames(300) + [frame(65535, i) for i in range(20)])
    assert nic.port.send_burst(frames(100)) == 100
    assert nic.transmitted() == frames(100)


def stopped(nic, call, *arguments):
    """The queue is stopped, and stays so."""
    for _ in range(3):
        with pytest.raises(DeviceBroken, match=r"port\.reset\(\)"):
            call(*arguments)


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("lie", RECEIVE.values(), ids=RECEIVE)
def test_a_lie_about_receiving(nic, lie, before):
    nic.device.deliver(*frames(before))
    liar = Liar(nic, 0)
    nic.device.receive_room()
    entries = list(lie(liar))
    honest = lie is twice
    liar.put(*entries)
    good = frames(before) + [frame(60)] * honest
    if good:
        assert [bytes(one) for one in nic.port.recv_burst(64)] == good
    stopped(nic, nic.port.recv_burst, 64)
    brought_back(nic)


@pytest.mark.parametrize("lie", RECEIVE.values(), ids=RECEIVE)
def test_a_lie_leaves_what_was_received_alone(nic, lie):
    sent = [frame(9014, 1), frame(60, 2), frame(4085, 3)]
    nic.device.deliver(*sent)
    liar = Liar(nic, 0)
    nic.device.receive_room()
    liar.put(*lie(liar))
    burst = nic.port.recv_burst(64)
    stopped(nic, nic.port.recv_burst, 64)
    nic.port.reset()
    nic.pass_through([frame(65535, i) for i in range(30)])
    assert [bytes(one) for one in burst[:3]] == sent


@pytest.mark.parametrize("jump", INDEX_JUMPS)
def test_a_receive_index_that_jumps(nic, jump):
    Liar(nic, 0).put(advance=jump)
    stopped(nic, nic.port.recv_burst, 64)
    brought_back(nic)


@pytest.mark.parametrize("jump", INDEX_JUMPS)
def test_a_transmit_index_that_jumps(nic, jump):
    Liar(nic, 1).put(advance=jump)
    stopped(nic, nic.port.reclaim)
    stopped(nic, nic.port.send_burst, frames(1))
    brought_back(nic)


@pytest.mark.parametrize("index", [0, 1])
def test_an_index_past_what_is_in_flight(nic, index):
    """One more than there are, each of them honest: none is believed."""
    assert nic.port.send_burst(frames(16)) == 16
    assert (nic.device.transmit_pending(), nic.device.receive_room()) == (16, 256)
    ready = list(nic.device.queues[index].ready)
    liar = Liar(nic, index)
    liar.put(*[(chain.head, 72) for chain in ready], advance=len(ready) + 1)
    with pytest.raises(DeviceBroken, match=f"used {len(ready) + 1} more buffers"):
        (nic.port.reclaim if index else lambda: nic.port.recv_burst(64))()
    assert nic.port.stats.tx_reclaimed == nic.port.stats.rx_buffers == 0
    brought_back(nic)


def test_a_merged_frame_that_is_not_all_there(nic):
    """Its last used element is written, and not counted by the index."""
    nic.device.receive_room()
    liar = Liar(nic, 0)
    liar.put(*merged(liar, 3, 3), advance=2)
    with pytest.raises(DeviceBroken, match="a frame of 3 buffers"):
        nic.port.recv_burst(1)
    brought_back(nic)


def test_a_buffer_that_was_not_published_yet(nic):
    """The driver has taken a small frame out of it, and will tell the device later."""
    nic.device.receive_room()
    head = nic.device.queues[0].ready[0].head
    nic.device.deliver(frame(60))
    assert len(nic.port.recv_burst(1)) == 1
    Liar(nic, 0).put((head, 72))
    stopped(nic, nic.port.recv_burst, 1)
    brought_back(nic)


TRANSMIT = {
    "id out of range": [(256, 0)],
    "id far out of range": [(0xFFFF0000, 0)],
    "id not in flight": [(200, 0)],
    "id twice": [(0, 0), (0, 0)],
    "the middle of a chain": [(3, 0)],
}


@pytest.mark.parametrize("entries", TRANSMIT.values(), ids=TRANSMIT)
def test_a_lie_about_transmitting(nic, entries):
    nic.device.deliver(frame(9014))
    burst = nic.port.recv_burst(1)
    assert nic.port.send_burst(frames(2)) == 2  # descriptors 0 and 1
    assert nic.port.send_burst(burst) == 1  # a chain: 2, 3, 4, 5
    del burst
    Liar(nic, 1).put(*entries)
    stopped(nic, nic.port.reclaim)
    stopped(nic, nic.port.send_burst, frames(1))
    assert nic.port.recv_burst(1) is not None
    brought_back(nic)


@pytest.mark.parametrize("entries", TRANSMIT.values(), ids=TRANSMIT)
def test_what_was_sent_before_a_lie_is_reclaimed(nic, entries):
    assert nic.port.send_burst(frames(10)) == 10
    nic.device.take()
    nic.device.complete(5, order=[9, 8, 7, 6, 5])
    Liar(nic, 1).put((5, 0) if entries[0][0] == 3 else entries[0], (5, 0))
    stopped(nic, nic.port.reclaim)
    assert nic.port.stats.tx_reclaimed >= 5
    brought_back(nic)


def test_a_broken_transmit_queue_lets_the_receive_queue_work(nic):
    Liar(nic, 1).put((300, 0))
    stopped(nic, nic.port.reclaim)
    nic.pass_through([frame(1000, i) for i in range(1000)])
    nic.port.reset()


def test_a_ring_that_grew_at_a_reset(make_nic):
    """The memory was made for rings of 16; the device offers 1024 the next time."""
    nic = make_nic(queue_sizes=(16, 16))
    nic.device.deliver(frame(65000))
    burst = nic.port.recv_burst(1)
    nic.device._queue_sizes = (1024, 1024)
    nic.port.reset()
    assert bytes(burst[0]) == frame(65000)
    nic.pass_through([frame(65535, i) for i in range(100)] + frames(3000))
    assert bytes(burst[0]) == frame(65000)
    assert nic.port.send_burst(frames(16)) == 16


@pytest.mark.parametrize("size", [3, 48, 1000])
def test_a_queue_size_that_is_no_power_of_two(make_nic, size):
    with pytest.raises(DeviceBroken, match=f"size {size}"):
        make_nic(queue_sizes=(size, 256))


def test_a_broken_port_can_be_closed(nic):
    nic.device.deliver(frame(60))
    burst = nic.port.recv_burst(1)
    Liar(nic, 0).put((300, 0))
    stopped(nic, nic.port.recv_burst, 1)
    nic.port.close()
    assert bytes(burst[0]) == frame(60)
    assert isinstance(nic.port, Port)
