"""Calls that work without the GIL, and what other threads do meanwhile."""

import gc
import os
import signal
import sys
import threading

import pytest
from nic import PLAIN, Liar, Nic, frame, frames, run_python
from test_fork import in_child
from test_queues import FORMATS, MANY, exchange, receive
from vhost_fixtures import SECONDS, until

from pyvirtnet import DeviceBroken, PortClosed, QueueBusy, _queue
from pyvirtnet.testing import mask

SENT = [frame(60, 1), frame(9014, 2), frame(128, 3), frame(4085, 4)]


@pytest.fixture(params=FORMATS.values(), ids=FORMATS)
def nic(request, make_nic):
    return two(make_nic, offered=PLAIN | MANY | mask("ring_reset") | request.param)


def two(make_nic, offered=PLAIN | MANY, **options):
    return make_nic(offered=offered, queue_sizes=(64,) * 4, queue_pairs=2, **options)


class Halted:
    """A call in another thread, which has released the GIL and stays where it is till the end."""

    def __init__(self, queue, call):
        self.queue, self.result = queue, []
        queue.release_from, queue._halt = 1, 1
        self.thread = threading.Thread(target=self._run, args=(call,))
        self.thread.start()
        until(lambda: queue._halt == 2)

    def _run(self, call):
        try:
            self.result.append(call())
        except Exception as error:
            self.result.append(error)

    def end(self):
        """What the call returned or raised."""
        self.queue._halt = 0
        self.thread.join(SECONDS)
        return self.result.pop()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.queue._halt = 0


def receiving(nic, content=SENT, waits=False):
    """Halted in recv_burst, before the first of the frames is taken; one more waits behind them."""
    queue = nic.port.queues[0]
    if not waits:
        assert nic.device.deliver(*content, frame(77))
        return Halted(queue, lambda: queue.recv_burst(len(content)))
    deliver = threading.Timer(0, lambda: nic.device.deliver(*content, frame(77)))
    deliver.start()
    return Halted(queue, lambda: queue.recv_burst(len(content), timeout=None))


def sending(nic, burst):
    """Halted in send_burst, before the first frame lies in the ring."""
    queue = nic.port.queues[0]
    return Halted(queue, lambda: queue.send_burst(burst))


def received(nic, content=SENT):
    """A burst of the second pair."""
    assert nic.device.deliver(*content, pair=1)
    return nic.port.queues[1].recv_burst(len(content))


def contents(burst):
    return [bytes(one) for one in burst]


# ---- who does -----------------------------------------------------------------------------------


def test_small_bursts_and_ports_of_one_pair_keep_the_gil(make_nic):
    one, several = make_nic(), two(make_nic)
    assert one.port.queues[0].release_from == sys.maxsize
    for nic, release_from in ((one, 1 << 40), (several, 9)):
        queue = nic.port.queues[0]
        assert queue.release_from >= _queue.RELEASE_FROM > 1
        queue.release_from, queue._halt = release_from, 1
        assert nic.device.deliver(*SENT)
        assert queue.send_burst(queue.recv_burst(64)) == 4
        assert queue._halt == 1, "one of the calls halted"
        assert nic.transmitted() == SENT
        nic.port.reclaim()


def test_a_full_ring_keeps_the_gil(make_nic):
    """There is nothing to do without."""
    nic = two(make_nic)
    queue = nic.port.queues[0]
    rows = nic.port.alloc_burst(64, 60)
    assert queue.send_burst(rows) == 64
    queue.release_from, queue._halt = 1, 1
    assert queue.send_burst(rows) == 0
    assert queue._halt == 1
    nic.transmitted()


# ---- other calls --------------------------------------------------------------------------------


def test_other_pairs_and_the_other_direction_work_meanwhile(nic):
    with receiving(nic) as inside:
        assert nic.port.queues[0].send_burst(frames(5)) == 5
        assert nic.transmitted() == frames(5)
        assert nic.device.deliver(*SENT, pair=1)
        assert receive(nic.port.queues[1]) == SENT
        assert nic.port.stats.rx_frames == 4
        assert contents(inside.end()) == SENT
    assert receive(nic.port.queues[0]) == [frame(77)]
    assert nic.port.stats.rx_frames == 9
    with sending(nic, received(nic)) as inside:
        assert nic.device.deliver(*SENT)
        assert receive(nic.port.queues[0]) == SENT
        assert inside.end() == 4
    assert nic.transmitted() == SENT


def test_a_second_thread_in_the_same_direction_is_refused(nic):
    queue = nic.port.queues[0]
    with receiving(nic) as inside:
        with pytest.raises(QueueBusy, match="another thread"):
            queue.recv_burst(1)
        assert contents(inside.end()) == SENT
    with sending(nic, received(nic)) as inside:
        for call in (lambda: queue.send_burst(frames(1)), queue.reclaim):
            with pytest.raises(QueueBusy, match="another thread"):
                call()
        assert inside.end() == 4
    assert nic.transmitted() == SENT


def test_a_burst_sent_twice_at_once_and_dropped(nic):
    """By two threads on two pairs, and nobody else holds it any more."""
    bursts = [received(nic)]
    other = nic.port.queues[1]
    call = nic.port.queues[0].send_burst
    with Halted(nic.port.queues[0], lambda: call(bursts[0])) as inside:
        assert other.send_burst(bursts[0]) == 4
        assert nic.device.take(pair=1) == SENT
        nic.device.complete(pair=1)
        bursts.clear()
        gc.collect()
        assert other.reclaim() == 4
        assert nic.held_pages == 5  # one of the frames lies in three, one in two
        assert inside.end() == 4
    assert nic.transmitted() == SENT
    assert nic.port.reclaim() == 4
    assert nic.held_pages == nic.held_slots == 0


def test_lengths_and_fields_that_are_set_meanwhile(make_nic):
    """The frames are those of then, and the books agree with what the device was shown."""
    nic = two(make_nic, PLAIN | MANY | mask("csum"), features=("+csum",))
    rows = nic.port.alloc_burst(4, 1000)
    rows.data[:] = 7
    with sending(nic, rows) as inside:
        rows.set_lengths([60, 61, 62, 1000])
        rows.offload["flags"][1], rows.offload["csum_start"][1] = 1, 34
        assert inside.end() == 4
    assert nic.transmitted() == [bytes([7] * size) for size in (60, 61, 62, 1000)]
    assert nic.port.stats.tx_bytes == 60 + 61 + 62 + 1000


def test_lengths_that_never_stop_changing(make_nic):
    """Whatever length a frame goes out with, it was counted with that one."""
    nic = two(make_nic, PLAIN | MANY | mask("csum"), features=("+csum",))
    queue, end = nic.port.queues[0], threading.Event()
    rows = nic.port.alloc_burst(40, 200)  # half of them take two descriptors
    rows.offload["flags"][::2], rows.offload["csum_start"] = 1, 34
    queue.release_from = 1

    def change():
        while not end.is_set():
            for size in (60, 200, 128):
                rows.set_lengths(size)

    thread = threading.Thread(target=change)
    thread.start()
    seen = 0
    try:
        for _ in range(200):
            assert queue.send_burst(rows) == 40
            seen += sum(map(len, nic.transmitted()))
    finally:
        end.set()
        thread.join(SECONDS)
    assert nic.port.stats.tx_bytes == seen
    nic.device.check()


# ---- the end of the port ------------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True], ids=["polls", "waits"])
@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_port_that_ends_while_a_burst_is_received(nic, end, waits):
    """What the device had delivered before is received, or counted as lost."""
    with receiving(nic, waits=waits) as inside:
        getattr(nic.port, end)()
        burst = inside.end()
    assert contents(burst) == SENT
    stats = nic.port.stats
    assert (stats.rx_frames, stats.rx_bytes, stats.rx_lost) == (4, sum(map(len, SENT)), 1)
    if end == "reset":
        nic.device.check()
        exchange(nic)
        assert nic.port.queues[0].send_burst(burst) == 4
        assert nic.transmitted() == SENT
    else:
        with pytest.raises(PortClosed):
            nic.port.recv_burst(1)
        burst.heads[:] = 7


@pytest.mark.parametrize("kind", ["burst", "rows"])
@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_port_that_ends_while_a_burst_is_sent(nic, end, kind):
    """The device sees nothing of it, and nothing is counted."""
    burst = received(nic) if kind == "burst" else nic.port.alloc_burst(4, 60)
    with sending(nic, burst) as inside:
        getattr(nic.port, end)()
        error = inside.end()
    assert isinstance(error, PortClosed)
    stats = nic.port.stats
    assert (stats.tx_frames, stats.tx_bytes, stats.tx_lost, stats.tx_kicks) == (0, 0, 0, 0)
    if end == "reset":
        nic.device.check()
        exchange(nic)
        assert nic.port.queues[0].send_burst(burst) == 4
        assert len(nic.transmitted()) == 4


def test_a_port_that_is_forgotten_while_its_queue_works():
    nic = Nic(offered=PLAIN | MANY, queue_sizes=(64,) * 4, queue_pairs=2)
    queue, transport, device = nic.port.queues[0], nic.transport, nic.device
    assert device.deliver(*SENT)
    with Halted(queue, lambda: queue.recv_burst(64)) as inside:
        del nic
        gc.collect()
        assert transport.closed
        burst = inside.end()
    assert contents(burst) == SENT
    assert queue.pool is None


def test_a_signal_handler_that_closes_the_port(make_nic):
    """It runs when the call is over, which has taken its frames."""
    nic = two(make_nic)
    queue, me = nic.port.queues[0], threading.get_ident()
    queue.release_from, queue._halt = 1, 1
    assert nic.device.deliver(*SENT)

    def interrupt():
        until(lambda: queue._halt == 2)
        signal.pthread_kill(me, signal.SIGUSR1)
        queue._halt = 0

    before = signal.signal(signal.SIGUSR1, lambda *_: nic.port.close())
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        burst = queue.recv_burst(64)
    finally:
        thread.join(SECONDS)
        signal.signal(signal.SIGUSR1, before)
    assert contents(burst) == SENT
    assert nic.transport.closed


def test_a_pair_is_neither_reset_alone_nor_paused_meanwhile(nic):
    """Its rings are in use: the one is refused, the other tries again later."""
    queue = nic.port.queues[0]
    why = PortClosed("it", "is away", "wait")
    with receiving(nic) as inside:
        with pytest.raises(QueueBusy, match="another thread"):
            queue.reset()
        assert not queue._pause(why)
        nic.port.queues[1].reset()
        assert contents(inside.end()) == SENT
    assert receive(queue) == [frame(77)]
    queue.reset()
    exchange(nic)


# ---- lies ---------------------------------------------------------------------------------------


def test_a_lie_that_is_found_without_the_gil(make_nic):
    nic = two(make_nic)
    queue = nic.port.queues[0]
    queue.release_from = 1
    assert nic.device.deliver(*SENT)
    Liar(nic, 0).put((99, 60))
    assert contents(queue.recv_burst(64)) == SENT
    with pytest.raises(DeviceBroken, match="buffer 99"):
        queue.recv_burst(64)
    nic.port.reset()
    nic.device.violations.clear()
    exchange(nic)


# ---- fork and exit ------------------------------------------------------------------------------


@pytest.mark.parametrize("direction", ["receives", "sends"])
def test_a_fork_while_another_thread_works(nic, direction):
    """And holds its pool's lock, which nobody ever opens again in the child."""
    burst = received(nic)
    inside = receiving(nic) if direction == "receives" else sending(nic, burst[:])
    pool = nic.port.queues[1].pool

    def check():
        nonlocal burst
        for queue in nic.port._queues:
            for call in (lambda q=queue: q.recv_burst(64), lambda q=queue: q.send_burst(burst)):
                with pytest.raises(PortClosed, match="forked"):
                    call()
        assert contents(burst) == SENT
        burst = None
        nic.port.close()
        nic.port._queues.clear()
        nic.port._made.clear()
        gc.collect()
        other = Nic()
        other.pass_through(frames(100))
        other.port.close()

    with inside:
        pool._locked(True)
        try:
            status = in_child(check)
        finally:
            pool._locked(False)
        assert status == 0
        result = inside.end()
    assert result == 4 if direction == "sends" else contents(result) == SENT
    nic.transmitted()


def test_a_call_that_forks_while_another_thread_works(make_nic):
    """In the generator: in the child the call ends at the next frame, with the pool as it was."""
    nic = two(make_nic)
    queue, pids = nic.port.queues[0], []

    def some():
        yield frame(60)
        queue.pool._locked(True)
        pids.append(os.fork())
        if pids[0]:
            queue.pool._locked(False)
        yield frame(61)

    try:
        sent = queue.send_burst(some())
    except PortClosed:
        os._exit(7 if pids == [0] else 1)
    if pids == [0]:
        os._exit(1)  # it must not go on as a second pytest
    assert sent == 2
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 7
    assert nic.transmitted() == [frame(60), frame(61)]


@pytest.mark.parametrize("end", ["", "port.close()", "queue._halt = 0"])
def test_the_interpreter_ends_beside_a_call(end):
    run_python(
        f"""
        import threading
        nic = Nic(offered=PLAIN | mask("mq", "ctrl_vq"), queue_sizes=(64,) * 4, queue_pairs=2)
        port, queue = nic.port, nic.port.queues[0]
        queue.release_from, queue._halt = 1, 1
        rows = port.alloc_burst(8, 60)
        def work():
            while True:
                try:
                    queue.send_burst(rows)
                except Error:
                    return
        threading.Thread(target=work, daemon=True).start()
        while queue._halt != 2:
            pass
        {end}
        """.replace("import threading", "import threading\n        from pyvirtnet import Error")
    )
