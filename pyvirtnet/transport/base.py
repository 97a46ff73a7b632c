"""What every way to a device offers: registers, queues, doorbells, interrupts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..errors import DeviceGone, Error, NeedsReset
from ..spec import Status


@dataclass(frozen=True)
class Doorbell:
    """How the hot path tells the device that a queue has new buffers.

    mmio16   store `value` as 16 bits at address `target` (4.1.5.2)
    eventfd  add one to the eventfd `target`
    call     `target(value)`: for devices that live in this process

    with_data: VIRTIO_F_NOTIFICATION_DATA was negotiated; the upper 16 bits of what is stored (32
    bits then) or passed say where the driver is in the ring (2.9).
    """

    kind: Literal["mmio16", "eventfd", "call"]
    target: int | Callable[[int], None]
    value: int
    with_data: bool = False


@dataclass(frozen=True)
class QueueAddresses:
    """Where a virtqueue's parts lie, as the device sees them (IOVAs), and its size (4.1.4.3)."""

    size: int
    descriptors: int
    driver: int
    device: int


class Transport(ABC):
    """One device's registers, before and after it lives. Cold path only.

    Every wait is bounded and ends in `DeviceTimeout`; a device that has gone is `DeviceGone`.
    """

    name: str
    default_ring_size: int | None = None  # where the device leaves the size to us
    reconnects: bool = False  # the device may go away and come back: `revive`
    reconnect: float = 0.0  # seconds that it may be away, as its address says
    no_control_queue: str = ""  # why there can be none
    ring_alignment: int = 0  # of the device area, for legacy devices (2.7.2)
    plain_header_bytes: int = 12  # of the virtio header without MRG_RXBUF (5.1.6)
    writable_mac: bool = False  # as legacy devices have it: `write_config` (5.1.4)
    maps_files: bool = False  # it maps our memory's files itself, and keeps what we let go of
    max_pairs: int | None = None  # queue pairs, where no control queue switches them on
    start_index: int = 0  # where ring indices start; a back end that outlived us has its own

    def check(self) -> None:  # noqa: B027
        """Raise DeviceGone if the device is known to have gone, NeedsReset if it asks for a
        reset. Cheap: idle queues ask for it."""

    def alarm_fds(self) -> Sequence[int]:
        """File descriptors that are readable when `check` may have something new to say."""
        return ()

    def claim_pairs(self, pairs: int) -> None:  # noqa: B027
        """So many queue pairs are going to be set up, not more than `max_pairs`."""

    def let_go(self, why: DeviceGone) -> None:  # noqa: B027
        """It has gone, or is wanted back: keep nothing that others wait for, and say why. May be
        called again; `revive` takes the device anew."""

    def may_write(self, error: Error) -> bool:
        """After `error`, which a call raised: can the device still reach what it was given?"""
        return not isinstance(error, DeviceGone)

    def revive(self, seconds: float | None = None) -> None:  # noqa: B027
        """Get in touch again with a device that had gone, before it is reset.

        Waits that long for it, or as long as opening it does. Raises what opening it raises.
        """

    @abstractmethod
    def reset(self) -> None:
        """Write 0 to the status and wait until it reads 0 (3.1.1 step 1, 4.1.4.3.2)."""

    @abstractmethod
    def status(self) -> int:
        """The device status (2.1)."""

    @abstractmethod
    def add_status(self, bits: int) -> None:
        """Set bits of the status; bits already set stay (2.1.1)."""

    @abstractmethod
    def offered_features(self) -> int:
        """The 64 feature bits that the device offers."""

    @abstractmethod
    def accept_features(self, features: int) -> None:
        """Write the negotiated feature bits (3.1.1 step 4)."""

    @abstractmethod
    def read_config(self, offset: int, length: int) -> bytes:
        """Device configuration bytes, consistent across config generations (2.5.1)."""

    def write_config(self, offset: int, data: bytes) -> None:
        """Write device configuration bytes: the MAC address, where `writable_mac`."""
        raise NotImplementedError(f"the configuration of {self.name} is never written")

    @abstractmethod
    def queue_max_size(self, index: int) -> int:
        """Largest size of queue `index`; 0 if there is none (4.1.4.3)."""

    @abstractmethod
    def setup_queue(self, index: int, addresses: QueueAddresses) -> Doorbell:
        """Program and enable queue `index`; its interrupts go to `interrupt_fd(index)`."""

    def reset_queue(self, index: int) -> None:
        """Stop queue `index` alone, and wait until the device has let go of it (2.6.1).

        Only with RING_RESET; `setup_queue` then sets it up anew. Raises DeviceTimeout.
        """
        raise NotImplementedError(f"{self.name} offers no RING_RESET")

    @abstractmethod
    def interrupt_fd(self, index: int | None) -> int:
        """The eventfd of queue `index`, or of configuration changes for None. -1 if it has none."""

    @abstractmethod
    def close(self) -> None:
        """Reset the device, then give up memory and file descriptors. Never raises for a
        device that has gone. May be called twice."""

    @abstractmethod
    def abandon(self) -> None:
        """In a forked child: close inherited files, leave device and memory to the parent."""


def check_status(name: str, status: int) -> None:
    """A device whose status has DEVICE_NEEDS_RESET does nothing it was asked for (2.1.2)."""
    if status & Status.NEEDS_RESET:
        raise NeedsReset(
            f"{name} has stopped",
            "it met an error that it cannot get over, and asks to be reset (DEVICE_NEEDS_RESET)",
            "port.reset() starts it anew; report it to who makes the device",
        )
