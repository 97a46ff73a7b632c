"""A device that writes what is not its to write: the driver never reads it back."""

import time

import pytest
from driven import User, comes_back
from later import Later
from nic import HEADER, PLAIN, Liar, Nic, frame, frames

from pyvirtnet import DeviceBroken
from pyvirtnet.testing import HostileDevice

NOISE = [bytes(range(256)), b"\xff", b"\x00", b"\x01\x00"]


@pytest.fixture
def nic(start_index):
    made = Nic(
        HostileDevice(features=PLAIN, rate=0.0, start_index=start_index, queue_sizes=(64, 64))
    )
    yield made
    made.port.close()


def overwrite(view, noise):
    view[:] = (noise * view.nbytes)[: view.nbytes]


def spoil(nic, index, noise):
    """Descriptor table and available ring, which only the driver writes (2.7.5, 2.7.6)."""
    nic.device.tainted = True
    queue = nic.device.queues[index]
    overwrite(queue._table, noise)
    overwrite(queue._avail, noise)


@pytest.mark.parametrize("noise", NOISE, ids=["steps", "ones", "zeroes", "one"])
def test_rewritten_descriptors_and_indices_of_the_receive_queue(nic, noise):
    """Pages are found by private state: what was delivered arrives, and a reset mends the rest."""
    sent = [frame(60, 1), frame(9014, 2), frame(128, 3), frame(5000, 4)]
    assert nic.device.deliver(*sent)
    spoil(nic, 0, noise)
    burst = nic.port.recv_burst(64)
    assert [bytes(one) for one in burst] == sent
    spoil(nic, 0, noise)
    del burst
    assert not len(nic.port.recv_burst(64))
    assert nic.held_pages == nic.held_slots == 0
    comes_back(User(nic, 0))


@pytest.mark.parametrize("noise", NOISE, ids=["steps", "ones", "zeroes", "one"])
def test_rewritten_descriptors_and_indices_of_the_transmit_queue(nic, noise):
    """Chains are walked by private state: each descriptor comes back once, whatever `next` says."""
    for number in range(4):
        nic.device.deliver(frame(9014, number), frame(60))
    burst = nic.port.recv_burst(64)
    assert nic.port.send_burst(burst) == 8
    assert len(nic.device.take()) == 8
    liar = Liar(nic, 1)
    heads = [chain.head for chain in liar.queue.taken]
    for head in reversed(heads):
        spoil(nic, 1, noise)
        liar.put((head, 0))
        assert nic.port.reclaim() == 1
    assert nic.port.tx_pending == 0
    spoil(nic, 1, noise)
    assert nic.port.send_burst(frames(100)) == 64  # each of the ring's descriptors is free again
    del burst
    comes_back(User(nic, 0))


def test_used_elements_that_are_rewritten_when_they_were_read(nic):
    assert nic.device.deliver(*frames(20))
    assert nic.port.send_burst(frames(20)) == 20
    nic.transmitted()
    assert len(nic.port.recv_burst(64)) == 20
    assert nic.port.reclaim() == 20
    nic.device.tainted = True
    for queue in nic.device.queues.values():
        overwrite(queue._used[4:], b"\xff")
    nic.device.deliver(*frames(30))
    assert nic.port.send_burst(frames(30)) == 30
    nic.transmitted()
    assert [bytes(one) for one in nic.port.recv_burst(64)] == frames(30)
    assert nic.port.reclaim() == 30
    comes_back(User(nic, 0))


@pytest.mark.parametrize("index", [0, 1])
def test_a_used_index_that_goes_back(nic, index):
    """One less than it was: that is 65535 more, and believed by nobody."""
    assert nic.device.deliver(*frames(20))
    assert len(nic.port.recv_burst(64)) == 20
    assert nic.port.send_burst(frames(20)) == 20
    nic.transmitted()
    assert nic.port.reclaim() == 20
    Liar(nic, index).put(advance=0xFFFF)
    with pytest.raises(DeviceBroken, match="used 65535 more"):
        (nic.port.reclaim if index else lambda: nic.port.recv_burst(1))()
    comes_back(User(nic, 0))


@pytest.mark.parametrize("flags", [0, 1, 2, 0xFFFE, 0xFFFF])
def test_flags_of_the_used_ring(nic, flags):
    """Bit 0 declines kicks; the others mean nothing, and do nothing (2.7.10)."""
    nic.device.tainted = True
    nic.device.fill = False
    for queue in nic.device.queues.values():
        queue._used[0:2] = flags.to_bytes(2, "little")
    before = nic.port.stats.tx_kicks
    assert nic.port.send_burst(frames(8)) == 8
    assert nic.port.stats.tx_kicks - before == (not flags & 1)
    comes_back(User(nic, 0))


@pytest.mark.parametrize("fields", [b"\xff" * 10, bytes([1, 4, 0, 0, 0, 0, 255, 255, 255, 255])])
@pytest.mark.parametrize("size", [60, 128, 129, 9014])
def test_offload_fields_beyond_the_frame(nic, fields, size):
    """None was negotiated: checksum and segmentation fields are not looked at, nor passed on."""
    assert nic.device.deliver(frame(size), header=fields)
    burst = nic.port.recv_burst(1)
    assert bytes(burst[0]) == frame(size)
    assert nic.port.send_burst(burst) == 1
    assert nic.device.take_with_headers() == [bytes(HEADER) + frame(size)]
    assert nic.device.violations == []
    del burst
    nic.calm()
    nic.check()


@pytest.mark.parametrize("buffers", [0, 2, 0xFFFF])
def test_num_buffers_means_nothing_without_mrg_rxbuf(buffers):
    nic = Nic(HostileDevice(rate=0.0), features=["-mrg_rxbuf"])
    liar = Liar(nic, 0)
    nic.device.receive_room()
    header = bytes(HEADER - 2) + buffers.to_bytes(2, "little")
    liar.put(*[(liar.write(header + one), HEADER + 60) for one in frames(3)])
    assert [bytes(one) for one in nic.port.recv_burst(8)] == frames(3)
    nic.port.close()


def test_buffers_written_while_they_are_held(nic):
    """Their bytes change, their lengths and places do not: those are in private memory."""
    nic.device.deliver(frame(9014), frame(60))
    burst = nic.port.recv_burst(2)
    for seed in range(20):
        nic.device.misbehave("write_buffers_given_back", seed)
    assert burst.lengths.tolist() == [9014, 60]
    assert [len(one) for one in burst] == [9014, 60]
    assert len(bytes(burst[0])) == 9014
    assert bytes(burst[1]) == frame(60)  # a head was copied out of the page
    del burst
    comes_back(User(nic, 0))


def test_interrupts_without_a_frame(nic):
    """A wait ends at its deadline however often it is woken."""
    begin = time.monotonic()
    for seed in range(20):
        nic.device.misbehave("needless_interrupts", seed)
        assert not len(nic.port.recv_burst(1, timeout=0.005))
    assert 0.1 <= time.monotonic() - begin < 5
    comes_back(User(nic, 0))


def test_frames_without_an_interrupt(nic):
    """A wait looks at the ring by itself as well."""
    nic.device.raise_interrupt = lambda _: None
    begin = time.monotonic()
    with Later(nic, lambda: nic.device.deliver(frame(60))):
        burst = nic.port.recv_burst(1, timeout=30)
    assert 0.04 < time.monotonic() - begin < 10
    assert bytes(burst[0]) == frame(60)
