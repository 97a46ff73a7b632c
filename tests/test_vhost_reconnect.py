"""A back end that goes and comes back, reconnect=, and a front end that is the server."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import vhost_wire as wire
from test_fork import in_child
from vhost_backend import FEATURES
from vhost_fixtures import (
    SECONDS,
    conserved,
    open_port,
    path,
    poll_until_error,
    round_trip,
    start,
    until,
)

import pyvirtnet
from pyvirtnet import DeviceBusy, DeviceGone, Error, FeatureMissing, NoSuchDevice
from pyvirtnet.testing import Loopback, mask
from pyvirtnet.transport import vhost_messages

__all__ = ["path", "start"]  # fixtures


def away(port: pyvirtnet.Port) -> None:
    """Poll until the port has noticed."""
    until(lambda: port.info()["posted_pages"] == 0, lambda: port.recv_burst(32))


# ---- reconnect=


def test_a_port_carries_on(path, start):
    back_end = start()
    with open_port(path, reconnect=True) as port:
        recv, send, queue = port.recv_burst, port.send_burst, port.queues[0]
        for life in range(1, 4):
            round_trip(port, 60, 9014)
            back_end.kill()
            away(port)
            assert (len(recv(32)), send([bytes(60)]), queue.reclaim()) == (0, 0, 0)
            assert not port.link.up
            assert port.info()["free_pages"] == port.info()["pages"]
            back_end = start()
            until(lambda: port.link.up, lambda: recv(32))
            assert send([bytes(60)]) == 1
            assert len(queue.recv_burst(1, timeout=SECONDS)) == 1
            assert port.stats.rx_frames == 3 * life
        assert conserved(port)
        assert port.queues == (queue,)


def test_what_was_in_flight_is_counted_and_let_go_of(path, start):
    back_end = start()
    with open_port(path, reconnect=True) as port:
        back_end.device.on_kick = None  # it takes nothing from now on
        held = port.alloc_burst(8, 60)
        assert port.send_burst(held) == 8
        assert port.tx_pending == 8
        back_end.device.deliver(*[bytes(60)] * 2)
        back_end.kill()
        until(lambda: port.stats.tx_lost, lambda: port.send_burst([]))
        assert (port.stats.tx_lost, port.stats.rx_lost, port.tx_pending) == (8, 2, 0)
        start()
        until(lambda: port.link.up, lambda: port.send_burst([]))
        round_trip(port)
        stats = port.stats
        assert stats.tx_frames == stats.tx_reclaimed + stats.tx_lost + port.tx_pending
        assert conserved(port)


def test_views_outlive_the_back_end(path, start):
    back_end = start()
    with open_port(path, reconnect=True) as port:
        frame = os.urandom(9014)
        port.send_burst([frame])
        burst = port.recv_burst(1, timeout=SECONDS)
        view = burst[0].frags[0]
        before = bytes(view)
        back_end.kill()
        away(port)
        start()
        until(lambda: port.link.up, lambda: port.recv_burst(32))
        round_trip(port, *[9014] * 300)
        assert bytes(view) == before
        assert bytes(burst[0]) == frame
        assert port.send_burst(burst) == 1
        assert bytes(port.recv_burst(1, timeout=SECONDS)[0]) == frame


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_thread_that_waits_goes_on_waiting(path, start, timeout):
    back_end = start()
    got: list[int] = []
    with open_port(path, reconnect=True) as port:
        waits = threading.Thread(
            target=lambda: got.append(len(port.recv_burst(1, timeout=timeout)))
        )
        waits.start()
        back_end.kill()
        until(lambda: not port.link.up)
        again = start()
        device = again.device
        until(lambda: device.live and device.deliver(bytes(60)), lambda: time.sleep(0.001))
        waits.join(SECONDS)
        assert got == [1]


def test_two_threads_through_three_deaths(path, start):
    back_end = start()
    done = threading.Event()
    errors: list[BaseException] = []
    with open_port(path, reconnect=True) as port:
        tx = port.alloc_burst(16, 60)

        def run(call):
            try:
                while not done.is_set():
                    call()
            except BaseException as error:
                errors.append(error)

        calls = (lambda: port.recv_burst(32, timeout=0.05), lambda: port.send_burst(tx))
        threads = [threading.Thread(target=run, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()

        def receives_more():
            before = port.stats.rx_frames
            until(lambda: port.stats.rx_frames > before + 500, lambda: time.sleep(0.001))

        for _ in range(3):
            receives_more()
            back_end.kill()
            back_end = start()
        receives_more()
        done.set()
        for thread in threads:
            thread.join(SECONDS)
        assert errors == []
        until(lambda: port.tx_pending == 0, lambda: (port.recv_burst(32), port.reclaim()))
        assert conserved(port)


def test_threads_that_wait_at_every_pair_go_on_waiting(path, start):
    """One got DeviceGone: a pair that was away already, with a call in it, was away no more."""

    def begin():
        features = mask("version_1", "mrg_rxbuf", "mq")
        return start(Loopback(features=features, queue_sizes=(256,) * 4))

    back_end = begin()
    done = threading.Event()
    got, errors = Counter(), []
    with open_port(path, queue_pairs=2, reconnect=True) as port:

        def wait(queue):
            try:
                while not done.is_set():
                    got[queue.index] += len(queue.recv_burst(8, timeout=0.3))
            except Error as error:
                errors.append(error)

        threads = [threading.Thread(target=wait, args=(queue,)) for queue in port.queues]
        for thread in threads:
            thread.start()
        for _ in range(3):
            back_end.kill()
            until(lambda: not port.info()["posted_pages"], lambda: time.sleep(0.001))
            back_end = begin()
            got.clear()
            until(
                lambda: errors or (got[0] and got[1]),
                lambda: (time.sleep(0.001), *(q.send_burst([bytes(60)]) for q in port.queues)),
            )
        done.set()
        for thread in threads:
            thread.join(SECONDS)
        assert errors == []


def test_giving_up(path, start):
    back_end = start()
    with open_port(path, reconnect=0.2) as port:
        back_end.kill()
        begin = time.monotonic()
        with pytest.raises(DeviceGone, match=r"did not come back within 0\.2 s"):
            until(lambda: False, lambda: port.recv_burst(32))
        assert 0.2 <= time.monotonic() - begin < SECONDS / 2
        with pytest.raises(DeviceGone, match="did not come back"):
            port.send_burst([bytes(60)])
        start()
        port.reset()
        round_trip(port)


def test_resetting_and_closing_while_away(path, start):
    back_end = start()
    port = open_port(path, reconnect=True)
    back_end.kill()
    away(port)
    with pytest.raises(NoSuchDevice):
        port.reset()
    start()
    port.reset()
    round_trip(port)
    port.close()


def test_a_device_that_comes_back_broken_is_tried_again(path, start):
    """A back end whose features are missing: the port stays away, and takes the next one."""
    back_end = start()
    with open_port(path, reconnect=True) as port:
        back_end.kill()
        legacy = start(Loopback(features=mask("mac"), required=0))
        until(lambda: legacy.log, lambda: port.recv_burst(32))
        assert port.recv_burst(1, timeout=0.2).lengths.size == 0
        legacy.kill()
        start()
        until(lambda: port.info()["posted_pages"], lambda: port.recv_burst(32))
        round_trip(port)


@pytest.mark.parametrize("options", [{}, {"reconnect": True}])
def test_a_memory_table_that_was_refused_once_is_told_again(path, start, options):
    """Else the back end would be taken for one that knows the memory, for good."""
    first = start()
    refusals = [struct.pack("<Q", 1)]

    def refuse(_):
        return wire.answer(wire.SET_MEM_TABLE, refusals.pop()) if refusals else None

    with open_port(path, **options) as port:
        first.kill()
        start(hooks={wire.SET_MEM_TABLE: refuse})
        if options:
            until(lambda: not refusals, lambda: port.recv_burst(1))
        else:
            with pytest.raises(pyvirtnet.Error, match="refused SET_MEM_TABLE"):
                port.reset()
            port.reset()
        until(lambda: port.info()["posted_pages"], lambda: port.recv_burst(1))
        round_trip(port)


def test_nobody_waits_for_a_back_end_that_does_not_answer_yet(path, start, monkeypatch):
    """It has been stopped, or accepts nobody yet: a poll looks whether it has answered."""
    first = start()
    with open_port(path, reconnect=True) as port:
        first.kill()
        monkeypatch.setattr(
            vhost_messages, "ANSWER_SECONDS", 1000.0
        )  # pytest does not wait as long
        silent = start(hooks={wire.GET_FEATURES: lambda _: b""})
        until(lambda: silent.log, lambda: port.recv_burst(1))
        for _ in range(100):
            assert len(port.recv_burst(1)) == 0
            assert port.send_burst([bytes(60)]) == 0
        assert len(port.recv_burst(1, timeout=0.2)) == 0
        answer = silent.handle(silent.log[0])
        silent.say(wire.answer(wire.GET_FEATURES, answer))
        until(lambda: port.info()["posted_pages"], lambda: port.recv_burst(1))
        round_trip(port)
        assert silent.requests().count(wire.GET_FEATURES) == 1


@pytest.fixture
def stuck(path):
    """Takes the path of a back end that was killed, and accepts nobody, as a stopped process."""
    with socket.socket(socket.AF_UNIX) as listener:

        def listen():
            listener.bind(path)
            listener.listen()

        yield listen


def test_another_one_at_the_path_is_found_in_time(path, start, stuck, monkeypatch):
    first = start()
    with open_port(path, reconnect=True) as port:
        first.kill()
        stuck()
        until(lambda: port._transport._coming, lambda: port.recv_burst(1))
        os.unlink(path)
        start()
        with monkeypatch.context() as patch:
            patch.setattr(port._transport._coming, "_due_at", 0.0)
            until(lambda: port.info()["posted_pages"], lambda: port.recv_burst(1))
        round_trip(port)


def test_a_reset_asks_anew(path, start, stuck):
    first = start()
    with open_port(path, reconnect=True) as port:
        first.kill()
        stuck()
        until(lambda: port._transport._coming, lambda: port.recv_burst(1))
        os.unlink(path)
        start()
        port.reset()
        round_trip(port)


def test_one_that_never_answers_is_given_up_in_time(path, start):
    first = start()
    with open_port(path, reconnect=0.3) as port:
        first.kill()
        silent = start(hooks={wire.GET_FEATURES: lambda _: b""})
        assert "not answered yet" in str(poll_until_error(port))
        silent.hooks.clear()
        port.reset()
        round_trip(port)


@pytest.mark.parametrize("options", [{}, {"reconnect": 0.3}])
def test_a_device_that_comes_back_without_packed_rings(path, start, options):
    """A ring of 100 was right when it was asked for: not the caller's mistake, but the device's."""
    packed = Loopback(features=FEATURES | mask("ring_packed"), queue_sizes=(128, 128))
    first = start(packed)
    with open_port(path, ring_size=100, **options) as port:
        first.kill()
        start()
        error = poll_until_error(port)
        assert isinstance(error, DeviceGone)
        assert "ring_size=100" in str(error) or not options
        with pytest.raises(FeatureMissing, match="takes powers of two"):
            port.reset()


@pytest.mark.parametrize("words", ["on", "30", "on&wait=0"])
def test_an_address_that_reconnects(path, start, words):
    """For commands, which have no reconnect=."""
    back_end = start()
    with open_port(f"{path}?reconnect={words}") as port:
        back_end.kill()
        until(lambda: not port.info()["posted_pages"], lambda: port.recv_burst(32))
        start()
        until(lambda: port.info()["posted_pages"], lambda: port.recv_burst(32))
        round_trip(port)


def test_an_address_that_does_not(path, start):
    back_end = start()
    with open_port(f"{path}?reconnect=off") as port:
        back_end.kill()
        assert "?reconnect=on" in str(poll_until_error(port))
    for words in "yes", "-1", "":
        with pytest.raises(NoSuchDevice, match=f"reconnect={words} is not known"):
            open_port(f"{path}?reconnect={words}")


def test_reconnecting_is_for_back_ends():
    with pytest.raises(ValueError, match="vhost-user"):
        pyvirtnet.open("sim:loopback", reconnect=True)


# ---- waiting for a back end, and being the server


def test_a_client_waits_for_its_back_end(path, start):
    timer = threading.Timer(0.1, start)
    timer.start()
    with open_port(f"{path}?wait=10") as port:
        round_trip(port)
    timer.join()


@pytest.mark.parametrize(("what", "why"), [(Path.mkdir, "a directory"), (Path.touch, "no socket")])
def test_something_else_is_at_the_path(what, why, path):
    """The system says that the connection was refused, as of a back end that has died."""
    what(Path(path))
    with pytest.raises(NoSuchDevice, match=f"it is {why}\n.*iface="):
        open_port(path)


def test_nobody_there(path):
    with pytest.raises(NoSuchDevice, match="start the back end first"):
        open_port(path)


def test_server_mode(path, start):
    back_end = start(client=True)
    with open_port(f"{path}?server=on") as port:
        round_trip(port, 60, 9014)
        back_end.kill()
        assert os.path.exists(path)
        start(client=True)
        port.reset()
        round_trip(port)
    assert not os.path.exists(path)


def test_reconnecting_as_the_server(path, start):
    back_end = start(client=True)
    with open_port(f"{path}?server=on", reconnect=True) as port:
        back_end.kill()
        away(port)
        start(client=True)
        until(lambda: port.link.up, lambda: port.recv_burst(32))
        round_trip(port)


def test_a_server_waits_a_bound_time_and_leaves_no_socket(path):
    begin = time.monotonic()
    with pytest.raises(NoSuchDevice, match=r"waited for 0\.2 s"):
        open_port(f"{path}?server=on&wait=0.2")
    assert time.monotonic() - begin < SECONDS / 2
    assert not os.path.exists(path)


def test_what_a_crashed_server_left_is_replaced(path, start):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as crashed:
        crashed.bind(path)
    start(client=True)
    with open_port(f"{path}?server=on") as port:
        round_trip(port)


def test_a_path_that_another_server_has(path, start):
    start()
    with pytest.raises(DeviceBusy, match="another server listens there"):
        open_port(f"{path}?server=on&wait=0")
    with open_port(path) as port:
        round_trip(port)


def test_a_path_that_is_a_file(path):
    with open(path, "w") as file:
        file.write("precious")
    with pytest.raises(NoSuchDevice, match="no socket"):
        open_port(f"{path}?server=on&wait=0")
    with open(path) as file:
        assert file.read() == "precious"


def test_a_server_removes_only_its_own_socket(path, start):
    start(client=True)
    with open_port(f"{path}?server=on"):
        os.unlink(path)
        with open(path, "w"):
            pass
    assert os.path.exists(path)


def test_a_forked_child_leaves_the_socket_and_the_back_end_alone(path, start):
    start(client=True)
    with open_port(f"{path}?server=on") as port:

        def check():
            with pytest.raises(pyvirtnet.PortClosed):
                port.recv_burst(1)
            port.close()

        assert in_child(check) == 0
        assert os.path.exists(path)
        round_trip(port)


@pytest.mark.parametrize(
    "address", ["", "?server=on", "{}?server=yes", "{}?wait=-1", "{}?wait=nan", "{}?colour=blue"]
)
def test_an_address_that_means_nothing(path, address):
    with pytest.raises(NoSuchDevice) as caught:
        open_port(address.format(path))
    assert "/path" in caught.value.mend


def test_a_path_that_is_too_long(tmp_path):
    for query in ("", "?server=on&wait=0"):
        with pytest.raises(NoSuchDevice, match="too long"):
            open_port(str(tmp_path / ("x" * 200)) + query)
