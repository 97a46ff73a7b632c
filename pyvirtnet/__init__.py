"""pyvirtnet: a userspace virtio-net driver. Frames in bursts, from Python, as fast as C."""

from importlib import import_module
from typing import TYPE_CHECKING

from .errors import (
    BindFailed,
    CommandRefused,
    DeviceBroken,
    DeviceBusy,
    DeviceGone,
    DeviceTimeout,
    Error,
    FeatureMissing,
    GroupNotViable,
    InterfaceInUse,
    LibraryMissing,
    MemlockLimit,
    NeedsReset,
    NoIommu,
    NoPermission,
    NoSuchDevice,
    NotBound,
    NotVirtioNet,
    OutOfMemory,
    PortClosed,
    QueueBusy,
)
from .spec import Feature, Gso, HashType, HeaderFlag

if TYPE_CHECKING:
    from ._burst import Frame, RxBurst, TxBurst
    from ._checksums import checksums_ok, fix_checksums
    from ._defer import defer_checksums
    from ._echo import answer_pings
    from ._headers import swap_flows, swap_macs
    from .bpf import Filter
    from .control import Coalescing, Event, Rss, RssLimits, Vlans
    from .nic import Link, Mac, Stats
    from .port import Port, open
    from .publishing import publish

__all__ = [
    "BindFailed",
    "Coalescing",
    "CommandRefused",
    "DeviceBroken",
    "DeviceBusy",
    "DeviceGone",
    "DeviceTimeout",
    "Error",
    "Event",
    "Feature",
    "FeatureMissing",
    "Filter",
    "Frame",
    "GroupNotViable",
    "Gso",
    "HashType",
    "HeaderFlag",
    "InterfaceInUse",
    "LibraryMissing",
    "Link",
    "Mac",
    "MemlockLimit",
    "NeedsReset",
    "NoIommu",
    "NoPermission",
    "NoSuchDevice",
    "NotBound",
    "NotVirtioNet",
    "OutOfMemory",
    "Port",
    "PortClosed",
    "QueueBusy",
    "Rss",
    "RssLimits",
    "RxBurst",
    "Stats",
    "TxBurst",
    "Vlans",
    "answer_pings",
    "checksums_ok",
    "defer_checksums",
    "fix_checksums",
    "open",
    "publish",
    "swap_flows",
    "swap_macs",
]

__version__ = "0.1.0"

# numpy takes a second to import in a small machine; `tools/bind` and its like do without.
_LATER = {
    **dict.fromkeys(("Frame", "RxBurst", "TxBurst"), "._burst"),
    **dict.fromkeys(("checksums_ok", "fix_checksums"), "._checksums"),
    "Filter": ".bpf",
    "answer_pings": "._echo",
    "defer_checksums": "._defer",
    **dict.fromkeys(("swap_flows", "swap_macs"), "._headers"),
    **dict.fromkeys(("Coalescing", "Event", "Rss", "RssLimits", "Vlans"), ".control"),
    **dict.fromkeys(("Link", "Mac", "Stats"), ".nic"),
    **dict.fromkeys(("Port", "open"), ".port"),
    "publish": ".publishing",
}


def __getattr__(name: str) -> object:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(import_module(_LATER[name], __name__), name)
    except ModuleNotFoundError as error:
        if str(error.name).startswith(__name__):
            error.add_note(
                "This folder has the source, unbuilt: take .venv/bin/python, which tools/* make, "
                "or start Python in another folder."
            )
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
