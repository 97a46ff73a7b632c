"""ARP, pings and IPv6 neighbour solicitations answered in place."""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

import numpy as np
from numpy.typing import NDArray

from ._burst import RxBurst, TxBurst

def answer_pings(
    burst: RxBurst | TxBurst,
    mac: bytes,
    addresses: str
    | IPv4Address
    | IPv6Address
    | Iterable[str | IPv4Address | IPv6Address]
    | None = None,
) -> NDArray[np.bool_]: ...
