"""Heads that stay in their buffers: nobody can tell, but for the cache lines that do not move.

First what is special about them, then the datapath's tests once more with every head late.
"""

import mmap
import os
import threading

import pytest
import test_burst
import test_lies
import test_lifetime
import test_receive
import test_transmit
from again import OF_ONE_FORMAT, again
from nic import PLAIN, Liar, Nic, finish, frame, frames

from pyvirtnet import DeviceBroken, PortClosed, dma
from pyvirtnet._stamp import in_flight
from pyvirtnet.testing import mask

FORMATS = {
    "split": 0,
    "split-in_order": mask("in_order", "event_idx"),
    "packed": mask("ring_packed"),
    "packed-in_order": mask("ring_packed", "in_order", "event_idx", "indirect_desc"),
}
# What counts head slots right after a burst is gone: those of late heads come back with the next
# call that receives
NOT_HERE = OF_ONE_FORMAT | {
    "test_slots_in_pieces_make_short_bursts",
    "test_nothing_reclaims_behind_the_callers_back",
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def make_nic(request):
    made = []

    def make(device=None, **options):
        if device is None:
            options.setdefault("start_index", 0xFFF0)
            options["offered"] = options.get("offered", PLAIN) | request.param
        made.append(Nic(device, **options))
        for queue in made[-1].port.queues:
            queue.late_after, queue.late_from = 0, 1
        return made[-1]

    yield make
    finish(*made)


@pytest.fixture
def start_index():
    return 0xFFF0


def received(nic, content):
    assert nic.device.deliver(*content)
    burst = nic.port.recv_burst(64)
    assert len(burst) == len(content)
    return burst


def overwrite(nic, old, new):
    """In DMA memory, as only a device that lies would; how many times it was there."""
    region, count = nic.port.queues[0].pool.region, 0
    with mmap.mmap(region.fd, region.size) as memory:
        at = memory.find(old)
        while at >= 0:
            memory[at : at + len(new)] = new
            count += 1
            at = memory.find(old, at + 1)
    return count


# ---- when heads are late -------------------------------------------------------------------------


def room_after(nic, bursts, look=lambda burst: None):
    """Buffers that the device has after so many bursts of eight, the last of them still held."""
    for number in range(bursts):
        burst = received(nic, frames(8, first=8 * number))
        look(burst)
    nic.port.recv_burst(1)
    room = nic.device.receive_room()
    assert [bytes(one) for one in burst] == frames(8, first=8 * (bursts - 1))
    return room


def test_heads_are_late_after_bursts_that_nobody_looked_at(make_nic):
    nic = make_nic()
    nic.port.queues[0].late_after = 64
    assert room_after(nic, 64) == 256
    assert room_after(nic, 65) == 256 - 8


@pytest.mark.parametrize(
    "look",
    [
        lambda burst: burst.heads,
        lambda burst: burst[3].head,
        lambda burst: bytes(burst[7]),
        lambda burst: burst[2:].heads,
        lambda burst: burst[[1, 5]].heads,
    ],
    ids=["heads", "a head", "bytes", "a slice", "picked"],
)
def test_one_look_and_the_next_bursts_come_at_once(make_nic, look):
    nic = make_nic()
    nic.port.queues[0].late_after = 64
    assert room_after(nic, 70, look) == 256


def test_lengths_and_counts_are_no_look(make_nic):
    nic = make_nic()
    nic.port.queues[0].late_after = 64
    assert room_after(nic, 65, lambda burst: (len(burst), burst.lengths.sum(), burst[0])) == 248


def test_payload_is_read_when_somebody_looks_and_not_before(make_nic):
    nic = make_nic()
    burst = received(nic, frames(4))
    assert overwrite(nic, frame(60, 2), frame(60, 99)) == 1
    assert [bytes(one) for one in burst] == [frame(60, i) for i in (0, 1, 99, 3)]
    burst.heads[0] = 7
    assert overwrite(nic, frame(60, 1), frame(60, 99)) == 2  # in its buffer, and in its slot
    assert bytes(burst[0]) == bytes([7]) * 60
    assert bytes(burst[1]) == frame(60, 99)


def test_frames_of_other_kinds_in_the_middle(make_nic):
    nic = make_nic()
    sizes = [60, 128, 129, 14, 9014, 60, 4084, 60, 13, 64, 1514, 128]
    sent = [frame(size, i) for i, size in enumerate(sizes)]
    for _ in range(40):
        nic.device.deliver(*sent)
        burst = nic.port.recv_burst(64)
        assert [bytes(one) for one in burst] == [data for data in sent if len(data) > 13]
    assert nic.port.stats.rx_frames == 40 * 11
    assert nic.port.stats.rx_runts == 40
    assert nic.port.stats.rx_bytes == 40 * (sum(sizes) - 13)


# ---- who holds late bursts -----------------------------------------------------------------------


def test_bursts_that_are_held_are_whole_in_the_end(make_nic):
    nic = make_nic()
    sent = [frames(1 + number % 60, first=100 * number) for number in range(50)]
    kept = []
    for content in sent:
        kept.append(received(nic, content))
        assert nic.device.receive_room() >= 256 - 64 - 60 - 32
    for content, burst in zip(sent, kept, strict=True):
        assert [bytes(one) for one in burst] == content


@pytest.mark.parametrize("keeps", [True, False], ids=["held", "gone"])
def test_buffers_come_back_in_their_order_again_and_again(make_nic, keeps):
    nic = make_nic(queue_sizes=(32, 32))
    kept = []
    for number in range(300):
        burst = received(nic, frames(1 + number % 8, first=number))
        kept = [*kept[-3:], (number, burst)] if keeps else []
        if number % 7 == 0:
            nic.port.recv_burst(1)
    for number, burst in kept:
        assert [bytes(one) for one in burst] == frames(1 + number % 8, first=number)


def test_gone_bursts_give_their_buffers_back_at_the_next_call(make_nic):
    nic = make_nic()
    received(nic, frames(60))
    assert nic.device.receive_room() == 196
    assert len(nic.port.recv_burst(64)) == 0
    assert nic.device.receive_room() == 256


def test_held_bursts_give_their_buffers_back_when_nothing_comes(make_nic):
    nic = make_nic()
    burst = received(nic, frames(60))
    for _ in range(15):
        nic.port.recv_burst(64)
    assert nic.device.receive_room() == 196
    nic.port.recv_burst(64)
    assert nic.device.receive_room() == 256
    assert [bytes(one) for one in burst] == frames(60)


def test_a_frame_that_needs_every_buffer_comes_to_who_sleeps(make_nic):
    """Or sleeper and device would wait for each other, for ever."""
    nic = make_nic(queue_sizes=(16, 16))
    burst = received(nic, frames(4))
    timer = threading.Timer(0.1, lambda: nic.device.deliver(frame(60000)))
    timer.start()
    assert [bytes(one) for one in nic.port.recv_burst(1, timeout=10)] == [frame(60000)]
    timer.join()
    assert [bytes(one) for one in burst] == frames(4)


def test_a_frame_that_needs_every_buffer_comes_to_who_selects(make_nic):
    nic = make_nic(queue_sizes=(16, 16))
    nic.port.fileno()
    burst = received(nic, frames(4))
    assert len(nic.port.recv_burst(1)) == 0
    assert nic.device.deliver(frame(60000))
    assert bytes(nic.port.recv_burst(1)[0]) == frame(60000)
    assert [bytes(one) for one in burst] == frames(4)


def test_bursts_that_were_looked_at_give_their_buffers_back_at_the_next_call(make_nic):
    nic = make_nic()
    burst = received(nic, frames(60))
    assert burst.heads.any()
    nic.port.recv_burst(1)
    assert nic.device.receive_room() == 256


def all_slots_but(nic, left):
    pool, kept = nic.port.queues[0].pool, []
    nic.port.queues[0].late_after = 1 << 31
    while pool.free_slots > left:
        kept.append(received(nic, frames(4)))
    nic.port.queues[0].late_after = 0
    return kept


def test_gone_bursts_behind_a_held_one_do_not_keep_head_slots_from_the_next(make_nic):
    nic = make_nic(queue_sizes=(32, 32))
    kept = all_slots_but(nic, 8)
    kept.append(received(nic, frames(4, first=10)))
    received(nic, frames(4))
    assert nic.port.queues[0].pool.free_slots == 0
    assert [bytes(one) for one in received(nic, frames(4, first=50))] == frames(4, first=50)
    assert [bytes(one) for one in kept[-1]] == frames(4, first=10)
    assert nic.port.stats.rx_no_slots == 0


def test_gone_bursts_do_not_keep_head_slots_from_copies_to_be_sent(make_nic):
    nic = make_nic(queue_sizes=(32, 32))
    kept = all_slots_but(nic, 4)
    received(nic, frames(4))
    assert nic.port.queues[0].pool.free_slots == 0
    assert nic.port.send_burst(frames(4, first=50)) == 4
    assert nic.transmitted() == frames(4, first=50)
    del kept


def test_gone_bursts_do_not_keep_head_slots_of_a_broken_queue(make_nic):
    nic = make_nic()
    received(nic, frames(8))
    Liar(nic, 0).put((5000, 72))
    with pytest.raises(DeviceBroken):
        nic.port.recv_burst(8)
    assert nic.held_slots == 0
    nic.port.reset()


def test_gone_bursts_do_not_keep_head_slots_from_those_who_need_them(make_nic):
    nic = make_nic(queue_sizes=(16, 16))
    pool = nic.port.queues[0].pool
    kept = []
    while pool.free_slots > 4:
        kept.append(received(nic, frames(4)))
    received(nic, frames(4))
    assert pool.free_slots == 0
    assert nic.device.deliver(*frames(4, first=50))
    assert [bytes(one) for one in nic.port.recv_burst(4)] == frames(4, first=50)


def test_sends_of_late_frames_are_counted_as_sends(make_nic):
    nic = make_nic()
    burst = received(nic, frames(4))
    assert in_flight(burst) == 0
    assert nic.port.send_burst(burst) == 4
    assert in_flight(burst) == 4
    assert nic.transmitted() == frames(4)
    nic.port.reclaim()
    assert in_flight(burst) == 0


def test_parts_of_late_bursts_are_sent_whole(make_nic):
    nic = make_nic()
    burst = received(nic, frames(9))
    assert nic.port.send_burst([burst[4], burst[1]]) == 2
    assert nic.port.send_burst(burst[2:8:3]) == 2
    assert nic.transmitted() == [frame(60, i) for i in (4, 1, 2, 5)]


@pytest.mark.parametrize("end", ["close", "reset"])
def test_late_bursts_outlive_their_port(make_nic, end):
    nic = make_nic()
    bursts = [received(nic, frames(5, first=i)) for i in (0, 100)]
    if end == "reset":
        nic.port.reset()
        assert nic.port.stats.rx_lost == 0
        nic.pass_through(frames(300, first=500))
    else:
        nic.port.close()
    for first, burst in zip((0, 100), bursts, strict=True):
        assert [bytes(one) for one in burst] == frames(5, first=first)


def test_a_forked_child_sees_late_frames(make_nic):
    nic = make_nic()
    burst = received(nic, frames(5))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if [bytes(one) for one in burst] == frames(5) else 2
            del burst
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [bytes(one) for one in burst] == frames(5)
    nic.pass_through(frames(300))


def test_what_the_parent_receives_while_a_child_starts(make_nic, monkeypatch):
    """The child copies DMA memory at its leisure, and the parent's device goes on."""
    nic = make_nic()
    burst = received(nic, frames(60))
    ready, go = os.pipe()
    private = dma.Region.become_private

    def slowly(region):
        os.read(ready, 1)
        private(region)

    monkeypatch.setattr(dma.Region, "become_private", slowly)
    regions = len(list(dma.memory.regions()))
    child = os.fork()
    if child == 0:
        os._exit(0 if [bytes(one) for one in burst] == frames(60) else 2)
    for number in range(20):
        nic.port.recv_burst(1)
        nic.pass_through(frames(60, first=1000 * number))
    os.write(go, b"!" * regions)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    os.close(ready)
    os.close(go)


def test_a_doorbell_that_closes_the_port_of_who_is_about_to_sleep(make_nic):
    nic = make_nic()
    assert len(nic.port.recv_burst(1, timeout=0.001)) == 0  # it has slept before
    burst = received(nic, frames(60))
    nic.device.on_kick = nic.port.close
    nic.device.queues[0].silence(False)
    with pytest.raises(PortClosed):
        nic.port.recv_burst(1, timeout=1)
    assert [bytes(one) for one in burst] == frames(60)


def test_a_doorbell_that_forks_before_the_sleep(make_nic):
    nic = make_nic()
    assert len(nic.port.recv_burst(1, timeout=0.001)) == 0
    burst, children = received(nic, frames(60)), []

    def fork():
        nic.device.on_kick = None
        children.append(os.fork())

    nic.device.on_kick = fork
    nic.device.queues[0].silence(False)
    problem = None
    try:
        assert len(nic.port.recv_burst(1, timeout=0.01)) == 0
    except BaseException as error:
        problem = error
    if children == [0]:
        os._exit(0 if isinstance(problem, PortClosed) else 2)
    assert problem is None
    assert os.waitstatus_to_exitcode(os.waitpid(children[0], 0)[1]) == 0
    assert [bytes(one) for one in burst] == frames(60)


# ---- the datapath's tests, with every head late --------------------------------------------------


def _runs_here(name, test):
    """Tests that make their ports with `make_nic`."""
    if not name.startswith("test_") or name in NOT_HERE:
        return False
    wanted = test.__code__.co_varnames[: test.__code__.co_argcount]
    return not {"make_nic", "nic", "made"}.isdisjoint(wanted)


made = test_burst.made
_split = pytest.mark.parametrize("make_nic", [0], indirect=True, ids=["split"])
for module in (test_receive, test_transmit, test_burst, test_lifetime, test_lies):
    for _name, _test in list(vars(module).items()):
        if _runs_here(_name, _test):
            _copy = again(_test)
            if module not in (test_receive, test_transmit):
                _copy.pytestmark.append(_split.mark)
            globals()[f"{_name}_of_{module.__name__[5:]}"] = _copy
