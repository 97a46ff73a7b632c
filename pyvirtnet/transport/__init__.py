"""Ways to a device: each carries registers and kicks. `open_transport` picks one by the address."""

from __future__ import annotations

from .base import Transport


def open_transport(address: str) -> Transport:
    """The transport for "sim:NAME" or a PCI address; only the one that is needed is imported."""
    kind, colon, _ = address.partition(":")
    if colon and kind == "sim":
        from .sim import open_sim

        return open_sim(address)
    from .vfio_pci import VfioPciTransport

    return VfioPciTransport(address)
