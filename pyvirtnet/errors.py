"""Every error a user can meet: what failed, why, and the command or setting that mends it."""

import errno
import os
import re
from pathlib import Path
from typing import Self


def _has_doors() -> bool:
    """Whether there are `tools/`: in a clone, and in what they run."""
    door = Path(__file__).parents[1] / "tools/bind"
    return "PYVIRTNET_PROJECT" in os.environ or door.exists()


_COMMANDS = "tools/" if _has_doors() else "pyvirtnet "


def named(text: str, commands: str) -> str:
    """A text about `tools/NAME`, with the commands called as they are called here."""
    return re.sub(r"(?<![\w/.-])tools/(?=[a-z])", lambda _: commands, text)


class Error(Exception):
    """Base of all pyvirtnet errors.

    `what` failed, `why`, and `mend`: what the reader can do about it. `str()` joins the three.
    """

    def __init__(self, what: str, why: str = "", mend: str = "") -> None:
        mend = named(mend, _COMMANDS)
        self.what, self.why, self.mend = what, why, mend
        text = f"{what}: {why}" if why else what
        super().__init__(f"{text}\n  mend: {mend}" if mend else text)

    def copy(self) -> Self:
        """The same error, to be raised again: each raised one has a traceback of its own."""
        return type(self)(self.what, self.why, self.mend)


class NoSuchDevice(Error):
    """No PCI function, socket or simulator of that name."""


class LibraryMissing(Error):
    """A library or package that this needs, and the driver does not, is not installed."""


class NotVirtioNet(Error):
    """The PCI function exists and is not a virtio-net device that this driver can drive."""


class NotBound(Error):
    """The function is not bound to vfio-pci."""


class NoIommu(Error):
    """There is no IOMMU that VFIO can use for this function."""


class GroupNotViable(Error):
    """Another function of the IOMMU group is still with a kernel driver."""


class DeviceBusy(Error):
    """Another process, or another port of this one, holds the device."""


class NoPermission(Error):
    """This user may not open the group node or map memory."""


class MemlockLimit(Error):
    """RLIMIT_MEMLOCK is too small for the DMA memory."""


class OutOfMemory(Error):
    """DMA memory could not be had or could not be mapped."""


class InterfaceInUse(Error):
    """The kernel uses the interface: an address, a route, a bridge or bond, or traffic."""


class BindFailed(Error):
    """A driver could not be changed."""


class FeatureMissing(Error):
    """The device does not offer a feature that was asked for."""


class CommandRefused(Error):
    """The device said no to a command that it should know."""


class DeviceBroken(Error):
    """The device broke the virtio contract; its queue is stopped."""


class NeedsReset(DeviceBroken):
    """The device met an error that it cannot get over, and asks to be reset."""


class DeviceGone(Error):
    """The device was unplugged or its back end went away."""


class DeviceTimeout(Error):
    """The device did not answer within the bound."""


class PortClosed(Error):
    """The port was closed, or belongs to the process this one was forked from."""


class QueueBusy(Error):
    """Two threads called the same direction of one queue at the same time."""


def mend_of(error: OSError, otherwise: str) -> str:
    """What mends a limit of this process's, where `error` is one."""
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "close files, or allow more of them: ulimit -n 4096"
    return "allow larger files: ulimit -f unlimited" if error.errno == errno.EFBIG else otherwise
