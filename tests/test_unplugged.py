"""A function that goes at any moment of a port's life: an Error, nothing is kept, and it may come
back."""

import errno
import os
import shutil
import sys
from contextlib import suppress
from itertools import count

import pytest
from fake_kernel import fail
from fake_sysfs import BDF, make_sysfs
from fake_vfio import FakeVfio
from vhost_fixtures import descriptors

import pyvirtnet
from pyvirtnet.vfio import choice
from pyvirtnet.vfio.container import Container

pytest_plugins = ["vfio_fixtures"]

RING_RESET = 1 << 40
# what asks the kernel about the function: the fakes' calls, and those of sysfs
ASKED = {"pread", "pwrite", "ioctl", "mmap"}
SYSTEM = {os.stat, os.lstat, os.readlink, os.listdir, os.scandir, open}


class Unplugged(FakeVfio):
    """Wanted back, and taken: the kernel answers no more."""

    def pread(self, length, position):
        return fail(errno.EIO) if self.gone else super().pread(length, position)

    def pwrite(self, data, position):
        return fail(errno.EIO) if self.gone else super().pwrite(data, position)

    def ioctl(self, request, argument=0):
        return fail(errno.ENODEV) if self.gone else super().ioctl(request, argument)

    def mmap(self, length, offset):
        return fail(errno.ENODEV) if self.gone else super().mmap(length, offset)


class Machine(Container):
    """The kernel's container, with one function behind it that comes and goes."""

    def __init__(self, sysfs, kind):
        super().__init__()
        self.sysfs, self.kind, self.devices = sysfs, kind, []
        self.plug()

    def plug(self):
        self.gone = False
        make_sysfs(self.sysfs)

    def unplug(self):
        self.gone = True
        for device in self.devices:
            device.gone = True
        shutil.rmtree(self.sysfs / "bus")
        shutil.rmtree(self.sysfs / "kernel")

    def open_device(self, function):
        super().open_device(function).close()
        self.devices.append(self.kind())
        self.devices[-1].features |= RING_RESET
        self.devices[-1].gone = self.gone
        return self.devices[-1]


class Moment:
    """It comes with a system call about the function: before it is made, or as it returns."""

    def __init__(self, number, then):
        self.left, self.then = number, then

    def __call__(self, frame, event, arg):
        asked = event in ("call", "return") and frame.f_code.co_name in ASKED
        if asked or (event in ("c_call", "c_return") and arg in SYSTEM):
            if self.left == 0:
                sys.setprofile(None)
                self.then()
            self.left -= 1


def live(machine):
    """Opened, polled, asked, reset, plugged again if it went, closed."""
    try:
        port = pyvirtnet.open(BDF)
    except pyvirtnet.Error:
        return
    with port:
        for call in (
            lambda: port.recv_burst(4, timeout=0),
            lambda: port.send_burst([bytes(60)]),
            lambda: port.link,
            port.queues[0].reset,
            port.reset,
            lambda: port.recv_burst(4),
        ):
            with suppress(pyvirtnet.Error):
                call()
        if machine.gone:
            machine.plug()
            port.reset()
        sys.setprofile(None)
        info, stats = port.info(), port.stats
        assert info["free_pages"] + info["posted_pages"] == info["pages"]
        assert stats.tx_frames == stats.tx_lost + port.tx_pending
        assert port.send_burst([bytes(60)]) == 1


@pytest.mark.parametrize("kind", [FakeVfio, Unplugged], ids=["all ones", "refused"])
def test_at_any_moment(kind, sysfs, kernel, memory, monkeypatch):
    """Before and after every system call about it: what a call raises is a pyvirtnet.Error."""
    for number in count():
        machine = Machine(sysfs, kind)
        monkeypatch.setattr(choice, "container", machine)
        before = descriptors()
        moment = Moment(number, machine.unplug)
        sys.setprofile(moment)
        try:
            live(machine)
        finally:
            sys.setprofile(None)
        assert kernel.open_files == []
        for device in machine.devices:
            os.close(device.memory)
        assert descriptors() == before
        if moment.left >= 0:  # it was not reached
            break
        if not machine.gone:
            machine.unplug()
    assert number > 400  # moments there were
