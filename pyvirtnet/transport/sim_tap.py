"""A device that lives in this process, with the kernel at its cable's end: `sim:tap/NAME`."""

from __future__ import annotations

import os
from typing import Any

from ..errors import DeviceBusy, Error, NoPermission, NoSuchDevice
from ..testing import TapDevice
from .sim import SimTransport, parse_options

_LONGEST = 15  # bytes of an interface's name


class SimTapTransport(SimTransport):
    """As any simulated device; the interface goes when the port is closed."""

    device: TapDevice

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                self.device.unplug()

    def abandon(self) -> None:
        super().abandon()
        self.device.abandon()


def open_sim_tap(address: str) -> SimTransport:
    """`sim:tap/NAME`: an interface, made if it is not there; options as with `open_sim`."""
    path, _, query = address.partition("?")
    name = path.removeprefix("sim:tap/")
    if not 0 < len(os.fsencode(name)) <= _LONGEST or "/" in name:
        why = f"an interface's name has 1 to {_LONGEST} bytes"
        raise NoSuchDevice(f"no simulator {address!r}", why, "sim:tap/tap0")
    options: dict[str, Any] = parse_options(address, query)
    options.pop("backlog", None)
    try:
        return SimTapTransport(TapDevice(name, **options), address)
    except OSError as error:
        raise _refusal(name, error) from None


def _refusal(name: str, error: OSError) -> Error:
    what, why = f"cannot take the tap interface {name}", f"{error.strerror}"
    if isinstance(error, PermissionError):
        return NoPermission(what, why, f'sudo ip tuntap add {name} mode tap user "$USER"')
    if isinstance(error, FileNotFoundError):
        return NoSuchDevice(what, "there is no /dev/net/tun", "sudo modprobe tun")
    return DeviceBusy(what, why, f"see what it is: ip -d link show {name}")
