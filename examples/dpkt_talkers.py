"""Who talks to whom, by dpkt: bytes for each pair of IP addresses, after so many frames.

python dpkt_talkers.py NIC 100000
"""

import sys
from collections import Counter
from ipaddress import ip_address

import dpkt

import pyvirtnet


def talkers(port: pyvirtnet.Port, frames: int) -> Counter[str]:
    """Of the next `frames` frames."""
    octets: Counter[str] = Counter()
    while frames > 0:
        burst = port.recv_burst(min(frames, 64), timeout=None)
        frames -= len(burst)
        for head, length in zip(burst.heads, burst.lengths, strict=True):
            packet = dpkt.ethernet.Ethernet(head[:length].tobytes()).data
            if isinstance(packet, dpkt.ip.IP | dpkt.ip6.IP6):
                octets[f"{ip_address(packet.src)} > {ip_address(packet.dst)}"] += int(length)
    return octets


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    try:
        with pyvirtnet.open(sys.argv[1]) as port:
            for pair, octets in talkers(port, int(sys.argv[2])).most_common(10):
                print(f"{octets:12} {pair}")
    except (pyvirtnet.Error, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
