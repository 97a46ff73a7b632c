"""Several queue pairs: each a NIC's datapath of its own, all of them one port."""

import multiprocessing
import os
import threading

import pytest
from nic import PLAIN, Liar, Nic, frame, frames
from vhost_fixtures import SECONDS, open_port, path, round_trip, start, until

import pyvirtnet
from pyvirtnet import CommandRefused, DeviceBroken, FeatureMissing, PortClosed, _queue, life
from pyvirtnet.testing import HostileDevice, Loopback, NetDevice, mask

__all__ = ["path", "start"]  # fixtures

MANY = mask("mq", "ctrl_vq")
PAIRS = 4
FORMATS = {
    "split": 0,
    "split-everything": mask("event_idx", "in_order", "indirect_desc"),
    "packed": mask("ring_packed"),
    "packed-everything": mask("ring_packed", "event_idx", "in_order", "indirect_desc"),
}


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def nic(request, make_nic):
    return many(make_nic, offered=PLAIN | MANY | request.param)


def many(make_nic, *, size=64, offered=PLAIN | MANY, **options):
    return make_nic(offered=offered, queue_sizes=(size,) * 2 * PAIRS, queue_pairs=PAIRS, **options)


def receive(queue):
    """Copies of all that waits in one queue pair."""
    got = []
    while fresh := [bytes(one) for one in queue.recv_burst(16)]:
        got += fresh
    return got


def exchange(nic, rounds=3):
    """Every pair has its own frames, both ways."""
    for turn in range(rounds):
        for pair, queue in enumerate(nic.port.queues):
            content = [frame(size, 1000 * turn + pair) for size in (60, 1514, 9014)]
            assert nic.device.deliver(*content, pair=pair)
            assert queue.send_burst(content) == 3
        for pair, queue in enumerate(nic.port.queues):
            content = [frame(size, 1000 * turn + pair) for size in (60, 1514, 9014)]
            assert nic.device.take(pair=pair) == content
            nic.device.complete(pair=pair)
            assert receive(queue) == content
            assert queue.reclaim() == 3


@pytest.mark.rule("CVQ-014", "CVQ-018", "NET-087")
def test_each_pair_has_its_own_frames(nic):
    """Past every wrap of the rings."""
    port = nic.port
    assert [queue.index for queue in port.queues] == [0, 1, 2, 3]
    assert nic.device.control.commands == [(4, 0, b"\4\0")]
    assert all(nic.device.receive_room(pair) == 64 for pair in range(PAIRS))
    exchange(nic, rounds=70)
    assert port.info()["queue_pairs"] == PAIRS
    assert port.info()["ring_sizes"] == [64] * 2 * PAIRS


def test_a_port_receives_and_sends_by_its_first_pair(nic):
    nic.device.deliver(frame(60), pair=0)
    nic.device.deliver(frame(61), pair=3)
    assert [bytes(one) for one in nic.port.recv_burst(8)] == [frame(60)]
    assert receive(nic.port.queues[3]) == [frame(61)]
    assert nic.port.send_burst(frames(2)) == 2
    assert nic.device.take(pair=0) == frames(2)
    nic.device.complete(pair=0)


def test_counters_of_each_pair_and_of_all(nic):
    for pair, queue in enumerate(nic.port.queues):
        nic.device.deliver(*frames(pair), pair=pair)
        assert len(receive(queue)) == pair
        assert queue.send_burst(frames(2 * pair)) == 2 * pair
        assert len(nic.device.take(pair=pair)) == nic.device.complete(pair=pair) == 2 * pair
    assert nic.port.tx_pending == 2 * (1 + 2 + 3)
    each = [queue.stats for queue in nic.port.queues]
    assert [one.rx_frames for one in each] == [0, 1, 2, 3]
    assert [one.tx_frames for one in each] == [0, 2, 4, 6]
    assert (nic.port.stats.rx_frames, nic.port.stats.tx_frames) == (6, 12)
    nic.port.reset()
    assert nic.port.stats.rx_frames == 6
    assert nic.port.queues[3].stats.rx_bytes == each[3].rx_bytes == 180


def test_a_burst_of_one_pair_goes_out_of_another_uncopied(nic):
    one, other = nic.port.queues[1], nic.port.queues[2]
    content = [frame(60), frame(9014)]
    nic.device.deliver(*content, pair=1)
    burst = one.recv_burst(8)
    assert other.send_burst(burst) == 2
    del burst
    assert nic.held_pages == 3  # of the pair that received
    assert nic.device.take(pair=2) == content
    nic.device.complete(pair=2)
    assert other.reclaim() == 2


@pytest.mark.rule("CVQ-016", "CVQ-017")
def test_a_reset_switches_them_on_again(nic):
    before = nic.port.queues
    for _ in range(3):
        nic.device.deliver(frame(60), pair=3)
        nic.port.reset()
        exchange(nic)
    assert nic.port.queues == before
    assert nic.device.control.commands == [(4, 0, b"\4\0")] * 4


def test_a_reset_ends_a_wait_at_any_pair(make_nic):
    nic = many(make_nic)
    waiting, ended = nic.port.queues[2], []

    def wait():
        try:
            waiting.recv_burst(1, timeout=None)
        except PortClosed as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until(lambda: not nic.device.queues[4]._avail[0] & 1)  # it asks for an interrupt
    nic.port.reset()
    thread.join(SECONDS)
    assert not thread.is_alive()
    assert len(ended) == 1
    exchange(nic)


def test_a_pair_that_was_waited_at_serves_again_after_a_reset(make_nic, monkeypatch):
    """It was dead for good, though its error said to call it again."""
    monkeypatch.setattr(life, "LEAVE_SECONDS", 30)
    nic = many(make_nic)
    before, got = nic.port.queues, []

    def wait(queue):
        try:
            burst = queue.recv_burst(1, timeout=None)
        except PortClosed:
            until(lambda: queue.posted)
            burst = queue.recv_burst(1, timeout=SECONDS)
        got.append(bytes(burst[0]))

    threads = [threading.Thread(target=wait, args=(queue,)) for queue in before]
    for thread in threads:
        thread.start()
    until(lambda: not any(nic.device.queues[2 * at]._avail[0] & 1 for at in range(PAIRS)))
    nic.port.reset()
    assert nic.port.queues == before
    for at in range(PAIRS):
        nic.device.deliver(frame(60, at), pair=at)
    for thread in threads:
        thread.join(SECONDS)
    assert sorted(got) == sorted(frames(PAIRS, 60))


def test_pairs_that_are_there_and_not_wanted_are_left_alone(make_nic):
    nic = make_nic(offered=PLAIN | MANY, queue_sizes=(64,) * 2 * PAIRS, queue_pairs=2)
    assert nic.device.control.commands == [(4, 0, b"\2\0")]
    assert sorted(nic.device.queues) == [0, 1, 2, 3, 8]
    exchange(nic)
    nic = make_nic(offered=PLAIN | MANY, queue_sizes=(64,) * 2 * PAIRS)
    assert nic.device.control.commands == []
    assert sorted(nic.device.queues) == [0, 1, 8]


@pytest.mark.parametrize(
    ("offered", "pairs", "wanted", "words"),
    [
        (PLAIN | MANY, 4, 5, "the device has 4"),
        (PLAIN | MANY, 1, 2, "one"),
        (PLAIN | mask("ctrl_vq"), 4, 2, "one"),
        (PLAIN | mask("mq"), 4, 2, "one"),
        (PLAIN, 4, 4, "one"),
    ],
    ids=["too many", "one", "no mq", "no control queue", "neither"],
)
def test_pairs_that_the_device_does_not_have(offered, pairs, wanted, words):
    device = NetDevice(features=offered, queue_sizes=(64,) * 2 * pairs)
    with pytest.raises(FeatureMissing, match=words) as caught:
        Nic(device, queue_pairs=wanted)
    assert "queue_pairs=" in caught.value.mend
    assert device.read_status() == 0


@pytest.mark.parametrize("pairs", [0, -1, 0x8001, 1 << 40])
def test_numbers_of_pairs_that_cannot_be(pairs):
    with pytest.raises(ValueError, match="1 to 32768"):
        pyvirtnet.open("sim:loopback", queue_pairs=pairs)


@pytest.mark.parametrize("pairs", [1.5, "2", None])
def test_a_number_of_pairs_is_a_number(pairs):
    with pytest.raises(TypeError):
        pyvirtnet.open("sim:loopback", queue_pairs=pairs)


def test_a_device_that_will_not_switch_them_on():
    device = NetDevice(features=PLAIN | MANY, queue_sizes=(64,) * 2 * PAIRS)
    device.control.refuse.add((4, 0))
    with pytest.raises(CommandRefused, match="queue pairs"):
        Nic(device, queue_pairs=2)
    assert device.read_status() == 0


def test_more_pairs_than_a_simulated_device_has_name_its_option():
    with pytest.raises(FeatureMissing, match=r"mend: .*sim: \?pairs=4; or .*queue_pairs=2"):
        pyvirtnet.open("sim:loopback?pairs=2", queue_pairs=4)


def test_open_on_the_simulator():
    with pyvirtnet.open("sim:loopback?pairs=4", queue_pairs=4) as port:
        for at, queue in enumerate(port.queues):
            assert queue.send_burst(frames(3, 60, at)) == 3
            assert [bytes(one) for one in queue.recv_burst(8)] == frames(3, 60, at)
    with pytest.raises(FeatureMissing):
        pyvirtnet.open("sim:loopback?pairs=4&mq=off", queue_pairs=4)


def test_a_lie_stops_its_pair_and_no_other(make_nic):
    nic = many(make_nic)
    Liar(nic, 4).put((99, 60))
    with pytest.raises(DeviceBroken, match="queue pair 2"):
        nic.port.queues[2].recv_burst(1)
    for pair in (0, 1, 3):
        assert nic.device.deliver(frame(60), pair=pair)
        assert receive(nic.port.queues[pair]) == [frame(60)]
    nic.port.reset()
    nic.device.violations.clear()
    exchange(nic)


@pytest.mark.parametrize("release_from", [_queue.RELEASE_FROM, 1], ids=["gil", "no gil"])
@pytest.mark.parametrize("seed", range(6))
def test_a_hostile_device_with_several_pairs(monkeypatch, seed, release_from):
    """Typed errors only, and after a reset all is there and works."""
    monkeypatch.setattr(_queue, "RELEASE_FROM", release_from)
    device = HostileDevice(
        features=PLAIN | MANY, queue_sizes=(16,) * 4, seed=seed, rate=0.15, start_index=0xFFF0
    )
    nic = Nic(device, queue_pairs=2)
    errors = []
    try:
        for _ in range(200):
            device.step()
            for queue in nic.port.queues:
                try:
                    [bytes(one) for one in queue.recv_burst(8)]
                    queue.send_burst(frames(3))
                    queue.reclaim()
                except pyvirtnet.Error as error:
                    errors.append(error.with_traceback(None))
                    device.heal()
                    nic.port.reset()
                    break
        device.heal()
        nic.port.reset()
        exchange(nic)
        assert nic.held_pages == nic.held_slots == nic.port.tx_pending == 0
    finally:
        nic.port.close()


@pytest.mark.parametrize("offered", FORMATS.values(), ids=FORMATS)
def test_a_thread_for_each_pair(make_nic, offered):
    """All at once, each at its own pair; nothing is lost, doubled or mixed up."""
    device = Loopback(features=PLAIN | MANY | offered, queue_sizes=(64,) * 2 * PAIRS, fill=False)
    nic, total, failed = make_nic(device, queue_pairs=PAIRS), 1500, []

    def work(pair, queue):
        sent, back = 0, []
        try:
            while len(back) < total:
                sent += queue.send_burst(frames(min(16, total - sent), 100, 10_000 * pair + sent))
                back += [bytes(one) for one in queue.recv_burst(32)]
            assert back == frames(total, 100, 10_000 * pair)
        except BaseException as error:
            failed.append(error)

    threads = [
        threading.Thread(target=work, args=(pair, queue))
        for pair, queue in enumerate(nic.port.queues)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [queue.stats.rx_frames for queue in nic.port.queues] == [total] * PAIRS
    for queue in nic.port.queues:
        queue.reclaim()


def test_a_forked_child_finds_all_pairs_closed(make_nic):
    nic = many(make_nic)
    pid = os.fork()
    if pid == 0:
        closed = 0
        for queue in nic.port._made:
            try:
                queue.recv_burst(1)
            except PortClosed:
                closed += 1
        os._exit(closed)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == PAIRS
    exchange(nic)


def test_a_process_for_each_port(path, start):
    """What processes can have: a port each, opened there; all at once."""

    def work(end):
        with open_port(end) as port:
            round_trip(port, *range(60, 260))
            assert port.stats.rx_frames == port.stats.tx_frames == 200

    ends = [f"{path}{number}" for number in range(3)]
    for end in ends:
        start(at=end)
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=work, args=(end,)) for end in ends[1:]]
    for child in children:
        child.start()
    work(ends[0])
    for child in children:
        child.join(SECONDS)
    assert [child.exitcode for child in children] == [0, 0]


def test_vhost_user_has_them_too(path, start):
    features = mask("version_1", "mrg_rxbuf", "mq")
    back_end = start(Loopback(features=features, queue_sizes=(256,) * 2 * PAIRS))
    with open_port(path, queue_pairs=PAIRS) as port:
        for at, queue in enumerate(port.queues):
            assert queue.send_burst(frames(3, 60, at)) == 3
            got = []
            while len(got) < 3:
                got += [bytes(one) for one in queue.recv_burst(8, timeout=SECONDS)]
            assert got == frames(3, 60, at)
        assert port.stats.rx_frames == 12
        assert back_end.many
    with pytest.raises(FeatureMissing, match="the device has 4"):
        open_port(path, queue_pairs=5)
