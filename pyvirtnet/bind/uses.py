"""What the kernel uses a NIC for: the reasons not to take it away."""

import re
import socket
import struct
from pathlib import Path

from .host import VFIO_PCI, Host, link, listed, read

_WITHOUT_INTERFACE = {None, VFIO_PCI, "pci-stub", "uio_pci_generic", "igb_uio"}
_IPV6_LINK_SCOPE = "20"  # an address that every interface has
_RTF_LOCAL_OR_ANYCAST = 0x80100000


def uses(host: Host, bdf: str) -> list[str]:
    """The reasons, one a line. Traffic is looked for by `traffic`, since that takes a while."""
    interfaces = host.interfaces(bdf)
    if not interfaces and _is_hidden(host, bdf):
        return ["its interface is in another network namespace"]
    found = []
    for name in interfaces:
        found += [f"{name} has the address {address}" for address in _addresses(host, name)]
        routes = [*_ipv4_routes(host, name), *_ipv6_routes(host, name)]
        if routes:
            found.append(f"{name} carries {len(routes)} route(s): {', '.join(routes[:4])}")
        found += _uppers(host, name)
    return found


def traffic(host: Host, bdf: str) -> list[str]:
    """The interfaces that are up and whose counters move while we look."""
    before = {name: host.frames(name) for name in host.interfaces(bdf) if host.is_up(name)}
    if before:
        host.look()
    return [
        f"{name} is up with traffic: {host.frames(name) - count} frames in a short look"
        for name, count in before.items()
        if host.frames(name) != count
    ]


def _is_hidden(host: Host, bdf: str) -> bool:
    # /sys shows the interfaces of its own network namespace only.
    virtio = listed(host.path(bdf), "virtio*")
    if virtio:
        return any(link(device / "driver") == "virtio_net" for device in virtio)
    return host.is_network(bdf) and host.driver(bdf) not in _WITHOUT_INTERFACE


def _uppers(host: Host, name: str) -> list[str]:
    folder = host.net / name
    master = link(folder / "master")
    found = [f"{name} is a member of the {_kind(host, master)} {master}"] if master else []
    uppers = [path.name.removeprefix("upper_") for path in listed(folder, "upper_*")]
    return found + [f"{name} carries the {_kind(host, up)} {up}" for up in uppers if up != master]


def _kind(host: Host, interface: str) -> str:
    words = dict(line.partition("=")[::2] for line in _lines(host.net / interface / "uevent"))
    return words.get("DEVTYPE", "interface")


def _addresses(host: Host, name: str) -> list[str]:
    found = [address for interface, address in host.ipv4() if interface == name]
    for line in _lines(host.proc / "net/if_inet6"):
        address, _, _, scope, _, interface = line.split()
        if interface == name and scope != _IPV6_LINK_SCOPE:
            found.append(_ipv6(address))
    return found


def _ipv4_routes(host: Host, name: str) -> list[str]:
    found = []
    for line in _lines(host.proc / "net/route")[1:]:
        interface, target, _, _, _, _, _, mask = line.split()[:8]
        if interface == name:
            address = socket.inet_ntoa(struct.pack("=I", int(target, 16)))
            found.append(_route(address, int(mask, 16).bit_count()))
    return found


def _ipv6_routes(host: Host, name: str) -> list[str]:
    found = []
    for line in _lines(host.proc / "net/ipv6_route"):
        words = line.split()
        target, prefix, flags, interface = words[0], words[1], words[8], words[9]
        own = int(flags, 16) & _RTF_LOCAL_OR_ANYCAST or re.match("fe[89ab]|ff", target)
        if interface == name and not own:
            found.append(_route(_ipv6(target), int(prefix, 16)))
    return found


def _route(address: str, prefix: int) -> str:
    return f"{address}/{prefix}" if prefix else "default"


def _ipv6(digits: str) -> str:
    return socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))


def _lines(path: Path) -> list[str]:
    return read(path).splitlines()
