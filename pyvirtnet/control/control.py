"""Commands sent and settings kept: what was set is set again after a reset."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from threading import RLock
from typing import Any, NamedTuple

from ..dma import Region
from ..errors import CommandRefused, DeviceBroken, Error, FeatureMissing, PortClosed
from ..negotiate import REQUIRES, Features
from ..spec import (
    ACK_ERR,
    ACK_OK,
    MAX_PAIRS,
    MAX_SPLIT_QUEUE,
    Command,
    Feature,
    NetConfig,
)
from ..transport.base import Transport
from .packed import PackedControlQueue
from .queue import ANSWER_SECONDS, MAX_ENTRIES, ControlQueue, control_bytes
from .split import SplitControlQueue

_RX, _EXTRA = (Feature.CTRL_RX,), (Feature.CTRL_RX_EXTRA,)
_COAL, _VQ_COAL = (Feature.NOTF_COAL,), (Feature.VQ_NOTF_COAL,)
# What each command is for, and the features without which it is not sent (5.1.6.5)
COMMANDS: dict[Command, tuple[str, tuple[Feature, ...]]] = {
    Command.PROMISC: ("set promiscuous mode", _RX),
    Command.ALLMULTI: ("set all-multicast mode", _RX),
    Command.ALLUNI: ("set all-unicast mode", _EXTRA),
    Command.NOMULTI: ("set no-multicast mode", _EXTRA),
    Command.NOUNI: ("set no-unicast mode", _EXTRA),
    Command.NOBCAST: ("set no-broadcast mode", _EXTRA),
    Command.MAC_TABLE_SET: ("set its MAC filter", _RX),
    Command.MAC_ADDR_SET: ("set its MAC address", (Feature.CTRL_MAC_ADDR, Feature.CTRL_RX)),
    Command.VLAN_ADD: ("let a VLAN in", (Feature.CTRL_VLAN,)),
    Command.VLAN_DEL: ("keep a VLAN out", (Feature.CTRL_VLAN,)),
    Command.ANNOUNCE_ACK: ("acknowledge an announcement", (Feature.GUEST_ANNOUNCE,)),
    Command.VQ_PAIRS_SET: ("set its number of queue pairs", (Feature.MQ,)),
    Command.RSS_CONFIG: ("set receive-side scaling", (Feature.RSS,)),
    Command.HASH_CONFIG: ("set what it hashes", (Feature.HASH_REPORT,)),
    Command.GUEST_OFFLOADS_SET: ("set receive offloads", (Feature.CTRL_GUEST_OFFLOADS,)),
    Command.NOTF_COAL_TX_SET: ("coalesce transmit interrupts", _COAL),
    Command.NOTF_COAL_RX_SET: ("coalesce receive interrupts", _COAL),
    Command.NOTF_COAL_VQ_SET: ("coalesce a queue's interrupts", _VQ_COAL),
    Command.NOTF_COAL_VQ_GET: ("say how a queue's interrupts are coalesced", _VQ_COAL),
    Command.STATS_QUERY: ("say which statistics it has", (Feature.DEVICE_STATS,)),
    Command.STATS_GET: ("say its statistics", (Feature.DEVICE_STATS,)),
}
_ONCE_MORE = "port.reset() once more goes on without it"
_NOT_IN_QEMU = {Feature.NOTF_COAL, Feature.VQ_NOTF_COAL, Feature.DEVICE_STATS}


class Setting(NamedTuple):
    """What was sent last under a key, and what it means in Python."""

    command: Command
    data: bytes
    value: Any


class Control:
    """The control queue of one port, over all its resets.

    lock       held by whoever resets the device, and for each command
    pairs      queue pairs that are set up
    max_pairs  queue pairs that the device has, where that was negotiated; the control queue is
               behind them (5.1.2)
    """

    def __init__(self, name: str, transport: Transport, lock: RLock) -> None:
        self.name, self.seconds = name, ANSWER_SECONDS
        self.pairs = self.max_pairs = 1
        self._transport, self._lock = transport, lock
        self._settings: dict[Hashable, Setting] = {}
        self._queue: ControlQueue | None = None
        self._size = 0  # its entries; 0 if there is none
        self._down: Error | None = PortClosed(f"{name} is closed", "it was never opened")
        self._features = Features(frozenset(), frozenset(), frozenset(), 0)

    # The life of the device

    def prepare(self, features: Features, pairs: int = 1) -> int:
        """Features are agreed on: bytes of DMA memory for the control queue, 0 if there is none."""
        self._features, self.pairs, self._queue, self._size = features, pairs, None, 0
        if Feature.CTRL_VQ not in features.negotiated:
            return 0
        self.max_pairs = self.read_max_pairs(features)
        self._size = self._queue_size(2 * self.max_pairs)
        return control_bytes(self._size, self._transport.ring_alignment)

    def set_up(self, region: Region) -> None:
        """Queues are being set up: the control queue too, at the end of `region`."""
        if not self._size:
            return
        transport = self._transport
        room = control_bytes(self._size, transport.ring_alignment)
        queue = (PackedControlQueue if self.has(Feature.RING_PACKED) else SplitControlQueue)(
            self.name,
            region.buffer()[-room:],
            region.iova + region.size - room,
            self._size,
            start=transport.start_index,
            event_idx=self.has(Feature.EVENT_IDX),
            check=transport.check,
            alignment=transport.ring_alignment,
        )
        queue.doorbell = transport.setup_queue(2 * self.max_pairs, queue.addresses)
        self._queue = queue

    def start(self) -> None:
        """The device is live: what was set before is set again, queue pairs are switched on.

        What it refuses now is forgotten; the error says so.
        """
        before, self._down = self._down, None
        try:
            settings = list(self._settings)
            if self.pairs > 1 and self._queue and Command.VQ_PAIRS_SET not in settings:
                self.set_pairs(self.pairs)
            for key in settings:
                self._set_again(key)
        except BaseException:
            self._down = before
            raise

    def restore(self, queues: Iterable[int]) -> None:
        """Queues were reset alone, and lost what was set for each (5.1.6.5.9)."""
        for queue in queues:
            if ("coalescing", queue) in self._settings:
                self._set_again(("coalescing", queue), "the queue works, and goes on without it")

    def _set_again(self, key: Hashable, mend: str = _ONCE_MORE) -> None:
        setting = self._settings[key]
        try:
            self.ask(setting.command, setting.data)
        except (CommandRefused, FeatureMissing) as error:
            del self._settings[key]
            raise type(error)(f"{error.what} as before", error.why, mend) from error

    def stop(self, why: Error) -> None:
        """The device is being reset, or is gone: no more commands."""
        queue, self._down, self._queue = self._queue, why, None
        if queue is not None:
            queue.stop(why)

    def abandon(self, why: Error) -> None:
        """In a forked child: whoever held the lock is not here."""
        self._lock = RLock()
        self.stop(why)

    # Commands

    def ask(self, command: Command, data: bytes = b"", room: int = 0) -> bytes:
        """Send a command; its result, of `room` bytes at most.

        Raises FeatureMissing, CommandRefused, DeviceTimeout, DeviceBroken, PortClosed.
        """
        deed = COMMANDS[command][0]
        with self._lock:
            self.require(command)
            if self._written(command):
                self._transport.write_config(NetConfig.MAC, data)
                return b""
            assert self._queue is not None  # of CTRL_VQ, which every command needs
            self._queue.seconds = self.seconds
            answer = self._queue.submit(deed, bytes(command.value) + data, 1 + room)
        if answer[0] == ACK_OK:
            return answer[1:]
        if answer[0] != ACK_ERR:
            raise self.broken(command, f"it answered {answer[0]:#x}, neither OK nor ERR (5.1.6.5)")
        raise CommandRefused(
            f"{self.name} did not {deed}",
            f"the device answered VIRTIO_NET_ERR to {command.name} with {data.hex() or 'no data'}",
            "ask for something else; what was set before still stands",
        )

    def set(self, key: Hashable, command: Command, data: bytes, value: Any) -> None:
        """Send a command and keep it as the setting `key`, the last one made."""
        with self._lock:
            asked: object = self
            while asked is not self._queue:  # else a signal handler has reset the device since
                asked = self._queue
                self.ask(command, data)
            self._settings.pop(key, None)
            self._settings[key] = Setting(command, data, value)

    def get(self, key: Hashable, default: Any = None) -> Any:
        setting = self._settings.get(key)
        return default if setting is None else setting.value

    def forget(self, key: Hashable) -> None:
        self._settings.pop(key, None)

    def keys(self, kind: str) -> Iterator[Any]:
        """Settings with a key of (kind, number): their numbers."""
        return (key[1] for key in list(self._settings) if isinstance(key, tuple) and key[0] == kind)

    def require(self, command: Command) -> None:
        """Raise what stopped the port, or FeatureMissing for what the command lacks."""
        if self._down is not None:
            raise self._down.copy()
        deed, needs = COMMANDS[command]
        if self._written(command):
            return
        for feature in needs:
            if feature not in self._features.negotiated:
                raise self._missing(f"{self.name} cannot {deed}", feature)

    def _written(self, command: Command) -> bool:
        """Legacy devices without CTRL_MAC_ADDR have their address written (5.1.4)."""
        writes = command is Command.MAC_ADDR_SET and self._transport.writable_mac
        return writes and self.has(Feature.MAC) and not self.has(Feature.CTRL_MAC_ADDR)

    @property
    def live(self) -> bool:
        return self._down is None

    def has(self, feature: Feature) -> bool:
        return feature in self._features.negotiated

    def broken(self, command: Command, why: str) -> DeviceBroken:
        return DeviceBroken(
            f"{self.name} did not {COMMANDS[command][0]}",
            why,
            "report it to who makes the device",
        )

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the configuration (5.1.4)."""
        with self._lock:
            if self._down is not None:
                raise self._down.copy()
            return self._transport.read_config(offset, length)

    def read_number(self, offset: int, length: int) -> int:
        return int.from_bytes(self.read(offset, length), "little")

    def read_max_pairs(self, features: Features) -> int:
        """Queue pairs that the device has, and a driver that agreed on these features can use."""
        if not features.negotiated & {Feature.MQ, Feature.RSS}:
            return 1
        raw = self._transport.read_config(NetConfig.MAX_QUEUE_PAIRS, 2)
        pairs = int.from_bytes(raw, "little")
        if not 1 <= pairs <= MAX_PAIRS:
            raise DeviceBroken(
                f"{self.name} cannot be set up",
                f"it claims to have {pairs} queue pairs (5.1.4.1)",
                'do without: open(..., features=["-mq", "-rss"])',
            )
        return pairs

    def set_pairs(self, pairs: int) -> None:
        """Use so many of the queue pairs that are set up (5.1.6.5.6)."""
        self.require(Command.VQ_PAIRS_SET)
        most = min(self.pairs, self.max_pairs)
        if not 1 <= pairs <= most:
            raise ValueError(f"queue pairs in use are from 1 to {most}, not {pairs}")
        command = Command.VQ_PAIRS_SET
        self.set(command, command, pairs.to_bytes(2, "little"), pairs)

    def _queue_size(self, index: int) -> int:
        """Few entries, but for a legacy device, whose queues have the size they have (2.7.2)."""
        largest = self._transport.queue_max_size(index)
        size = largest if self._transport.ring_alignment else min(largest, MAX_ENTRIES)
        odd = size & (size - 1) and not self.has(Feature.RING_PACKED)
        if size < 2 or odd or largest > MAX_SPLIT_QUEUE:
            raise DeviceBroken(
                f"{self.name} cannot be set up",
                f"its control queue, number {index}, has {largest} entries (2.7, 5.1.2)",
                'do without: open(..., features=["-ctrl_vq"])',
            )
        return size

    def _missing(self, what: str, feature: Feature) -> FeatureMissing:
        features, name = self._features, feature.name.lower()
        for other in sorted({Feature.CTRL_VQ, *REQUIRES.get(feature, ())}):
            if feature in features.wanted & features.offered and other not in features.negotiated:
                return self._missing(what, other)
        if reason := self._transport.no_control_queue:
            return FeatureMissing(what, reason, "set it at the back end, or on its switch")
        if feature not in features.offered:
            mend = f"give it {name}=on: QEMU's virtio-net-pci and sim: addresses take that"
            if feature in _NOT_IN_QEMU:
                mend = "QEMU's devices have none; some network cards with vDPA do"
            why = f"the device does not offer VIRTIO_NET_F_{feature.name}"
            return FeatureMissing(what, why, mend)
        why = f"{name} is offered, and was not asked for"
        return FeatureMissing(what, why, f'open(..., features=["+{name}"])')
