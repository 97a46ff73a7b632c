"""A function that goes at any moment: of a port's life, or while tools/bind is at it."""

import errno
import os
import shutil
import sys
from contextlib import suppress
from functools import partial
from itertools import count

import pytest
from fake_kernel import fail
from fake_machine import NIC, OTHER, standard
from fake_sysfs import BDF, make_sysfs
from fake_vfio import FakeVfio
from vhost_fixtures import descriptors

import pyvirtnet
from pyvirtnet.cli import bind as tool
from pyvirtnet.cli._command import ENVIRONMENT, OK
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
    """The one before the system call about the function that has this number."""

    def __init__(self, number, then):
        self.left, self.then = number, then

    def __call__(self, frame, event, arg):
        ours = event == "call" and frame.f_code.co_name in ASKED
        if ours or (event == "c_call" and arg in SYSTEM and not within(frame, "fake_machine.py")):
            if self.left == 0:
                sys.setprofile(None)
                self.then()
            self.left -= 1


def within(frame, file):
    while frame is not None and not frame.f_code.co_filename.endswith(file):
        frame = frame.f_back
    return frame is not None


def reached(number, then, work):
    """Whether `work` has such a moment; `then` was done in it."""
    moment = Moment(number, then)
    sys.setprofile(moment)
    try:
        work()
    finally:
        sys.setprofile(None)
    return moment.left < 0


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
    """Before every system call about it: what a call raises is a pyvirtnet.Error, nothing is kept,
    and once it is back, one reset() is enough."""
    for number in count():
        machine = Machine(sysfs, kind)
        monkeypatch.setattr(choice, "container", machine)
        before = descriptors()
        if not reached(number, machine.unplug, partial(live, machine)):
            break
        assert kernel.open_files == []
        for device in machine.devices:
            os.close(device.memory)
        assert descriptors() == before
        if not machine.gone:
            machine.unplug()
    assert number > 200  # moments there were


@pytest.mark.unsanitized("nothing compiled is in it")
@pytest.mark.parametrize(
    "words", [["status"], ["bind", NIC, OTHER], ["restore", NIC]], ids=lambda words: words[0]
)
def test_while_tools_bind_is_at_it(tmp_path, capsys, words):
    """It says so, and what else it had begun is put back."""
    for number in count():
        machine = standard(tmp_path / str(number))
        if words[0] == "restore":
            assert tool.main(["bind", NIC], machine) == OK
        ended = []
        if not reached(
            number,
            partial(machine.remove, NIC),
            lambda: ended.append(tool.main(words, machine)),  # noqa: B023
        ):
            break
        if ended[0] != OK:
            assert ended[0] == ENVIRONMENT
            assert words != ["status"]
            assert machine.driver(OTHER) == "virtio-pci"
            assert NIC in capsys.readouterr().err
        shutil.rmtree(tmp_path / str(number))
    assert number > 40
