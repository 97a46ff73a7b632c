"""Ways to a device: each carries registers and kicks. `open_transport` picks one by the address."""

from __future__ import annotations

from .base import Transport


def open_transport(address: str) -> Transport:
    """The transport of an address: "sim:NAME", "vhost-user:/path", else PCI. Imported on demand."""
    if not isinstance(address, str):
        raise TypeError(f"a port's address is a string such as '0000:00:04.0', not {address!r}")
    kind, colon, _ = address.partition(":")
    if colon and kind == "sim":
        from .sim import open_sim

        return open_sim(address)
    if colon and kind == "vhost-user":
        from .vhost_user import VhostUserTransport

        return VhostUserTransport(address.removeprefix("vhost-user:"))
    from .vfio_pci import VfioPciTransport

    return VfioPciTransport(address)
