"""NetDevice: a virtio network device in steps, for tests of the driver that drives it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from .chain import Chain
from .control import HASH_TYPES, MAX_KEY, MAX_TABLE, ControlUnit
from .device import examined
from .header import check_transmitted
from .layout import (
    ANNOUNCE,
    CTRL_VLAN,
    HASH_FIELDS,
    HASH_REPORT,
    LINK_UP,
    MRG_RXBUF,
    MTU,
    NET_CONFIG,
    mask,
)
from .memory import Translate
from .merge import MERGES, Merge, exactly, spread
from .queue import Virtqueue, joins
from .rules import DEFAULT_FEATURES, HEADER, NetRules, where_is


class NetDevice(NetRules):
    """Frames in and out, one step at a time; nothing happens but what the test asks for.

    Queue pair p is queues 2p (receive) and 2p + 1 (transmit). `merge` is "fill", "random" or a
    callable (see `merge.Merge`). `fill` has every posted receive buffer overwritten with a
    pattern, to see a driver write into it; switch it off for speed. `start_index` is where both
    ring indices start, as with a vhost-user back end; in a packed ring, how many descriptors have
    gone round before (see `packed.PackedQueue`). `used_batch` says which used buffers share an
    entry where IN_ORDER lets them: "none", "all" that can, or "random" ones, drawn from `seed`.
    """

    def __init__(
        self,
        translate: Translate | None = None,
        *,
        features: int = DEFAULT_FEATURES,
        required: int = mask("version_1", "access_platform"),
        queue_sizes: Sequence[int] = (256, 256),
        mac: bytes = bytes.fromhex("020000000001"),
        mtu: int | None = None,
        link: bool = True,
        start_index: int = 0,
        merge: str | Merge = "fill",
        seed: int = 0,
        used_batch: str = "random",
        fill: bool = True,
        strict_kicks: bool = True,
        interrupt: Callable[[int | None], None] | None = None,
    ) -> None:
        super().__init__(
            translate,
            features=features | (MTU if mtu is not None else 0),
            required=required,
            queue_sizes=queue_sizes,
            start_index=start_index,
            join=joins(used_batch, seed),
            strict_kicks=strict_kicks,
            interrupt=interrupt,
        )
        self.mac, self.mtu, self.link, self.fill = mac, mtu, link, fill
        self.speed: int | None = None
        self.full_duplex: bool | None = None
        self.announcing = False
        self.filtered = 0
        self.merge = MERGES[merge] if isinstance(merge, str) else merge
        self.pairs = len(queue_sizes) // 2
        self.control = ControlUnit(self.pairs)
        self._rng = random.Random(seed)
        self._write_own_config()

    def reset(self) -> None:
        super().reset()
        self.announcing = False
        moved = self.control.mac is not None
        self.control.reset()
        if moved:
            self._write_own_config()

    def set_link(self, up: bool) -> None:
        """Link up or down, with a configuration interrupt."""
        self.change(link=up)

    def change(self, **attributes: object) -> None:
        """Set link, speed, full_duplex, mtu, mac or announcing, with a configuration interrupt."""
        vars(self).update(attributes)
        self._write_own_config()
        self.raise_interrupt(None)

    def need_reset(self) -> None:
        """Give up as a device does: DEVICE_NEEDS_RESET and a configuration interrupt (2.1.2)."""
        self.ask_for_reset()
        self.raise_interrupt(None)

    # Towards the driver

    @examined
    def receive_room(self, pair: int = 0) -> int:
        """Receive buffers that the driver has posted and the device not used."""
        return self.look(self._live(2 * pair))

    @examined
    def receive_capacity(self, pair: int = 0) -> int | None:
        """Bytes, header and all, that any posted receive buffer holds; None if there is none."""
        queue = self._live(2 * pair)
        self.look(queue)
        return min((chain.capacity for chain in queue.ready), default=None)

    @examined
    def deliver(
        self,
        *frames: bytes,
        lengths: Sequence[int] | None = None,
        header: bytes = bytes(HEADER - 2),
        hashed: tuple[int, int] = (0, 0),
        batch: bool = True,
        pair: int = 0,
    ) -> bool:
        """Give frames to the driver; False, and nothing done, if there is no room for them all.

        `lengths` says how the bytes of header and frame spread over buffers, else `merge` does.
        `header` is the virtio header but for num_buffers, `hashed` hash_value and hash_report.
        `batch` publishes all at once, else the used index moves frame by frame. ValueError: a frame
        that never fits one buffer.
        """
        queue = self._live(2 * pair)
        self.look(queue)
        wanted = [frame for frame in frames if self._lets_in(frame)]
        self.filtered += len(frames) - len(wanted)
        plans = list(self._plans(queue, wanted, exactly(lengths) if lengths else self.merge))
        if len(plans) < len(wanted):
            return False
        pairs = zip(wanted, plans, strict=True)
        steps = [self._write(queue, *step, header, hashed) for step in pairs]
        if batch:
            steps = [[part for step in steps for part in step]]
        for step in steps:
            self._give_back(queue, step)
        return True

    @examined
    def deliver_some(self, frames: Iterable[bytes], *, pair: int = 0) -> int:
        """Give the driver as many of the frames as there is room for, in order; how many."""
        queue = self._live(2 * pair)
        done: list[tuple[Chain, int]] = []
        count = 0
        if self.look(queue):
            frames = list(islice(frames, len(queue.ready)))
            wanted = [at for at, frame in enumerate(frames) if self._lets_in(frame)]
            plans = list(self._plans(queue, [frames[at] for at in wanted], self.merge))
            for at, plan in zip(wanted, plans, strict=False):
                done += self._write(queue, frames[at], plan, bytes(HEADER - 2))
            self._give_back(queue, done)
            count = len(frames) if len(plans) == len(wanted) else wanted[len(plans)]
            self.filtered += count - len(plans)
        return count

    def _plans(
        self, queue: Virtqueue, frames: Sequence[bytes], merge: Merge
    ) -> Iterator[list[int]]:
        used = 0
        for frame in frames:
            total = self.header_bytes + len(frame)
            if used == len(queue.ready):
                return
            first = queue.ready[used].capacity
            plan: list[int] | None = [total]
            if total > first and not self.accepted & MRG_RXBUF:
                raise ValueError(f"{total} bytes do not fit a buffer of {first} unmerged")
            if total > first or (self.accepted & MRG_RXBUF and merge is not MERGES["fill"]):
                room = [chain.capacity for chain in islice(queue.ready, used, None)]
                plan = spread(merge, total, room, self._rng)
            if plan is None:
                return
            yield plan
            used += len(plan)

    def _write(
        self,
        queue: Virtqueue,
        frame: bytes,
        plan: list[int],
        header: bytes,
        hashed: tuple[int, int] = (0, 0),
    ) -> list[tuple[Chain, int]]:
        behind = HASH_FIELDS.pack(*hashed, 0) if self.accepted & HASH_REPORT else b""
        data = memoryview(b"".join((header, len(plan).to_bytes(2, "little"), behind, frame)))
        done, start = [], 0
        for length in plan:
            chain = queue.ready.popleft()
            self._check_untouched(queue, chain)
            chain.scatter(data[start : start + length])
            start += length
            done.append((chain, length))
        return done

    # Commands

    def look(self, queue: Virtqueue) -> int:
        super().look(queue)
        if queue.index == self.control_index:
            self._serve(queue)
        return len(queue.ready)

    def _serve(self, queue: Virtqueue) -> None:
        while queue.ready and not self.control.mute:
            chain = queue.ready.popleft()
            before = self.control.mac, self.control.announced
            answer = self.control.execute(
                chain.read(), chain.writable, self.accepted, set(self.queues)
            )
            if before != (self.control.mac, self.control.announced):
                self.announcing &= before[1] == self.control.announced
                self._write_own_config()
            chain.answer(answer)
            self._give_back(queue, [(chain, len(answer))])

    def _lets_in(self, frame: bytes) -> bool:
        mac, by_vlan = self.control.mac or self.mac, bool(self.accepted & CTRL_VLAN)
        return self.control.filter.passes(frame, mac, by_vlan)

    # From the driver

    @examined
    def transmit_pending(self, pair: int = 0) -> int:
        """Frames that the driver has exposed and the device not taken."""
        return self.look(self._live(2 * pair + 1))

    @examined
    def take(self, n: int | None = None, *, pair: int = 0) -> list[bytes]:
        """Read up to `n` frames out of transmit buffers, and keep the buffers."""
        return [data[self.header_bytes :] for data in self._take(n, pair)]

    @examined
    def take_with_headers(self, n: int | None = None, *, pair: int = 0) -> list[bytes]:
        """As `take`, each frame behind its virtio header."""
        return list(self._take(n, pair))

    @examined
    def complete(
        self, n: int | None = None, order: str | Sequence[int] = "fifo", *, pair: int = 0
    ) -> int:
        """Give up to `n` taken transmit buffers back, and say how many.

        `order` is "fifo", "lifo", "shuffled", or places in what was taken and is still kept.
        ValueError: with IN_ORDER only "fifo" is possible.
        """
        queue = self._live(2 * pair + 1)
        places = list(range(len(queue.taken)))
        if order == "lifo":
            places.reverse()
        elif order == "shuffled":
            self._rng.shuffle(places)
        elif not isinstance(order, str):
            places = list(order)
        elif order != "fifo":
            raise ValueError(f"no such order: {order}")
        places = places[:n]
        done = [(queue.taken[place], 0) for place in places]
        gone = set(places)
        self._give_back(queue, done)
        queue.taken = [chain for at, chain in enumerate(queue.taken) if at not in gone]
        return len(done)

    def _take(self, n: int | None, pair: int) -> Iterator[bytes]:
        queue = self._live(2 * pair + 1)
        ready = self.look(queue)
        for _ in range(ready if n is None else min(n, ready)):
            chain = queue.ready.popleft()
            queue.taken.append(chain)
            data = chain.gather()
            check_transmitted(data, self.accepted, self._mtu_limit, where_is(queue, chain))
            yield data

    # Helpers

    def _write_own_config(self) -> None:
        self.config = NET_CONFIG.pack(
            self.control.mac or self.mac,
            (LINK_UP if self.link else 0) | (ANNOUNCE if self.announcing else 0),
            self.pairs,
            self.mtu or 0,
            0xFFFFFFFF if self.speed is None else self.speed,
            0xFF if self.full_duplex is None else int(self.full_duplex),
            MAX_KEY,
            MAX_TABLE,
            HASH_TYPES,
            0,
        )
        self.config_generation = (self.config_generation + 1) & 0xFF
