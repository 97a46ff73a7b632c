"""Every example under examples/ does what it says."""

import asyncio
import importlib.util
import runpy
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

import pyvirtnet
from pyvirtnet.scapy import PortSocket

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))
NEAR, FAR = "sim:cable/example/0", "sim:cable/example/1?mac=02:00:00:00:00:0a"
OURS, PEER = "02:00:00:00:00:01", "02:00:00:00:00:0a"
SECONDS = 30  # longer than anything here takes


def example(name):
    """The module of an example."""
    (path,) = (path for path in EXAMPLES if path.stem == name)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def serving(serve, *words):
    """The far end of a port that an example serves, in a thread, until the port is closed."""
    with pyvirtnet.open(NEAR) as port, pyvirtnet.open(FAR) as far:
        errors = []

        def run():
            try:
                serve(port, *words)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        yield far
        port.close()
        thread.join(SECONDS)
        assert [type(error) for error in errors] == [pyvirtnet.PortClosed]


def ask(far, *packets):
    """What comes back, as many as were sent."""
    assert far.send_burst([bytes(one) for one in packets]) == len(packets)
    came = []
    while len(came) < len(packets):
        burst = far.recv_burst(64, timeout=SECONDS)
        assert len(burst) > 0
        came += [Ether(bytes(frame)) for frame in burst]
    return came


def test_load_balancer():
    servers = ["52:54:00:00:00:02", "52:54:00:00:00:03", "52:54:00:00:00:04"]
    headers = Ether(src=PEER, dst=OURS) / IP(src="192.0.2.9", dst="192.0.2.1")
    flows = [headers / UDP(sport=i, dport=53) / Raw(b"x" * i) for i in range(60)]
    flows += [headers / TCP(sport=i, dport=80) for i in range(60)]
    with serving(example("load_balancer").serve, "192.0.2.1", *servers) as far:
        there = ask(far, *flows)
        assert [bytes(one)[12:] for one in there] == [bytes(one)[12:] for one in flows]
        assert {one.src for one in there} == {OURS}
        counts = [sum(one.dst == server for one in there) for server in servers]
        assert sum(counts) == 120
        assert min(counts) > 20
        assert [one.dst for one in ask(far, *flows)] == [one.dst for one in there]
        other = Ether(src=PEER, dst=OURS) / IP(dst="192.0.2.7") / UDP()
        who_has = Ether(src=PEER, dst="ff:ff:ff:ff:ff:ff") / ARP(psrc="192.0.2.9", pdst="192.0.2.1")
        far.send_burst([bytes(other)])
        (is_at,) = ask(far, who_has)
        assert (is_at[ARP].op, is_at[ARP].hwsrc) == (2, OURS)


def test_dns_responder():
    headers = Ether(src=PEER, dst=OURS) / IP(src="192.0.2.9", dst="192.0.2.1")
    names = ["example.org", "a.rather.long.name.of.many.labels.example.com", "x"]
    queries = [
        headers / UDP(sport=1000 + i, dport=53) / DNS(id=i, qd=DNSQR(qname=name))
        for i, name in enumerate(names)
    ]
    answer = DNS(id=9, qr=1, qd=DNSQR(qname="x"))
    with serving(example("dns_responder").serve, "192.0.2.1", "198.51.100.7") as far:
        far.send_burst([bytes(headers / UDP(dport=53) / answer)])  # is not answered
        replies = ask(far, *queries)
        assert far.send_burst([bytes(one) for one in queries]) == 3
        checked = far.recv_burst(64, timeout=SECONDS)
        assert pyvirtnet.checksums_ok(checked).all()
    for i, reply in enumerate(replies):
        assert (reply.src, reply.dst) == (OURS, PEER)
        assert (reply[IP].src, reply[IP].dst) == ("192.0.2.1", "192.0.2.9")
        assert (reply[UDP].sport, reply[UDP].dport) == (53, 1000 + i)
        dns = reply[DNS]
        assert (dns.id, dns.qr, dns.rcode, dns.ancount) == (i, 1, 0, 1)
        assert dns.qd[0].qname.decode() == f"{names[i]}."
        record = dns.an[0]
        assert (record.rrname.decode(), record.rdata, record.ttl) == (
            f"{names[i]}.",
            "198.51.100.7",
            60,
        )


def test_asyncio_echo(capsys):
    """It ends in order when the port is closed, unlike those that poll."""
    ping = Ether(src=PEER, dst=OURS) / IP(src="192.0.2.9", dst="192.0.2.1") / ICMP() / Raw(b"data")
    module = example("asyncio_echo")
    with pyvirtnet.open(NEAR) as port, pyvirtnet.open(FAR) as far:

        async def served():
            serving = asyncio.create_task(module.serve(port, "192.0.2.1"))
            replies = await asyncio.to_thread(ask, far, ping, ping)
            said = ""
            for _ in range(10):  # seconds, until it has said so
                await asyncio.sleep(1)
                said += capsys.readouterr().out
                if "2 frames came, 2 were sent\n" in said:
                    break
            port.close()
            await serving
            return replies, said

        replies, said = asyncio.run(asyncio.wait_for(served(), SECONDS))
    assert [(one[IP].dst, one[ICMP].type, one[Raw].load) for one in replies] == [
        ("192.0.2.9", 0, b"data")
    ] * 2
    assert "2 frames came, 2 were sent\n" in said


def test_dpkt_talkers():
    macs = Ether(src=PEER, dst=OURS)
    packets = [
        macs / IP(src="192.0.2.1", dst="192.0.2.2") / UDP() / Raw(bytes(500)),
        macs / IP(src="192.0.2.2", dst="192.0.2.1") / TCP(),
        macs / ARP(),
        macs / IPv6(src="2001:db8::1", dst="2001:db8::2") / UDP() / Raw(bytes(2000)),
    ] * 20
    with pyvirtnet.open(NEAR) as port, pyvirtnet.open(FAR) as far:
        far.send_burst([bytes(one) for one in packets])
        found = example("dpkt_talkers").talkers(port, 80)
    assert found == {
        "192.0.2.1 > 192.0.2.2": 20 * 542,
        "192.0.2.2 > 192.0.2.1": 20 * 54,
        "2001:db8::1 > 2001:db8::2": 20 * 2062,
    }


def test_scapy_neighbours():
    def answer(port):
        with PortSocket(port):
            while True:
                burst = port.recv_burst(64, timeout=None)
                known = ["192.0.2.2", "192.0.2.5"]
                port.send_burst(burst[pyvirtnet.answer_pings(burst, port.mac, known)])

    here = {"192.0.2.2": OURS, "192.0.2.5": OURS}
    with serving(answer) as far:
        for _ in range(5):  # it listens for a second
            found = example("scapy_neighbours").neighbours(far, "192.0.2.0/29", "192.0.2.6")
            if found == here:
                break
    assert found == here


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_without_its_nic_says_so_in_one_line_and_its_mend(path):
    words = [sys.executable, path, "sim:nowhere", "192.0.2.1", "192.0.2.2"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd="/")
    assert done.returncode == 1
    what, mend = done.stderr.splitlines()
    assert what.startswith("no simulator 'sim:nowhere'")
    assert mend.startswith("  mend: ")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_without_words_says_what_it_takes(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(path)])
    with pytest.raises(SystemExit, match=f"python {path.name} NIC ") as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == example(path.stem).__doc__
