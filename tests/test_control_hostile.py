"""Commands to a device that lies, from threads, from handlers, from forked children."""

import os
import random
import signal
import threading
from contextlib import suppress

import pytest
from commands import ALL, GROUP, OTHER, OURS
from driven import User as FrameUser
from driven import comes_back, conserved
from nic import Nic
from vhost_fixtures import SECONDS

from pyvirtnet import DeviceTimeout, Error, PortClosed, QueueBusy, Rss
from pyvirtnet.testing import HostileDevice, NetDevice, mask

PLAIN = ALL & ~mask("indirect_desc")
SOON = 0.005  # seconds for an answer: a device in this process has it at once or never


class User(FrameUser):
    """Asks for things beside moving frames."""

    def act(self) -> None:
        super().act()
        port, rng = self.port, self.rng
        on = rng.random() < 0.5
        deeds = (
            lambda: setattr(port, "promiscuous", True),
            lambda: setattr(port, "all_multicast", on),
            lambda: setattr(port, "mac_filter", [OTHER, GROUP]),
            lambda: setattr(port, "mac", rng.choice([OURS, OTHER])),
            lambda: setattr(port, "rss", Rss(hash_types=0)),
            lambda: port.vlans.add(rng.randrange(4096)),
            lambda: port.coalesce(rx_usecs=1, rx_frames=1),
            port.coalescing,
            port.device_stats,
            port.events,
            port.announce,
        )
        self.attempt(rng.choice(deeds))


@pytest.mark.parametrize("seed", range(8))
def test_a_random_life_with_commands(monkeypatch, seed):
    monkeypatch.setattr("pyvirtnet.control.events.ANNOUNCE_SECONDS", SOON)
    device = HostileDevice(seed=seed, rate=0.1, features=PLAIN, start_index=0xFFF0 * (seed % 2))
    nic = Nic(device, features=["+ctrl_vlan"])
    nic.port._control.seconds = SOON
    user = User(nic, seed)
    try:
        for _ in range(120):
            device.step()
            user.act()
            conserved(nic)
            if user.rng.random() < 0.1:
                user.attempt(nic.port.reset)
        recover(nic, user)
        nic.port.promiscuous = False
        assert device.control.filter.promiscuous is False
    except BaseException as error:
        error.add_note(device.story())
        raise
    finally:
        nic.port.close()


def recover(nic, user):
    """Healed, and reset until what it refused is forgotten, it works."""
    nic.port._control.seconds = 1.0
    nic.device.heal()
    with suppress(Error):
        nic.port.reset()
    comes_back(user)


def test_commands_from_threads_between_resets(make_nic):
    """Each is done, or refused with one of our errors; in the end what was set last is set."""
    nic = make_nic(NetDevice(features=ALL))
    port, stop, odd, done = nic.port, threading.Event(), [], []

    def ask(number):
        rng = random.Random(number)
        while not stop.is_set():
            try:
                port.mac_filter = [bytes([2, 0, 0, 0, number, rng.randrange(256)])]
                done.append(number)
            except (PortClosed, QueueBusy):
                pass
            except BaseException as error:
                odd.append(error)
                return

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    resets = 0
    while not odd and (resets < 30 or set(done) != set(range(4))):
        port.reset()
        resets += 1
    stop.set()
    for thread in threads:
        thread.join()
    assert odd == []
    assert set(done) == set(range(4))
    assert nic.device.control.filter.unicast == list(port.mac_filter)


def test_close_does_not_wait_for_ever_for_a_command(make_nic):
    nic = make_nic(NetDevice(features=ALL))
    nic.port._control.seconds = 0.2
    nic.device.control.mute = True
    under_way = threading.Event()
    nic.device.on_kick = under_way.set
    caught = []

    def ask():
        try:
            nic.port.promiscuous = False
        except Error as error:
            caught.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    assert under_way.wait(10)
    nic.port.close()
    thread.join()
    assert isinstance(caught[0], (DeviceTimeout, PortClosed))


def test_a_reset_by_a_signal_handler_in_the_middle_of_a_command(make_nic):
    """The command ends at once: its device was reset, and its queue is no more."""
    nic = make_nic(NetDevice(features=ALL))
    nic.device.control.mute = True
    port, me, under_way = nic.port, threading.get_ident(), threading.Event()
    port._control.seconds = SECONDS
    nic.device.on_kick = under_way.set

    def handle(*_):
        nic.device.control.mute = False
        port.reset()

    def interrupt():
        assert under_way.wait(SECONDS)
        with nic.device.lock:  # the kick is over
            signal.pthread_kill(me, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, handle)
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(PortClosed, match="reset"):
            port.promiscuous = False
    finally:
        thread.join()
        signal.signal(signal.SIGALRM, before)
    assert port.promiscuous is None
    port.promiscuous = False
    assert nic.device.control.filter.promiscuous is False


def test_a_forked_child_sends_no_commands(make_nic):
    nic = make_nic(NetDevice(features=ALL))
    nic.port.promiscuous = False
    held = threading.Event()
    release = threading.Event()

    def hold():
        with nic.port._care:
            held.set()
            release.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    pid = os.fork()
    if pid == 0:
        status = 1
        with suppress(BaseException):
            with pytest.raises(PortClosed, match="forked"):
                nic.port.promiscuous = True
            assert nic.port.mac == nic.device.mac
            status = 0
        os._exit(status)
    release.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(nic.device.control.commands) == 1
