"""A DNS responder: whatever name it is asked for has one address.

python dns_responder.py NIC 192.0.2.1 198.51.100.7
"""

import sys
from ipaddress import IPv4Address

import numpy as np

import pyvirtnet


def response(query: bytes, address: bytes) -> bytes:
    """A frame with a query, turned round already, becomes its answer, but for the checksums."""
    dns = query[42:]
    end = dns.index(0, 12) + 5  # of the question: a name, a type, a class
    record = b"\xc0\x0c" + dns[end - 4 : end] + b"\0\0\0\x3c" + b"\0\x04" + address
    answer = dns[:2] + b"\x84\0" + b"\0\1\0\1\0\0\0\0" + dns[12:end] + record
    size = len(answer)
    ip = query[14:16] + (28 + size).to_bytes(2, "big") + query[18:34]
    return query[:14] + ip + query[34:38] + (8 + size).to_bytes(2, "big") + b"\0\0" + answer


def serve(port: pyvirtnet.Port, ours: str, address: str) -> None:
    """Until the port is closed."""
    plain = f"dst host {ours} and udp dst port 53 and ip[0] = 0x45"
    asked = pyvirtnet.Filter(f"{plain} and udp[10] & 0xf8 = 0 and udp[12:2] = 1")
    while True:
        burst = port.recv_burst(64, timeout=None)
        port.send_burst(burst[pyvirtnet.answer_pings(burst, port.mac, [ours])])
        queries = burst[asked(burst)]
        pyvirtnet.swap_flows(queries)
        for query in queries:
            answer = response(bytes(query), IPv4Address(address).packed)
            tx = port.alloc_burst(1, len(answer))
            tx.data[0] = np.frombuffer(answer, np.uint8)
            pyvirtnet.fix_checksums(tx)
            port.send_burst(tx)


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    try:
        with pyvirtnet.open(sys.argv[1]) as port:
            serve(port, *sys.argv[2:])
    except (pyvirtnet.Error, KeyboardInterrupt) as error:
        sys.exit(str(error) or 130)
