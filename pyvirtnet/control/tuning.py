"""How a port's device works: steering, offloads, interrupts, statistics."""

from __future__ import annotations

import struct
from collections.abc import Iterable

from ..spec import Command, Feature, HashType, NetConfig
from . import statistics
from .control import Control
from .values import Coalescing, Rss, RssLimits, encode_hashing

# Receive offloads and their bits in the command's mask, which are those of the features (5.1.6.5.8)
GUEST_OFFLOADS = frozenset(
    {
        Feature.GUEST_CSUM,
        Feature.GUEST_TSO4,
        Feature.GUEST_TSO6,
        Feature.GUEST_ECN,
        Feature.GUEST_UFO,
        Feature.GUEST_USO4,
        Feature.GUEST_USO6,
    }
)


class Tuning:
    """What is asked of a device beside the frames it lets in."""

    _control: Control

    @property
    def rss(self) -> Rss | None:
        """Receive-side scaling: how flows are spread over queues. None until it is set."""
        value: Rss | None = self._control.get(Command.RSS_CONFIG)
        return value

    @rss.setter
    def rss(self, value: Rss) -> None:
        command = Command.RSS_CONFIG
        if not isinstance(value, Rss):
            raise TypeError(f"rss takes a pyvirtnet.Rss, not {value!r}")
        self._control.require(command)
        data = value.encode(self.rss_limits, self._control.pairs)
        self._control.set(command, command, data, value)

    @property
    def hash_types(self) -> HashType:
        """What of a frame goes into the hash that `burst.hash_value` is; HashType(0), none, until
        it is set. With RSS set, the hash is RSS's own. Needs features=["+hash_report"]."""
        value: HashType = self._control.get(Command.HASH_CONFIG, HashType(0))
        return value

    @hash_types.setter
    def hash_types(self, types: HashType) -> None:
        command = Command.HASH_CONFIG
        self._control.require(command)
        wanted = HashType(types)
        most = self._control.read_number(NetConfig.RSS_MAX_KEY, 1)
        data = encode_hashing(wanted, self._supported_hashes(), most)
        self._control.set(command, command, data, wanted)

    def _supported_hashes(self) -> HashType:
        return HashType(self._control.read_number(NetConfig.HASH_TYPES, 4) & sum(HashType))

    @property
    def rss_limits(self) -> RssLimits:
        """What the device can do: bytes of a key, entries of a table, hash types."""
        self._control.require(Command.RSS_CONFIG)
        read = self._control.read_number
        return RssLimits(
            key=read(NetConfig.RSS_MAX_KEY, 1),
            table=read(NetConfig.RSS_MAX_TABLE, 2),
            hash_types=self._supported_hashes(),
        )

    @property
    def offloads(self) -> frozenset[Feature]:
        """Receive offloads that are on: at first all that were negotiated.

        Takes features or their names, of those that were negotiated.
        """
        negotiated = frozenset(feature for feature in GUEST_OFFLOADS if self._control.has(feature))
        value: frozenset[Feature] = self._control.get(Command.GUEST_OFFLOADS_SET, negotiated)
        return value & negotiated

    @offloads.setter
    def offloads(self, features: Iterable[Feature | str]) -> None:
        names = {one.upper() if isinstance(one, str) else Feature(one).name for one in features}
        command = Command.GUEST_OFFLOADS_SET
        self._control.require(command)
        possible = {one.name: one for one in GUEST_OFFLOADS if self._control.has(one)}
        if odd := sorted(names - possible.keys()):
            text = ", ".join(odd).lower()
            raise ValueError(f"offloads takes receive offloads that were negotiated, not {text}")
        wanted = frozenset(possible[name] for name in names)
        mask = sum(1 << feature for feature in wanted)
        self._control.set(command, command, struct.pack("<Q", mask), wanted)

    # ---- interrupts ---------------------------------------------------------------------------

    def coalesce(
        self,
        *,
        rx_usecs: int | None = None,
        rx_frames: int | None = None,
        tx_usecs: int | None = None,
        tx_frames: int | None = None,
        pair: int | None = None,
    ) -> None:
        """Let the device interrupt after so many microseconds or frames, whichever comes first.

        Of receiving, sending or both; 0 is for every frame. Of all queues, or of one queue pair.
        """
        changes = [
            (side, Coalescing(usecs, frames))
            for side, usecs, frames in ((0, rx_usecs, rx_frames), (1, tx_usecs, tx_frames))
            if usecs is not None and frames is not None
        ]
        if (rx_usecs is None) != (rx_frames is None) or (tx_usecs is None) != (tx_frames is None):
            raise ValueError("microseconds and frames go together: rx_usecs=…, rx_frames=…")
        if not changes:
            raise ValueError(
                "coalesce takes rx_usecs and rx_frames, tx_usecs and tx_frames, or all"
            )
        for side, value in changes:
            self._coalesce(side, value, pair)

    def _coalesce(self, side: int, value: Coalescing, pair: int | None) -> None:
        control = self._control
        if pair is not None:
            queue = self._queue_of(pair, side)
            data = struct.pack("<HH", queue, 0) + value.encode()
            control.set(("coalescing", queue), Command.NOTF_COAL_VQ_SET, data, value)
            return
        command = (Command.NOTF_COAL_RX_SET, Command.NOTF_COAL_TX_SET)[side]
        control.set(command, command, value.encode(), value)
        for queue in control.keys("coalescing"):  # the last word on a queue counts
            if queue % 2 == side:
                control.forget(("coalescing", queue))

    def coalescing(self, pair: int = 0) -> tuple[Coalescing, Coalescing]:
        """How a queue pair's receive and transmit interrupts are coalesced, as the device says."""
        command, found = Command.NOTF_COAL_VQ_GET, []
        for side in (0, 1):
            data = struct.pack("<HH", self._queue_of(pair, side), 0)
            answer = self._control.ask(command, data, 8)
            if len(answer) != 8:
                raise self._control.broken(command, f"it answered {len(answer)} bytes, not 8")
            found.append(Coalescing.decode(answer))
        return found[0], found[1]

    def _queue_of(self, pair: int, side: int) -> int:
        if not 0 <= pair < self._control.pairs:
            raise ValueError(f"queue pairs are from 0 to {self._control.pairs - 1}, not {pair}")
        return 2 * pair + side

    # ---- what the device says -------------------------------------------------------------------

    def device_stats(self) -> dict[str, dict[str, int]]:
        """The device's own counters, by queue: "rx0", "tx0", … and "control"."""
        answer = self._control.ask(Command.STATS_QUERY, room=8)
        if len(answer) != 8:
            raise self._control.broken(Command.STATS_QUERY, f"it answered {len(answer)} bytes")
        supported = int.from_bytes(answer, "little")
        queues = {
            f"{side}{pair}": (2 * pair + at, kind)
            for pair in range(self._control.pairs)
            for at, (side, kind) in enumerate((("rx", statistics.RX), ("tx", statistics.TX)))
        }
        queues["control"] = (2 * self._control.max_pairs, statistics.CONTROL)
        return {
            name: self._stats_of(queue, statistics.types_of(kind, supported))
            for name, (queue, kind) in queues.items()
        }

    def _stats_of(self, queue: int, types: int) -> dict[str, int]:
        if not types:
            return {}
        command = Command.STATS_GET
        reply = self._control.ask(command, statistics.request(queue, types), statistics.ROOM)
        try:
            return statistics.parse(queue, types, reply)
        except ValueError as error:
            raise self._control.broken(command, f"its reply has {error} (5.1.6.5.10)") from error
