"""The device's side of virtio-net in Python: strict, deterministic, for people who write drivers.

It imports nothing of the driver, so that a mistake made on one side cannot hide on the other.
"""

from .cable import Cable, Loopback, Wire
from .hostile import HostileDevice
from .layout import FEATURES, feature_names, mask
from .memory import MemoryMap
from .misdeeds import MISDEEDS
from .net import NetDevice
from .rules import DEFAULT_FEATURES, SPOKEN
from .violation import Violation

__all__ = [
    "DEFAULT_FEATURES",
    "FEATURES",
    "MISDEEDS",
    "SPOKEN",
    "Cable",
    "HostileDevice",
    "Loopback",
    "MemoryMap",
    "NetDevice",
    "Violation",
    "Wire",
    "feature_names",
    "mask",
]
