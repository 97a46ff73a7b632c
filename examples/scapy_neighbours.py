"""Who is on the cable: scapy asks every address of a network, by ARP, on a port.

python scapy_neighbours.py NIC 192.0.2.0/28 192.0.2.1
"""

import sys

from scapy.layers.l2 import ARP, Ether
from scapy.sendrecv import srp

import pyvirtnet
from pyvirtnet.scapy import PortInterface


def neighbours(port: pyvirtnet.Port, network: str, ours: str) -> dict[str, str]:
    """MAC addresses by IP address."""
    us = str(port.mac)
    asked = Ether(src=us, dst="ff:ff:ff:ff:ff:ff") / ARP(hwsrc=us, psrc=ours, pdst=network)
    answered, _ = srp(asked, iface=PortInterface(port), timeout=1, verbose=False)
    return {answer.psrc: answer.hwsrc for _, answer in answered}


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        with pyvirtnet.open(sys.argv[1]) as port:
            for address, mac in neighbours(port, *sys.argv[2:]).items():
                print(address, mac)
    except (pyvirtnet.Error, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
