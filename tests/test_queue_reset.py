"""A queue pair reset alone (2.6.1), by the driver: what is lost, what stays, what goes on."""

import threading

import pytest
from nic import PLAIN, Liar, frame, frames

from pyvirtnet import (
    Coalescing,
    CommandRefused,
    DeviceBroken,
    DeviceTimeout,
    FeatureMissing,
    PortClosed,
    QueueBusy,
)
from pyvirtnet.testing import mask
from pyvirtnet.transport.sim import SimTransport

RESET = PLAIN | mask("ring_reset")
PAIRS = {"offered": RESET | mask("ctrl_vq", "mq"), "queue_sizes": (64,) * 4, "queue_pairs": 2}
KINDS = pytest.mark.parametrize(
    "kind", [(), ("ring_packed",), ("in_order",), ("ring_packed", "event_idx", "indirect_desc")]
)


def works(nic, count=200):
    """Frames of every size pass, both ways."""
    for size in (60, 1514, 9014):
        nic.pass_through(frames(count, size))
        sent = frames(6, size)
        assert nic.port.send_burst(sent) == len(sent)
        assert nic.transmitted() == sent


@pytest.mark.rule("VQC-001", "VQC-003", "PCI-026")
@KINDS
def test_frames_in_flight_are_lost_and_all_else_goes_on(make_nic, kind):
    nic = make_nic(offered=RESET | mask(*kind))
    works(nic)
    for turn in range(1, 4):
        assert nic.device.deliver(*frames(5))
        kept = nic.port.recv_burst(3)
        assert nic.port.send_burst(frames(7)) == 7
        nic.device.take(4)
        nic.device.complete(2)
        nic.port.queues[0].reset()
        stats = nic.port.stats
        assert (stats.rx_lost, stats.tx_lost, nic.port.tx_pending) == (2 * turn, 5 * turn, 0)
        assert [bytes(frame) for frame in kept] == frames(3)
        works(nic)
        assert nic.port.send_burst(kept) == 3
        assert nic.transmitted() == frames(3)
    nic.calm()
    del kept


@pytest.mark.rule("PCI-027", "VQC-002")
@pytest.mark.parametrize("kind", [(), ("ring_packed",)])
def test_the_rings_may_have_another_size(make_nic, kind):
    nic = make_nic(offered=RESET | mask(*kind), queue_sizes=(256, 256))
    sizes = (16, 256, 100, 4) if kind else (16, 256, 128, 4)
    for size in sizes:
        nic.port.queues[0].reset(size=size)
        assert nic.port.info()["ring_sizes"] == [size, size]
        assert nic.device.receive_room() == size
        assert nic.port.send_burst(frames(300)) == size
        assert nic.transmitted() == frames(size)
        nic.port.queues[0].reset()
        assert nic.port.info()["ring_sizes"] == [size, size]
    nic.port.reset()
    assert nic.port.info()["ring_sizes"] == [256, 256]
    works(nic)


@pytest.mark.parametrize("size", [-1, 0, 1, 3, 512])
def test_a_size_that_no_ring_has_changes_nothing(make_nic, size):
    nic = make_nic(offered=RESET)
    assert nic.port.send_burst(frames(3)) == 3
    with pytest.raises(ValueError, match="powers of two from 2 to 256"):
        nic.port.queues[0].reset(size=size)
    assert nic.transmitted() == frames(3)
    works(nic)


def test_with_an_mtu_the_ring_keeps_room_for_such_a_frame(make_nic):
    nic = make_nic(offered=RESET, mtu=9000)
    with pytest.raises(ValueError, match="powers of two from 3 to 256"):
        nic.port.queues[0].reset(size=2)
    nic.port.queues[0].reset(size=4)
    nic.pass_through(frames(20, 9014))


@pytest.mark.rule("SPL-009")
@pytest.mark.parametrize("indirect", [False, True])
@pytest.mark.parametrize("mergeable", [False, True])
def test_with_offloads_the_ring_keeps_room_for_the_largest_frame(make_nic, mergeable, indirect):
    """Regression: in a shorter ring a frame of 64 KiB found no room, or a table was too long."""
    offered = RESET | mask("guest_csum", "guest_tso4", "indirect_desc")
    switches = ["+guest_csum", "+guest_tso4"] + ["-mrg_rxbuf"] * (not mergeable)
    switches += ["-indirect_desc"] * (not indirect)
    nic = make_nic(offered=offered, features=switches)
    queue = nic.port.queues[0]
    with pytest.raises(ValueError, match="powers of two from 17 to 256"):
        queue.reset(size=16)
    queue.reset(size=32)
    nic.pass_through(frames(5, 65589))


def test_what_was_set_for_a_queue_is_set_again(make_nic):
    """Regression: a reset queue is coalesced as all are, whatever was said of it (5.1.6.5.9.2)."""
    nic = make_nic(offered=RESET | mask("ctrl_vq", "notf_coal", "vq_notf_coal"))
    port, unit = nic.port, nic.device.control
    port.coalesce(rx_usecs=1, rx_frames=2, tx_usecs=3, tx_frames=4)
    port.queues[0].reset()
    assert unit.coalescing == {0: (2, 1), 1: (4, 3)}
    port.coalesce(rx_usecs=5, rx_frames=6, pair=0)
    sent = len(unit.commands)
    port.queues[0].reset()
    assert port.coalescing() == (Coalescing(5, 6), Coalescing(3, 4))
    assert [command[:2] for command in unit.commands[sent:]] == [(6, 2), (6, 3), (6, 3)]
    unit.refuse = {(6, 2)}
    with pytest.raises(CommandRefused, match=r"as before(.|\n)*the queue works"):
        port.queues[0].reset()
    works(nic)


def test_a_device_without_it_says_so(make_nic):
    nic = make_nic()
    with pytest.raises(FeatureMissing, match="RING_RESET"):
        nic.port.queues[0].reset()
    works(nic)


def test_one_that_was_declined_is_not_said_to_be_missing(make_nic):
    nic = make_nic(offered=PLAIN | mask("ring_reset"), features=["-ring_reset"])
    with pytest.raises(FeatureMissing, match="RING_RESET is offered, and was not asked for"):
        nic.port.queues[0].reset()
    works(nic)


def test_other_pairs_go_on(make_nic):
    nic = make_nic(**PAIRS)
    first, second = nic.port.queues
    for _ in range(20):
        assert nic.device.deliver(*frames(3), pair=1)
        assert second.send_burst(frames(4)) == 4
        first.reset()
        assert [bytes(frame) for frame in second.recv_burst(8)] == frames(3)
        assert nic.device.take(pair=1) == frames(4)
        nic.device.complete(pair=1)
        works(nic, 20)
    assert second.reclaim() == 4


def test_a_queue_that_its_device_broke_works_again(make_nic):
    nic = make_nic(offered=RESET)
    nic.port.send_burst(frames(2))
    nic.device.take()
    Liar(nic, 1).put((200, 0))
    with pytest.raises(DeviceBroken):
        nic.port.reclaim()
    nic.port.queues[0].reset()
    works(nic)


def test_while_another_thread_is_in_a_call_it_is_refused(make_nic):
    nic = make_nic(offered=RESET)
    queue = nic.port.queues[0]
    inside, go_on = threading.Event(), threading.Event()

    def some():
        inside.set()
        assert go_on.wait(30)
        yield from frames(2)

    sender = threading.Thread(target=queue.send_burst, args=(some(),))
    sender.start()
    assert inside.wait(30)
    with pytest.raises(QueueBusy, match="let that call end first"):
        queue.reset()
    go_on.set()
    sender.join()
    assert nic.transmitted() == frames(2)
    queue.reset()
    works(nic)


def test_a_thread_that_polls_meanwhile_finds_nothing(make_nic, monkeypatch):
    """It got PortClosed, if it looked between the end of the rings and their new beginning."""
    nic = make_nic(offered=RESET)
    queue, set_up, found = nic.port.queues[0], nic.transport.setup_queue, []

    def polled(index, addresses):
        found.append((len(queue.recv_burst(8)), queue.send_burst(frames(1))))
        return set_up(index, addresses)

    monkeypatch.setattr(nic.transport, "setup_queue", polled)
    queue.reset()
    assert found == [(0, 0), (0, 0)]
    nic.device.deliver(frame(60))
    assert nic.receive() == [frame(60)]


def test_a_device_that_does_not_let_go_is_stopped_as_a_whole(make_nic, monkeypatch):
    nic = make_nic(offered=RESET)
    monkeypatch.setattr(nic.device, "read_queue_reset", lambda index: 1)
    with pytest.raises(DeviceTimeout, match="did not reset queue 0"):
        nic.port.queues[0].reset()
    with pytest.raises(DeviceTimeout):
        nic.port.recv_burst(1)
    monkeypatch.undo()
    nic.port.reset()
    works(nic)


def test_the_error_that_a_port_keeps_holds_no_memory(make_nic, monkeypatch):
    """It was the one that was raised, and its traceback had the memory of the port that was."""
    nic = make_nic(offered=RESET)
    monkeypatch.setattr(nic.device, "read_queue_reset", lambda index: 1)
    with pytest.raises(DeviceTimeout) as raised:
        nic.port.queues[0].reset()
    assert nic.port._down is not raised.value
    assert nic.port._down.__traceback__ is None
    monkeypatch.undo()
    nic.port.reset()
    works(nic)


def test_ctrl_c_in_the_middle_leaves_a_port_to_be_reset(make_nic, monkeypatch):
    nic = make_nic(offered=RESET)

    def interrupted(self, index):
        raise KeyboardInterrupt

    monkeypatch.setattr(SimTransport, "reset_queue", interrupted)
    with pytest.raises(KeyboardInterrupt):
        nic.port.queues[0].reset()
    with pytest.raises(PortClosed):
        nic.port.recv_burst(1)
    nic.port.reset()
    works(nic)


def test_a_closed_port_resets_no_queue(make_nic):
    nic = make_nic(offered=RESET)
    queue = nic.port.queues[0]
    nic.port.close()
    with pytest.raises(PortClosed):
        queue.reset()
