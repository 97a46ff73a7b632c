"""What a hostile device does in its registers: status, features, sizes, configuration."""

from __future__ import annotations

from typing import Any

from .layout import DRIVER_OK, FEATURES_OK, NET_CONFIG, mask
from .misdeeds import RingMisdeeds, forgiving, misdeed
from .rules import SPOKEN

_UNDEFINED = mask("ring_reset") << 2 | mask("admin_vq") << 4  # bits 42 and 45: reserved


class RegisterMisdeeds(RingMisdeeds):
    """Lies that last until they were told, or until `heal`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._generation, self._unsettled = 0, False
        super().__init__(*args, **options)
        self._honest = self.offered, self._queue_sizes
        self._to_offer = self.offered  # when the driver asks the next time
        self._deaf = 0  # resets that will be ignored
        self._refusing = False
        self._shifty = False
        self._taken_back = 0  # status bits that vanish once they were read
        self._garbled: int | None = None  # the next status that is read

    def heal(self) -> None:
        """Honest registers from now on. Rings and memory are as they are until a reset."""
        self._to_offer, self._queue_sizes = self._honest
        self._unsettled = self._refusing = self._shifty = False
        self._deaf = self._taken_back = 0
        self._garbled = None
        self._write_own_config()

    # Status

    @misdeed(2)
    def wants_a_reset(self) -> str:
        """DEVICE_NEEDS_RESET, with an interrupt or without."""
        self.ask_for_reset()
        told = self.rng.random() < 0.5
        if told:
            self.raise_interrupt(None)
        return f"{'with' if told else 'without'} an interrupt"

    @misdeed(1)
    def ignore_resets(self) -> str:
        """The status goes on, and so do queues and memory."""
        self._deaf = self.rng.randint(1, 2)
        return f"the next {self._deaf}"

    @misdeed(1)
    def refuse_features(self) -> str:
        self._refusing = True
        return "until healed"

    @misdeed(1)
    def take_back_status(self) -> str:
        self._taken_back = self.rng.choice([FEATURES_OK, DRIVER_OK])
        return f"status bit {self._taken_back}, once it was read"

    @misdeed(1)
    def garble_status(self) -> str:
        self._garbled = self.rng.randrange(255)
        return f"the next one reads {self._garbled:#x}"

    def read_status(self) -> int:
        status = super().read_status()
        if self._garbled is not None:
            status, self._garbled = self._garbled, None
        if status & self._taken_back:
            self.tainted = True
            self._status &= ~self._taken_back
            self._taken_back = 0
        return status

    @forgiving
    def write_status(self, value: int) -> None:
        if value == 0 and self._deaf:
            self._deaf -= 1
            self.tainted = True
            return
        super().write_status(value)
        if self._refusing:
            self._status &= ~FEATURES_OK

    # Features, queues, configuration

    @misdeed(1)
    def garble_features(self) -> str:
        """Other ones the next time, with bits that mean nothing yet."""
        honest, _ = self._honest
        self._to_offer = honest ^ self.rng.getrandbits(64) & SPOKEN | _UNDEFINED
        if self.rng.random() < 0.8:
            self._to_offer |= mask("version_1")
        return f"offered {self._to_offer:#x}"

    def offered_features(self) -> int:
        self.offered = self._to_offer
        return self.offered

    @misdeed(2)
    def odd_queue_sizes(self) -> str:
        _, honest = self._honest
        odd = [0, 1, 2, 3, 48, 64, 0x8001, 0xFFFF]
        self._queue_sizes = tuple(self.rng.choice([size, self.rng.choice(odd)]) for size in honest)
        return f"{self._queue_sizes}"

    @misdeed(1)
    def sizes_that_change(self) -> str:
        """Other ones with each look."""
        self._shifty = self.tainted = True
        return "until healed"

    def queue_max_size(self, index: int) -> int:
        size = super().queue_max_size(index)
        if self._shifty:
            self.tainted = True
            size = self.rng.choice([size, size // 2, 2 * size])
        return size

    @misdeed(1)
    def unsettled_config(self) -> str:
        self._unsettled = True
        return "a generation with each look"

    @misdeed(1)
    def garble_config(self) -> str:
        config = bytearray(self.rng.randbytes(NET_CONFIG.size))
        if self.rng.random() < 0.5:
            config[11] = 0  # an MTU that may be below the least there is
        self.config = bytes(config)
        return self.config.hex()

    @misdeed(1)
    def short_config(self) -> str:
        self.config = self.config[: self.rng.randrange(NET_CONFIG.size)]
        return f"{len(self.config)} bytes"

    @property
    def config_generation(self) -> int:
        self._generation += self._unsettled
        return self._generation & 0xFF

    @config_generation.setter
    def config_generation(self, value: int) -> None:
        self._generation = value
