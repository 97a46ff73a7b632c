"""The registers a driver sees: status, features, configuration space (VIRTIO 1.3, 2, 3.1)."""

from __future__ import annotations

from typing import NoReturn

from . import layout
from .layout import (
    ACKNOWLEDGE,
    CONFIG_FIELDS,
    DRIVER,
    DRIVER_OK,
    FAILED,
    FEATURES_OK,
    NEEDS_RESET,
    feature_names,
    mask,
)
from .violation import Violation

# Each stage and the one before it, 3.1.1
_STAGES = (
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, DRIVER),
    (DRIVER_OK, FEATURES_OK),
)
_HOST_TSO = mask("host_tso4", "host_tso6")
_GUEST_TSO = mask("guest_tso4", "guest_tso6")
_DEFINED = mask(*layout.FEATURES)

# A feature and what it needs, one bit of each mask (5.1.3.1)
_NEEDS: tuple[tuple[str, tuple[int, ...]], ...] = (
    *((name, (mask("guest_csum"),)) for name in (
        "guest_tso4", "guest_tso6", "guest_ufo", "guest_uso4", "guest_uso6")),
    ("guest_ecn", (_GUEST_TSO,)),
    ("guest_udp_tunnel_gso", tuple(
        mask(name) for name in ("guest_tso4", "guest_tso6", "guest_uso4", "guest_uso6"))),
    ("guest_udp_tunnel_gso_csum", (mask("guest_udp_tunnel_gso"),)),
    *((name, (mask("csum"),)) for name in ("host_tso4", "host_tso6", "host_ufo", "host_uso")),
    ("host_ecn", (_HOST_TSO,)),
    ("host_udp_tunnel_gso", tuple(mask(name) for name in ("host_tso4", "host_tso6", "host_uso"))),
    ("host_udp_tunnel_gso_csum", (mask("host_udp_tunnel_gso"),)),
    *((name, (mask("ctrl_vq"),)) for name in (
        "ctrl_rx", "ctrl_vlan", "guest_announce", "mq", "ctrl_mac_addr", "notf_coal",
        "vq_notf_coal", "rss", "ctrl_rx_extra", "hash_report")),
    ("rsc_ext", (_HOST_TSO,)),
    ("hash_tunnel", (mask("ctrl_vq"), mask("rss", "hash_report"))),
    ("rss_context", (mask("ctrl_vq"), mask("rss"))),
)  # fmt: skip


class Registers:
    """Status, features and configuration, held to the order of 3.1.1.

    `required`: features without which the device does not set FEATURES_OK (2.2.2).
    """

    def __init__(self, offered: int, required: int) -> None:
        self.offered, self.required = offered, required & offered
        self.config = bytes(layout.NET_CONFIG.size)
        self.config_generation = 0
        self.accepted = 0
        self._status = 0
        self._reset_seen = self._features_written = self._features_read_back = False

    def read_status(self) -> int:
        self._features_read_back |= bool(self._status & FEATURES_OK)
        return self._status

    def write_status(self, value: int) -> None:
        """What the driver writes: 0 to reset, or the old value with one more bit."""
        if value == 0:
            self.reset()
            return
        old = self._status & ~NEEDS_RESET  # the device's own bit
        value &= ~NEEDS_RESET
        if old & ~value:
            self._fail("no status bit is cleared but by a reset", "2.1.1", value)
        added = value & ~old
        if added and not self._reset_seen:
            self._fail("initialisation begins with a reset", "3.1.1", value)
        if added and old & FAILED:
            self._fail("after FAILED comes a reset", "2.1.1", value)
        if added & ~(ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED):
            self._fail("only defined status bits are set", "2.1", value)
        for stage, before in _STAGES:
            if added & stage and old & before != before:
                self._fail("status bits are set in order, a stage at a time", "3.1.1", value)
        if added & FEATURES_OK and not self._agree(value):
            return
        if added & DRIVER_OK:
            self._check_features_read_back("DRIVER_OK")
            self._go_live()
        self._status |= added

    def reset(self) -> None:
        """Back to the beginning (2.4)."""
        self._status = self.accepted = 0
        self._reset_seen = True
        self._features_written = self._features_read_back = False

    @property
    def live(self) -> bool:
        return bool(self._status & DRIVER_OK)

    def ask_for_reset(self) -> None:
        """Set DEVICE_NEEDS_RESET (2.1.2)."""
        self._status |= NEEDS_RESET

    def offered_features(self) -> int:
        return self.offered

    def accept_features(self, features: int) -> None:
        """What the driver writes to driver_feature, all selections together."""
        if self._status & FEATURES_OK:
            self._refuse("no features are accepted after FEATURES_OK", "3.1.1", features)
        if not self._status & DRIVER:
            self._refuse("features are written after DRIVER is set", "3.1.1", features)
        if features & ~self.offered:
            seen = features & ~self.offered
            self._refuse("only features that are offered are accepted", "2.2.1", seen)
        if features & ~_DEFINED:
            self._refuse("reserved features are not accepted", "2.2.1", features & ~_DEFINED)
        self.accepted = features
        self._features_written = True

    def _agree(self, value: int) -> bool:
        if not self._features_written:
            self._fail("features are written before FEATURES_OK", "3.1.1", value)
        for name, needs in _NEEDS:
            if self.accepted & mask(name) and not all(self.accepted & need for need in needs):
                lacking = " and ".join(
                    feature_names(need) for need in needs if not self.accepted & need
                )
                self._refuse(
                    f"{name.upper()} needs {lacking.replace(', ', ' or ')}",
                    "5.1.3.1",
                    self.accepted,
                )
        if self.offered & ~self.accepted & layout.VERSION_1:
            self._refuse("VERSION_1 is accepted where it is offered", "6.1", self.accepted)
        return not self.required & ~self.accepted

    def read_config(self, offset: int, length: int) -> bytes:
        if not self._status & DRIVER:
            seen = f"offset {offset}, status {self._status:#x}"
            raise Violation("configuration is read after DRIVER is set", "3.1.1", seen)
        for at, size, guard in CONFIG_FIELDS:
            if at < offset + length and offset < at + size and not self.offered & guard:
                raise Violation(
                    "an optional field is read only where its feature is offered",
                    "2.5.1",
                    f"offset {at}, without {feature_names(guard)}",
                )
        return self.config[offset : offset + length]

    def write_config(self, offset: int, data: bytes) -> NoReturn:
        seen = f"{len(data)} bytes at offset {offset}"
        raise Violation("the network device's configuration is never written", "5.1.4.2", seen)

    def _go_live(self) -> None:
        """Checks of the whole device at DRIVER_OK."""

    def _check_features_read_back(self, what: str) -> None:
        if not self._features_read_back:
            seen = f"{what}, status {self._status:#x}"
            raise Violation("FEATURES_OK is read back before set-up goes on", "3.1.1", seen)

    def _fail(self, rule: str, section: str, value: int) -> NoReturn:
        raise Violation(rule, section, f"status {self._status:#x}, written {value:#x}")

    def _refuse(self, rule: str, section: str, features: int) -> NoReturn:
        raise Violation(rule, section, feature_names(features))
