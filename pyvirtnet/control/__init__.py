"""What a port can ask of its device while it runs: filters, addresses, steering, statistics.

All of it raises FeatureMissing where the device does not have it, CommandRefused if it says no,
DeviceTimeout if it says nothing within a second, DeviceBroken if what it says cannot be. What was
set is set again after `port.reset()`.
"""

from .control import Control
from .events import Event, Events
from .filters import Filters, Vlans
from .tuning import Tuning
from .values import Coalescing, Rss, RssLimits

__all__ = [
    "Coalescing",
    "Control",
    "Event",
    "Events",
    "Filters",
    "Rss",
    "RssLimits",
    "Tuning",
    "Vlans",
]
