"""Where a PCI function's virtio structures lie: the walk along its capability list (4.1.4)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import DeviceBroken, NotVirtioNet
from ..spec import COMMON_CFG_SIZE, PCI_CAP_VENDOR, PciCap
from ..vfio.device import BARS, Device

_STATUS = 0x06  # PCI status register
_STATUS_CAPABILITIES = 1 << 4
_POINTER = 0x34  # offset of the first capability
_HEADER_END = 0x40
_CAP_SIZE = 16  # struct virtio_pci_cap
_NOTIFY_CAP_SIZE = 20

# cfg_type: least length of the structure, alignment that the device promises (4.1.4.3 - 4.1.4.6)
_NEEDS = {PciCap.COMMON: (COMMON_CFG_SIZE, 4), PciCap.NOTIFY: (2, 2), PciCap.DEVICE: (1, 4)}


@dataclass(frozen=True)
class Window:
    """A virtio structure in a BAR. `multiplier` is the notification structure's (4.1.4.4)."""

    bar: int
    offset: int
    length: int
    multiplier: int = 0


class LegacyOnly(NotVirtioNet):
    """The function has no modern registers."""


NOWHERE = Window(0, 0, 0)


def find_windows(device: Device) -> dict[PciCap, Window]:
    """The first usable structure of each type (4.1.4.1). Common and notify are always there."""
    windows: dict[PciCap, Window] = {}
    faults: list[str] = []
    seen = 0
    for position in _vendor_capabilities(device):
        kind = device.read_pci(position + 3, 1)
        if kind not in _NEEDS or kind in windows:  # unknown types are skipped (4.1.4.1)
            continue
        seen += 1
        window = _window(device, position, PciCap(kind))
        if isinstance(window, str):
            faults.append(f"{PciCap(kind).name.lower()} structure: {window}")
        else:
            windows[PciCap(kind)] = window
    if not seen:
        raise LegacyOnly(
            f"cannot open {device.bdf}",
            "it has no modern virtio capabilities, only the legacy interface",
            "QEMU: remove disable-modern=on from the device",
        )
    if PciCap.COMMON not in windows or PciCap.NOTIFY not in windows:
        raise DeviceBroken(
            f"cannot drive {device.bdf}",
            "; ".join(faults) or "its common or notification structure is missing",
            "the device breaks the virtio rules",
        )
    return windows


def _vendor_capabilities(device: Device) -> list[int]:
    """Positions of the vendor-specific capabilities, in the list's order."""
    if not device.read_pci(_STATUS, 2) & _STATUS_CAPABILITIES:
        return []
    found: list[int] = []
    seen: set[int] = set()
    position = device.read_pci(_POINTER, 1) & 0xFC
    while position:
        if position < _HEADER_END or position in seen:
            raise DeviceBroken(
                f"cannot drive {device.bdf}",
                f"its PCI capability list leads back to {position:#x}",
                "the device breaks the PCI rules",
            )
        seen.add(position)
        if device.read_pci(position, 1) == PCI_CAP_VENDOR:
            found.append(position)
        position = device.read_pci(position + 1, 1) & 0xFC
    return found


def _window(device: Device, position: int, kind: PciCap) -> Window | str:
    """The structure that a capability describes, or what is wrong with it."""
    needed = _NOTIFY_CAP_SIZE if kind == PciCap.NOTIFY else _CAP_SIZE
    size = device.read_pci(position + 2, 1)
    if size < needed or position + needed > 256:
        return f"capability of {size} bytes, {needed} are needed"
    bar = device.read_pci(position + 4, 1)
    offset = device.read_pci(position + 8, 4)
    length = device.read_pci(position + 12, 4)
    least, alignment = _NEEDS[kind]
    if bar not in BARS:  # reserved values are skipped (4.1.4.1)
        return f"BAR {bar} does not exist"
    if not device.is_memory(bar):
        return f"BAR {bar} is not memory"
    room = device.bars[bar].size - offset
    if length < least or room < least or offset % alignment:
        return f"{length:#x} bytes at {offset:#x} of BAR {bar}'s {device.bars[bar].size:#x} bytes"
    multiplier = device.read_pci(position + 16, 4) if kind == PciCap.NOTIFY else 0
    # A length past the BAR's end is no fault: only what is needed has to be there (4.1.4.1).
    return Window(bar, offset, min(length, room), multiplier)
