"""The device's side of virtio-net in Python: strict, deterministic, for people who write drivers.

It imports nothing of the driver, so that a mistake made on one side cannot hide on the other.

A driver reaches a device by calls that stand for its registers; memory goes the other way:

    device = HostileDevice(memory.translate, seed=7)   # or NetDevice, which keeps to the rules
    device.write_status(0)                             # … features, queues, DRIVER_OK
    device.kick(0)                                     # the driver's doorbell
    device.deliver(b"…")                               # a frame for the driver
    device.take(); device.complete()                   # what it sent
    device.step()                                      # HostileDevice: one thing, honest or not
    device.check()                                     # Violation if the driver broke a rule
    print(device.story())                              # what it did, and the call that repeats it
"""

from .cable import Cable, Loopback, Wire
from .hostile import HostileDevice
from .layout import FEATURES, feature_names, mask
from .memory import MemoryMap
from .misdeeds import MISDEEDS
from .net import NetDevice
from .rules import DEFAULT_FEATURES, SPOKEN
from .tap import TapDevice
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
    "TapDevice",
    "Violation",
    "Wire",
    "feature_names",
    "mask",
]
