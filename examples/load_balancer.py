"""A load balancer: what is sent to one address is spread over servers, by flow.

python load_balancer.py NIC 192.0.2.1 52:54:00:00:00:02 52:54:00:00:00:03

Each server has the address, on its loopback interface, and answers clients directly.
"""

import sys

import numpy as np

import pyvirtnet

PRIMES = np.array([3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41], np.uint32)


def serve(port: pyvirtnet.Port, address: str, *macs: str) -> None:
    """Until the port is closed."""
    servers = np.array([list(bytes.fromhex(mac.replace(":", ""))) for mac in macs], np.uint8)
    ours = pyvirtnet.Filter(f"dst host {address} and (tcp or udp) and ip[0] = 0x45")
    while True:
        burst = port.recv_burst(64, timeout=None)
        port.send_burst(burst[pyvirtnet.answer_pings(burst, port.mac, [address])])
        wanted = ours(burst)
        flows = burst.heads[wanted, 26:38] @ PRIMES  # IPv4 addresses and ports: one number a flow
        burst.heads[wanted, 6:12] = list(port.mac)
        burst.heads[wanted, :6] = servers[flows % len(servers)]
        port.send_burst(burst[wanted])


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        with pyvirtnet.open(sys.argv[1]) as port:
            serve(port, *sys.argv[2:])
    except (pyvirtnet.Error, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
