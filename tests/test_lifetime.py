"""Memory that somebody can see stays where it is and as it is; memory nobody sees comes back."""

import gc
import random
import signal
import threading
import weakref
from contextlib import suppress

import numpy as np
import pytest
from later import Later
from nic import Nic, frame, frames, run_python

from pyvirtnet import PortClosed, QueueBusy
from pyvirtnet import open as open_port

SENT = [frame(60, 1), frame(9014, 2), frame(128, 3), frame(5000, 4)]
NOISE = [frame(size, 500 + i) for i, size in enumerate((65535, 60, 4085, 128, 9014))]


@pytest.fixture
def start_index():
    """What is held does not depend on it; the harder one."""
    return 0xFFF0


def joined(parts):
    return b"".join(map(bytes, parts))


# What can be kept of a burst, and the bytes it has to go on showing.
VIEWS = {
    "burst": (lambda burst: burst, joined, b"".join(SENT)),
    "slice": (lambda burst: burst[1:3], joined, SENT[1] + SENT[2]),
    "slice of a slice": (lambda burst: burst[1:][::-2], joined, SENT[3] + SENT[1]),
    "picked": (lambda burst: burst[[1]], joined, SENT[1]),
    "masked": (lambda burst: burst[burst.lengths > 5000], joined, SENT[1]),
    "frame": (lambda burst: burst[1], bytes, SENT[1]),
    "frame of a slice": (lambda burst: burst[2:][1], bytes, SENT[3]),
    "heads": (lambda burst: burst.heads, lambda kept: bytes(kept[1]), SENT[1][:128]),
    "a column of heads": (lambda burst: burst.heads[:, 3], bytes, bytes(data[3] for data in SENT)),
    "a row of heads": (lambda burst: burst.heads[3], bytes, SENT[3][:128]),
    "heads of a slice": (lambda burst: burst[3:].heads, bytes, SENT[3][:128]),
    "lengths": (lambda burst: burst.lengths, list, [len(data) for data in SENT]),
    "head": (lambda burst: burst[1].head, bytes, SENT[1][:128]),
    "fragments": (lambda burst: burst[1].frags, joined, SENT[1][128:]),
    "part of a fragment": (lambda burst: burst[1].frags[2][5:90:3], bytes, SENT[1][8185:8270:3]),
    "memoryview": (lambda burst: memoryview(burst[1].frags[0]), bytes, SENT[1][128:4084]),
    "array over a memoryview": (
        lambda burst: np.frombuffer(memoryview(burst[3].frags[1]), np.uint8),
        bytes,
        SENT[3][4084:],
    ),
    "iterator": (iter, lambda kept: bytes(next(kept)), SENT[0]),
}


def received(nic):
    assert nic.device.deliver(*SENT)
    return nic.port.recv_burst(64)


def churn(nic, rounds=40):
    """Traffic through every page and every head slot."""
    for _ in range(rounds):
        nic.pass_through(NOISE)
    nic.pass_through(frames(3 * nic.port.queues[0].pool.slots, 128))


@pytest.mark.parametrize(("keep", "read", "expected"), VIEWS.values(), ids=VIEWS)
def test_what_is_kept_of_a_burst_stays_while_traffic_goes_on(make_nic, keep, read, expected):
    nic = make_nic(queue_sizes=(32, 32), fill=False)
    kept = keep(received(nic))
    gc.collect()
    churn(nic)
    assert read(kept) == expected


@pytest.mark.parametrize(("keep", "read", "expected"), VIEWS.values(), ids=VIEWS)
def test_what_is_kept_of_a_closed_port_stays(make_nic, keep, read, expected):
    nic = make_nic(queue_sizes=(32, 32), fill=False)
    kept = keep(received(nic))
    nic.port.close()
    churn(make_nic(queue_sizes=(32, 32), fill=False), 10)
    assert read(kept) == expected


@pytest.mark.parametrize(("keep", "read", "expected"), VIEWS.values(), ids=VIEWS)
def test_what_is_kept_of_a_forgotten_port_stays(start_index, keep, read, expected):
    nic = Nic(queue_sizes=(32, 32), start_index=start_index)
    kept = keep(received(nic))
    gone = weakref.ref(nic.port)
    del nic
    gc.collect()
    assert gone() is None
    other = Nic(queue_sizes=(32, 32), fill=False)
    churn(other, 10)
    other.port.close()
    assert read(kept) == expected


@pytest.mark.parametrize(("keep", "read", "expected"), VIEWS.values(), ids=VIEWS)
def test_what_is_kept_over_a_reset_stays(make_nic, keep, read, expected):
    nic = make_nic(queue_sizes=(32, 32), fill=False)
    kept = keep(received(nic))
    nic.port.reset()
    churn(nic, 10)
    assert read(kept) == expected


@pytest.mark.parametrize("keep", [keep for keep, _, _ in VIEWS.values()], ids=VIEWS)
def test_memory_comes_back_with_the_last_view(make_nic, keep):
    nic = make_nic(queue_sizes=(32, 32))
    burst = received(nic)
    gone = weakref.ref(burst)
    kept = keep(burst)
    del burst
    assert gone() is not None
    assert nic.held_pages == 5
    del kept
    assert gone() is None
    assert nic.held_pages == nic.held_slots == 0


def test_views_of_a_closed_port_can_be_written(make_nic):
    nic = make_nic()
    burst = received(nic)
    nic.port.close()
    burst.heads[:] = 7
    for part in burst[1].frags:
        part[:] = 8
    assert bytes(burst[1]) == b"\7" * 128 + b"\x08" * (9014 - 128)
    assert bytes(burst[3])[128:] == SENT[3][128:]


def test_what_a_transmit_holds_outlives_the_burst(make_nic):
    nic = make_nic(queue_sizes=(32, 32))
    nic.port.send_burst(received(nic))
    gc.collect()
    assert nic.held_pages == 5
    churn(nic, 10)
    assert nic.transmitted() == SENT


def test_a_method_of_a_forgotten_port_says_what_to_keep():
    with pytest.raises(PortClosed, match=r"nobody had the port any more\n.*keep the port itself"):
        open_port("sim:loopback").recv_burst(1)


@pytest.mark.rule("BAS-042")
@pytest.mark.parametrize("end", ["close", "reset"])
def test_what_is_in_flight_at_the_end_is_let_go(make_nic, end):
    left, right = make_nic(), make_nic()
    right.port.send_burst(received(left))
    right.port.send_burst([frame(9014)])
    made = right.port.alloc_burst(4, 60)
    right.port.send_burst(made)
    gone = weakref.ref(made)
    del made
    gc.collect()
    assert left.held_pages == 5
    getattr(right.port, end)()
    assert left.held_pages == left.held_slots == 0
    assert gone() is None


def test_memory_of_a_tx_burst_is_not_given_to_another(nic):
    burst = nic.port.alloc_burst(10, 1000)
    burst.data[:] = 1
    row = burst[3]
    del burst
    others = [nic.port.alloc_burst(10, 1000) for _ in range(20)]
    for number, other in enumerate(others):
        other.data[:] = number + 2
    assert (row == 1).all()
    assert all((other.data == number + 2).all() for number, other in enumerate(others))


def test_a_tx_burst_outlives_its_port(make_nic):
    first, second = make_nic(), make_nic()
    burst = first.port.alloc_burst(4, 60)
    burst.data[:] = 5
    first.port.close()
    del first
    gc.collect()
    assert second.port.send_burst(burst) == 4
    assert second.transmitted() == [b"\5" * 60] * 4


def test_an_exception_in_the_middle(nic):
    def handle():
        burst = received(nic)
        kept = [one.frags for one in burst]
        raise RuntimeError("mine", len(kept))

    with pytest.raises(RuntimeError, match="mine") as caught:
        handle()
    assert nic.held_pages == 5  # the traceback's frames see it
    caught.value.__traceback__ = None
    del caught
    gc.collect()
    assert nic.held_pages == 0


def test_bursts_in_cycles_are_collected(nic):
    class Node:
        pass

    for _ in range(3):
        node = Node()
        node.me, node.burst = node, received(nic)
    assert nic.held_pages > 0
    del node
    gc.collect()
    assert nic.held_pages == 0


@pytest.mark.parametrize("seed", range(5))
def test_random_holding_and_dropping(make_nic, seed):
    """A page is never used again while any view of it lives: what it shows stays equal."""
    rng = random.Random(seed)
    nic = make_nic(queue_sizes=(32, 32), pages=160, merge="random", seed=seed)
    out = make_nic(queue_sizes=(32, 32), seed=seed)
    held, number, sent, seen = [], 0, [], []

    def whole(burst):
        return burst, [bytes(one) for one in burst]

    def part(burst):
        rest = burst[rng.randrange(len(burst)) :]
        return rest, [bytes(one) for one in rest]

    def heads(burst):
        return burst.heads, [bytes(row) for row in burst.heads]

    def fragments(burst):
        views = [view for one in burst for view in one.frags]
        return views, [bytes(view) for view in views]

    def receive():
        nonlocal number
        sizes = [rng.choice((14, 60, 128, 129, 4085, 9014)) for _ in range(rng.randint(1, 6))]
        if nic.device.deliver(*[frame(size, number + i) for i, size in enumerate(sizes)]):
            number += len(sizes)
        burst = nic.port.recv_burst(rng.randint(1, 8))
        if burst:
            held.append(rng.choice((whole, part, heads, fragments))(burst))

    def forward():
        if held and type(held[0][0]).__name__ == "RxBurst":
            count = out.port.send_burst(held[0][0])
            sent.extend(held[0][1][:count])

    def drop():
        if held:
            held.pop(rng.randrange(len(held)))

    def send():
        seen.extend(out.device.take(rng.randint(1, 8)))
        out.device.complete(rng.randint(1, 8), order="shuffled")

    for step in range(2000):
        rng.choice((receive, receive, drop, drop, forward, send))()
        if step % 20 == 0:
            for views, expected in held:
                assert [bytes(view) for view in views] == expected
    seen += out.transmitted()
    assert seen == sent
    held.clear()


# ---- threads -------------------------------------------------------------------------------------


class Inside:
    """Another thread inside send_burst, until it is let go."""

    def __init__(self, port):
        self.entered, self.leave = threading.Event(), threading.Event()
        self.result = []
        self.thread = threading.Thread(target=self.run, args=(port,))
        self.thread.start()
        assert self.entered.wait(30)

    def run(self, port):
        try:
            self.result.append(port.send_burst(self.frames()))
        except Exception as error:
            self.result.append(error)

    def frames(self):
        yield frame(60, 1)
        self.entered.set()
        assert self.leave.wait(30)
        yield frame(9014, 2)

    def end(self):
        self.leave.set()
        self.thread.join(30)
        return self.result[0]


def until_inside(port):
    """Until another thread is inside recv_burst."""
    with suppress(QueueBusy):
        while True:
            port.recv_burst(1)


def test_a_second_thread_in_send_burst_is_refused(nic):
    other = Inside(nic.port)
    for call in (lambda: nic.port.send_burst(frames(5)), nic.port.reclaim):
        with pytest.raises(QueueBusy, match="another thread"):
            call()
    nic.pass_through(frames(100))  # receiving is another direction
    assert other.end() == 2
    assert nic.transmitted() == [frame(60, 1), frame(9014, 2)]
    assert nic.port.send_burst(frames(5)) == 5


def test_a_second_thread_in_recv_burst_is_refused(nic):
    got = []
    thread = threading.Thread(target=lambda: got.append(nic.port.recv_burst(1, timeout=None)))
    thread.start()
    until_inside(nic.port)
    with pytest.raises(QueueBusy, match="another thread"):
        nic.port.recv_burst(1)
    assert nic.port.send_burst(frames(5)) == 5
    nic.device.deliver(frame(60))
    thread.join(30)
    assert [bytes(one) for burst in got for one in burst] == [frame(60)]


def test_many_threads_on_one_queue(make_nic):
    """Every call either works or says QueueBusy; every frame comes once, whole."""
    nic = make_nic(queue_sizes=(64, 64), fill=False)
    seen, sent, total, lock = [], [], 1500, threading.Lock()

    def work(number):
        rng = random.Random(number)
        while len(seen) < total:
            try:
                burst = nic.port.recv_burst(rng.randint(1, 8))
                content = [bytes(one) for one in burst]
                with lock:
                    seen.extend(content)
                if content and nic.port.send_burst(burst[:1]):
                    with lock:
                        sent.append(content[0])
            except QueueBusy:
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    delivered, got = 0, []
    while any(thread.is_alive() for thread in threads):
        if delivered < total and nic.device.deliver(frame(60 + delivered % 5000, delivered)):
            delivered += 1
        got += nic.transmitted("shuffled")
    got += nic.transmitted()
    assert sorted(seen) == sorted(frame(60 + i % 5000, i) for i in range(total))
    assert sorted(got) == sorted(sent)


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_port_that_ends_wakes_a_thread_that_waits(nic, end):
    errors = []

    def wait():
        try:
            nic.port.recv_burst(1, timeout=None)
        except PortClosed as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    until_inside(nic.port)
    getattr(nic.port, end)()
    thread.join(30)
    assert len(errors) == 1
    if end == "reset":
        nic.pass_through(frames(300))


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_port_that_ends_while_its_own_call_runs(nic, end):
    """In the generator, that is: the call has begun and cannot end before it."""
    before = nic.port.stats

    def some():
        yield frame(60)
        yield frame(9014)
        getattr(nic.port, end)()
        yield frame(60)

    with pytest.raises(PortClosed):
        nic.port.send_burst(some())
    after = nic.port.stats
    assert (after.tx_frames, after.tx_bytes) == (before.tx_frames, before.tx_bytes)
    if end == "reset":
        assert nic.port.send_burst(frames(3)) == 3
        assert nic.transmitted() == frames(3)
    else:
        assert nic.transport.closed


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_signal_handler_that_ends_the_port(nic, end):
    before = signal.signal(signal.SIGUSR1, lambda *_: getattr(nic.port, end)())
    me = threading.get_ident()
    try:
        with Later(nic, lambda: signal.pthread_kill(me, signal.SIGUSR1)):
            with pytest.raises(PortClosed):
                nic.port.recv_burst(1, timeout=None)
    finally:
        signal.signal(signal.SIGUSR1, before)
    if end == "reset":
        nic.pass_through(frames(300))
    else:
        assert nic.transport.closed


def test_a_port_that_ends_while_another_thread_sends(nic):
    other = Inside(nic.port)
    nic.port.close()
    assert nic.transport.closed
    assert isinstance(other.end(), PortClosed)


def test_a_reset_leaves_its_memory_to_a_call_that_is_under_way(nic):
    """What the call goes on writing is not the rings that the device has now."""
    other = Inside(nic.port)
    nic.port.reset()
    assert nic.port.send_burst(frames(5)) == 5
    assert isinstance(other.end(), PortClosed)
    nic.device.check()
    assert nic.transmitted() == frames(5)


# ---- the end of the interpreter ------------------------------------------------------------------

EXITS = {
    "open ports and views": """
        ports = [Nic() for _ in range(3)]
        for nic in ports:
            nic.device.deliver(frame(9014), frame(60))
        bursts = [nic.port.recv_burst(8) for nic in ports]
        views = [one.frags for burst in bursts for one in burst]
        made = [nic.port.alloc_burst(8, 60) for nic in ports]
        for nic, burst, tx in zip(ports, bursts, made):
            assert nic.port.send_burst(burst) == 2
            assert nic.port.send_burst(tx) == 8
        """,
    "views read at exit": """
        import atexit
        nic = Nic()
        nic.device.deliver(frame(9014))
        burst = nic.port.recv_burst(8)
        @atexit.register
        def late():
            assert bytes(burst[0]) == frame(9014)
        """,
    "a view that dies last of all": """
        import sys
        nic = Nic()
        nic.device.deliver(frame(9014))
        sys.kept = nic.port.recv_burst(8)[0].frags
        """,
    "everything in one cycle": """
        nic = Nic()
        nic.device.deliver(frame(9014))
        nic.burst = nic.port.recv_burst(8)
        nic.me = nic
        nic.device.on_kick = lambda: nic.port
        del nic
        """,
    "exit inside a call": """
        nic = Nic()
        def some():
            yield frame(60)
            raise SystemExit(0)
        nic.port.send_burst(some())
        """,
    "a forked child, its views and its parent's": """
        import os, sys
        nic = Nic()
        nic.device.deliver(frame(9014), frame(60))
        burst = nic.port.recv_burst(8)
        views = [burst.heads, *burst[0].frags, nic.port.alloc_burst(2, 60).data]
        nic.port.send_burst(burst)
        pid = os.fork()
        if pid == 0:
            assert bytes(burst[0]) == frame(9014)
            sys.exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """,
    "a finaliser that calls the port": """
        import sys
        import pyvirtnet
        nic = Nic()
        class Late:
            def __del__(self, port=nic.port, error=pyvirtnet.Error):
                try:
                    port.recv_burst(1), port.send_burst([bytes(60)]), port.reset()
                except error:
                    pass
        sys.late, nic.late = Late(), Late()
        """,
    "frames that are handed out by and by": """
        nic = Nic()
        nic.device.deliver(frame(9014), frame(60))
        handed = iter(nic.port.recv_burst(8))
        next(handed)
        some = (bytes(one) for one in handed)
        next(some)
        """,
    "a thread that waits": """
        import threading
        from pyvirtnet import PortClosed
        nic = Nic()
        inside = threading.Event()
        def wait():
            inside.set()
            try:
                nic.port.recv_burst(1, timeout=None)
            except PortClosed:
                pass
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        inside.wait()
        """,
}


@pytest.mark.parametrize("script", EXITS.values(), ids=EXITS)
def test_the_interpreter_ends_in_silence(script):
    run_python(script)
