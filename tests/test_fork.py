"""A forked child keeps what it can read and cannot touch the device."""

import mmap
import os
import resource
import traceback
from pathlib import Path

import pytest

import pyvirtnet


def in_child(check):
    """Run `check` in a forked child; its exit status."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def held():
    """A port, and a received burst with one long frame."""
    with pyvirtnet.open("sim:loopback") as port:
        assert port.send_burst([b"a" * 5000]) == 1
        yield port, port.recv_burst(1)


def test_the_port_is_closed_in_the_child(held):
    port, _ = held

    def check():
        for call in (lambda: port.recv_burst(1), lambda: port.send_burst([bytes(60)])):
            with pytest.raises(pyvirtnet.PortClosed, match="forked"):
                call()
        port.close()

    assert in_child(check) == 0
    assert port.send_burst([b"b" * 60]) == 1
    assert bytes(port.recv_burst(1)[0]) == b"b" * 60


def test_views_stay_readable_in_the_child_and_are_its_own(held):
    _, burst = held
    view = burst[0].frags[0]

    def check():
        assert bytes(burst[0]) == b"a" * 5000
        view[:] = 0
        assert not view.any()

    assert in_child(check) == 0
    assert bytes(burst[0]) == b"a" * 5000


def test_traffic_of_the_parent_does_not_reach_views_of_the_child(held):
    port, burst = held
    go = os.pipe()[::-1]

    def check():
        os.read(go[1], 1)
        assert bytes(burst[0]) == b"a" * 5000

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            check()
            status = 0
        finally:
            os._exit(status)
    burst = None
    for _ in range(8):
        port.send_burst([b"x" * 5000] * 100)
        port.recv_burst(100)
    os.write(go[0], b"!")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    for fd in go:
        os.close(fd)


def test_the_child_can_open_ports_of_its_own(held):
    def check():
        with pyvirtnet.open("sim:loopback") as port:
            port.send_burst([b"q" * 60])
            assert bytes(port.recv_burst(1)[0]) == b"q" * 60

    assert in_child(check) == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_without_memory_for_a_copy(held):
    """What the child wrote was then written for the parent, and for its device."""
    parent, burst = held
    rows, before = parent.alloc_burst(2, 60), bytes(burst[0])
    limit = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE

    def check():
        maps = Path("/proc/self/maps").read_text().splitlines()
        assert [line for line in maps if "memfd:pyvirtnet" in line and " rw-p " in line]
        burst.heads[:] = 0xEE
        rows.data[:] = 0xEE

    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 18), limit[1]))
    try:
        status = in_child(check)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert status == 0
    assert bytes(burst[0]) == before
    assert not rows.data.any()


def test_bursts_of_the_parent_are_not_sent_by_the_child(held):
    parent, burst = held
    rows = parent.alloc_burst(2, 60)

    def check():
        with pyvirtnet.open("sim:loopback") as port:
            for frames in (burst, [burst[0]], rows):
                with pytest.raises(pyvirtnet.PortClosed, match="forked"):
                    port.send_burst(frames)
            assert port.send_burst([bytes(burst[0])]) == 1
            assert bytes(port.recv_burst(1)[0]) == b"a" * 5000
            fresh = port.alloc_burst(2, 60)
            assert port.send_burst(fresh) == 2
            assert len(port.recv_burst(2)) == 2

    assert in_child(check) == 0
