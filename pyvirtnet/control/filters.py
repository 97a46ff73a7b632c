"""Which frames a port receives: modes, addresses, VLANs."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, MutableSet
from contextlib import suppress
from typing import Any

from ..errors import Error
from ..nic import Mac
from ..spec import Command, Feature, NetConfig
from .control import Control
from .values import is_group, mac_of, mac_table, vlan_of


class Vlans(MutableSet[int]):
    """The VLANs whose tagged frames a device lets in, once it filters (5.1.6.5.3)."""

    def __init__(self, control: Control) -> None:
        self._control = control

    def add(self, value: int) -> None:
        """Let a VLAN in. Raises FeatureMissing, CommandRefused and what commands raise."""
        vlan = vlan_of(value)
        self._control.set(("vlan", vlan), Command.VLAN_ADD, struct.pack("<H", vlan), True)

    def discard(self, value: int) -> None:
        """Keep a VLAN out, if it was let in."""
        self._control.require(Command.VLAN_DEL)
        for vlan in self:
            if vlan == value:
                self._control.ask(Command.VLAN_DEL, struct.pack("<H", vlan))
                self._control.forget(("vlan", vlan))

    @classmethod
    def _from_iterable(cls, it: Iterable[Any]) -> set[Any]:
        """What set operators return is a plain set."""
        return set(it)

    def __contains__(self, value: object) -> bool:
        return value in set(self)

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._control.keys("vlan")))

    def __len__(self) -> int:
        return len(list(self._control.keys("vlan")))

    def __repr__(self) -> str:
        return f"Vlans({list(self)})"


def _mode(command: Command, text: str) -> property:
    """A receive mode: None until it is set, which leaves it to the device."""

    def get(self: Filters) -> bool | None:
        value: bool | None = self._control.get(command)
        return value

    def put(self: Filters, on: bool) -> None:
        if on not in (True, False):
            raise TypeError(f"a receive mode is True or False, not {on!r}")
        self._control.set(command, command, bytes([bool(on)]), bool(on))

    return property(get, put, doc=f"{text} None until it is set: the device's own choice.")


class Filters:
    """Receive modes and addresses. Devices filter as well as they can, and may let more in."""

    _control: Control
    _mac: Mac

    promiscuous = _mode(Command.PROMISC, "Whether every frame is received.")
    all_multicast = _mode(Command.ALLMULTI, "Whether all multicast frames are received.")
    all_unicast = _mode(Command.ALLUNI, "Whether all unicast frames are received.")
    no_multicast = _mode(Command.NOMULTI, "Whether no multicast frame is received.")
    no_unicast = _mode(Command.NOUNI, "Whether no unicast frame is received.")
    no_broadcast = _mode(Command.NOBCAST, "Whether no broadcast frame is received.")

    @property
    def mac_filter(self) -> tuple[Mac, ...]:
        """Addresses, unicast and multicast, whose frames are received beside those for `mac`.

        Takes bytes or texts. Empty until it is set. A device may let more in than it is told to.
        """
        value: tuple[Mac, ...] = self._control.get(Command.MAC_TABLE_SET, ())
        return value

    @mac_filter.setter
    def mac_filter(self, macs: Iterable[bytes | str]) -> None:
        if isinstance(macs, (str, bytes, bytearray)):
            raise TypeError("mac_filter takes a list of MAC addresses")
        table = tuple(dict.fromkeys(mac_of(mac) for mac in macs))
        command = Command.MAC_TABLE_SET
        self._control.set(command, command, mac_table(table), table)

    @property
    def vlans(self) -> Vlans:
        """The VLANs whose tagged frames are received: add, discard, `in`, iteration.

        VLANs are filtered only on a port that was opened with features=["+ctrl_vlan"], and empty
        at first; other ports receive all of them. A promiscuous device lets all in.
        """
        return Vlans(self._control)

    @vlans.setter
    def vlans(self, wanted: Iterable[int]) -> None:
        """These and no others; `port.vlans |= {5}` assigns, too."""
        numbers, here = {vlan_of(one) for one in wanted}, self.vlans
        for vlan in numbers - here:
            here.add(vlan)
        for vlan in here - numbers:
            here.discard(vlan)

    @property
    def mac(self) -> Mac:
        """The NIC's MAC address, as the device says it now; a random local one if it has none.

        Takes bytes or text: the device then receives frames for the new address. What it said
        last, while the port is stopped or the device gone. Each look asks the device, which takes
        as long as hundreds of frames: keep it in a variable where it is needed for each.
        """
        if not self._control.has(Feature.MAC):
            own: Mac = self._control.get(Command.MAC_ADDR_SET, self._mac)
            return own
        with suppress(Error):  # stopped, or gone
            self._mac = Mac(self._control.read(NetConfig.MAC, 6))
        return self._mac

    @mac.setter
    def mac(self, value: bytes | str) -> None:
        mac = mac_of(value)
        if is_group(mac) or not any(mac):
            raise ValueError(f"a NIC's own address is unicast and not zero, unlike {mac}")
        command = Command.MAC_ADDR_SET
        self._control.set(command, command, mac, mac)
        self._mac = mac
