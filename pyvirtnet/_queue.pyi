"""One queue pair."""

from collections.abc import Callable, Iterable
from typing import Any

from ._burst import Burst, RxBurst
from ._pages import PagePool
from ._waiting import Waiter
from .errors import Error
from .nic import Stats
from .transport.base import Doorbell

LOOK_SECONDS: float
BUSY_LOOK_SECONDS: float
SLICE_SECONDS: float
POLL_SECONDS: float
LATE_AFTER: int
LATE_FROM: int
RELEASE_FROM: int

class QueuePair(Waiter):
    pool: PagePool | None
    late_after: int
    late_from: int
    @property
    def index(self) -> int: ...
    def __init__(
        self,
        name: str,
        look: Callable[[], object],
        index: int = 0,
        restart: Callable[[QueuePair, int | None], object] | None = None,
        *,
        shared: bool = False,
    ) -> None: ...
    def reset(self, *, size: int | None = None) -> None: ...
    def _set_up(
        self,
        pool: PagePool,
        rx_offset: int,
        rx_size: int,
        tx_offset: int,
        tx_size: int,
        *,
        mergeable: bool,
        max_frame: int,
        start: int = 0,
        packed: bool = False,
        in_order: bool = False,
        event_idx: bool = False,
        indirect: bool = False,
        big: bool = False,
        header_bytes: int = 12,
        alignment: int = 0,
        features: int = 0,
    ) -> None: ...
    def _start(
        self, rx_bell: Doorbell, tx_bell: Doorbell, irq_fd: int, others: Iterable[int] = ()
    ) -> None: ...
    def _stop(self, why: Error) -> bool: ...
    def _hold(self, why: Error) -> bool: ...
    def _pause(self, why: Error) -> bool: ...
    def _before_fork(self) -> None: ...
    def _abandon(self, why: Error) -> None: ...
    def _interrupt_on_transmit(self, wanted: bool) -> None: ...
    def recv_burst(self, n: int, *, timeout: float | None = 0.0) -> RxBurst: ...
    def send_burst(self, frames: Burst | Iterable[Any]) -> int: ...
    def reclaim(self) -> int: ...
    @property
    def stats(self) -> Stats: ...
    def counters(self) -> dict[str, int]: ...
    @property
    def tx_pending(self) -> int: ...
    @property
    def posted(self) -> int: ...
