"""What a NIC says of itself: its MAC address, its link, its counters."""

from __future__ import annotations

from dataclasses import dataclass


class Mac(bytes):
    """A MAC address: six bytes; str() gives 52:54:00:12:34:56."""

    def __str__(self) -> str:
        return self.hex(":")

    def __repr__(self) -> str:
        return f"Mac({self})"


@dataclass(frozen=True)
class Link:
    """Link state: up or down, Mbit/s or None, "full", "half" or None (5.1.4)."""

    up: bool
    speed: int | None
    duplex: str | None


@dataclass(frozen=True)
class Stats:
    """Counters since the port was opened. They are never reset, and they add up.

    Every frame the device delivered is in rx_frames, in rx_runts (shorter than an Ethernet header,
    dropped), in rx_bad_headers (offload fields that cannot be, dropped) or in rx_lost (in the ring
    when it was reset). rx_buffers are ring entries: pages
    merged into those frames. rx_no_pages and rx_no_slots count calls that found no free page to
    post or no free head slot: views hold them. Every frame in tx_frames is in tx_reclaimed, in
    port.tx_pending or in tx_lost (the device had it at a reset; it may have been sent). tx_full
    counts calls that could not take all they were given.
    """

    rx_frames: int
    rx_bytes: int
    rx_buffers: int
    rx_runts: int
    rx_bad_headers: int
    rx_no_pages: int
    rx_no_slots: int
    rx_lost: int
    rx_kicks: int
    tx_frames: int
    tx_bytes: int
    tx_full: int
    tx_kicks: int
    tx_reclaimed: int
    tx_lost: int
