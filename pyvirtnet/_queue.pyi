"""One queue pair."""

from collections.abc import Iterable
from typing import Any

from ._burst import Burst, RxBurst
from ._pages import PagePool
from .transport.base import Doorbell

MIN_FRAME: int

def ring_bytes(size: int) -> int: ...
def ring_parts(size: int) -> tuple[int, int, int]: ...

class QueuePair:
    pool: PagePool
    def __init__(
        self,
        name: str,
        pool: PagePool,
        rx_offset: int,
        rx_size: int,
        tx_offset: int,
        tx_size: int,
        *,
        mergeable: bool,
        max_frame: int,
        start: int = 0,
    ) -> None: ...
    def start(self, rx_bell: Doorbell, tx_bell: Doorbell, irq_fd: int) -> None: ...
    def stop(self, why: str) -> bool: ...
    def abandon(self, why: str) -> None: ...
    def recv_burst(self, n: int, *, timeout: float | None = 0.0) -> RxBurst: ...
    def send_burst(self, frames: Burst | Iterable[Any]) -> int: ...
    def reclaim(self) -> int: ...
    def counters(self) -> dict[str, int]: ...
    @property
    def tx_pending(self) -> int: ...
    @property
    def posted(self) -> int: ...
