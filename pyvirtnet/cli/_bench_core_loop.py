"""The driver against a device that only moves indices in memory; run under callgrind by itself."""

from __future__ import annotations

import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable

from .. import _queue, dma
from ..port import Port
from ..testing import DEFAULT_FEATURES, NetDevice, mask
from ..testing._instant import InstantPackedQueue, InstantQueue
from ..transport.base import Doorbell, QueueAddresses
from ..transport.sim import SimTransport

RING_SIZE = 256
FRAME_SIZE = 60
FRAMES = 4096  # of a round; it takes many rounds for the times, one for the instructions
MODES = ("receive", "transmit", "forward")
BURSTS = (1, 8, 32, 64, 256)
Step = Callable[[], object]
CASES = tuple((mode, burst) for mode in MODES for burst in BURSTS)


class _Transport(SimTransport):
    """Keeps, of each queue, a device's end that does nothing but answer."""

    def __init__(self, packed: bool, pairs: int, ring_size: int) -> None:
        self.ends: dict[int, InstantQueue | InstantPackedQueue] = {}
        self._kind = InstantPackedQueue if packed else InstantQueue
        features = DEFAULT_FEATURES & ~mask("event_idx") | (mask("ring_packed") if packed else 0)
        features |= mask("mq", "ctrl_vq") if pairs > 1 else 0
        sizes = (ring_size,) * 2 * pairs
        super().__init__(NetDevice(features=features, queue_sizes=sizes, fill=False))

    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        bell = super().setup_queue(index, addresses)  # first: the model wants to see a new ring
        if index == self.device.control_index:
            return bell
        parts = (addresses.descriptors, addresses.driver, addresses.device)
        (region,) = (r for r in dma.memory.regions() if r.iova <= parts[0] < r.iova + r.size)
        offset = region.address - region.iova
        table, driver, device = (part + offset for part in parts)
        self.ends[index] = self._kind(table, driver, device, addresses.size, offset)
        return bell


class Bed:
    """One port, and both ends of its rings."""

    def __init__(self, packed: bool = False, pairs: int = 1, ring_size: int = RING_SIZE) -> None:
        transport = _Transport(packed, pairs, ring_size)
        self.port = Port(transport, queue_pairs=pairs)
        self._ends = transport.ends

    def call(self, mode: str, burst: int, pair: int = 0) -> tuple[Step, Step, Step]:
        """What the device does before, what the driver does, what the device does after."""
        recv, send = self.port.queues[pair].recv_burst, self.port.queues[pair].send_burst
        deliver, finish = self._ends[2 * pair].deliver, self._ends[2 * pair + 1].finish
        tx = self.port.alloc_burst(burst, FRAME_SIZE)
        recv(1)  # the device has every buffer back

        def arrive() -> object:
            return deliver(burst, FRAME_SIZE)

        def leave() -> object:
            return finish(burst)

        if mode == "receive":
            return arrive, lambda: recv(burst), _nothing
        if mode == "transmit":
            return _nothing, lambda: send(tx), leave
        return arrive, lambda: send(recv(burst)), leave

    def counted(self, mode: str) -> int:
        stats = self.port.stats
        return stats.tx_frames if mode == "transmit" else stats.rx_frames


def nanoseconds(bed: Bed, mode: str, burst: int, frames: int) -> float:
    """For each frame; the median burst, without the clock and an empty call."""
    before, driver, after = bed.call(mode, burst)
    taken, empty = [], []
    for _ in range(max(RING_SIZE, frames // burst)):
        before()
        taken.append(_duration(driver))
        after()
        empty.append(_duration(_nothing))
    return max(0.0, statistics.median(taken) - statistics.median(empty)) / burst


def _nothing() -> None: ...


def _duration(step: Step) -> int:
    start = time.perf_counter_ns()
    step()
    return time.perf_counter_ns() - start


def main() -> int:
    """Every case once, for callgrind: os.getloadavg() parts them, a round of each to warm up."""
    bed = Bed("packed" in sys.argv)
    # What comes with time would be counted for whichever call it falls into.
    _queue.BUSY_LOOK_SECONDS = math.inf
    gc.disable()
    for mode, burst in CASES:
        for _part in ("warm", "counted"):
            steps = bed.call(mode, burst)
            before = bed.counted(mode)
            os.getloadavg()
            for _round in range(FRAMES // burst):
                for step in steps:
                    step()
            os.getloadavg()
            assert bed.counted(mode) - before == FRAMES // burst * burst, "a frame was not handled"
    bed.port.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
