"""Scenes with taps, for test_tap.py: run in a user and network namespace, findings as JSON."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pyvirtnet
from pyvirtnet.cli import fwd

OURS, THEIRS = "192.0.2.1", "192.0.2.2"
SIZE = 1 << 20
SERVER = f"""
import socket
server = socket.create_server(("{THEIRS}", 7))
print("listening", flush=True)
peer, _ = server.accept()
left = {SIZE}
while left:
    data = peer.recv(65536)
    peer.sendall(data)
    left -= len(data)
"""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def has(name: str) -> bool:
    return Path(f"/sys/class/net/{name}").exists() or name in Path("/proc/net/dev").read_text()


def await_port(name: str) -> None:
    """Until a port has made the interface, for a bound time."""
    end = time.monotonic() + 30
    while not has(name) and time.monotonic() < end:
        time.sleep(0.01)


def up(name: str, address: str) -> None:
    """Once a port has made the interface."""
    await_port(name)
    ip("addr", "add", f"{address}/24", "dev", name)
    ip("link", "set", name, "up")


def stop() -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def ping() -> dict[str, Any]:
    """The kernel sends echo requests, fwd answers them and ARP."""
    answers: list[int] = []

    def client() -> None:
        up("tap0", THEIRS)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.settimeout(30)
            for number in range(50):
                message = struct.pack("!BBHHH", 8, 0, 0, 7, number) + b"x" * 56
                sum_ = struct.pack("!H", checksum(message))
                raw.sendto(message[:2] + sum_ + message[4:], (OURS, 0))
                answer = raw.recv(2000)[20:]
                if checksum(answer) == 0 and answer[0] == 0 and answer[8:] == message[8:]:
                    answers.append(struct.unpack_from("!H", answer, 6)[0])
        stop()

    thread = threading.Thread(target=client)
    thread.start()
    fwd.main(["sim:tap/tap0", "--mode", "icmp-echo", "--address", OURS])
    thread.join(30)
    return {"answers": answers, "interface_after": has("tap0")}


def tcp() -> dict[str, Any]:
    """Through two ports to a server in a network namespace of its own."""
    found: dict[str, Any] = {}
    holder = subprocess.Popen(["unshare", "--net", "sleep", "120"])

    def client() -> None:
        up("tap0", OURS)
        inside = ["nsenter", "--net", "--target", str(holder.pid)]
        while os.readlink(f"/proc/{holder.pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            time.sleep(0.01)
        await_port("tap1")
        ip("link", "set", "tap1", "netns", str(holder.pid))
        for words in (
            ["addr", "add", f"{THEIRS}/24", "dev", "tap1"],
            ["link", "set", "tap1", "up"],
        ):
            subprocess.run([*inside, "ip", *words], check=True)
        command = [*inside, sys.executable, "-c", SERVER]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            server.stdout.readline()
            found.update(transfer())

    def run() -> None:
        try:
            client()
        finally:
            stop()

    thread = threading.Thread(target=run)
    thread.start()
    fwd.main(["sim:tap/tap0", "sim:tap/tap1", "--json"])
    thread.join(30)
    holder.kill()
    holder.wait()
    return {"dropped": 0, **found}


def transfer() -> dict[str, Any]:
    content = os.urandom(SIZE)
    with socket.create_connection((THEIRS, 7), timeout=60) as peer:
        sender = threading.Thread(target=peer.sendall, args=[content])
        sender.start()
        came = bytearray()
        while len(came) < SIZE and (data := peer.recv(65536)):
            came += data
        sender.join(30)
    return {"sent": SIZE, "received": len(came), "equal": bytes(came) == content}


def trouble() -> dict[str, Any]:
    """Frames for an interface that is down; one that is taken; a forked child lets go."""
    frame = b"\xff" * 6 + b"\2" * 6 + b"\x88\xb5" + bytes(50)
    with pyvirtnet.open("sim:tap/tap0") as port:
        device = port._transport.device  # type: ignore[attr-defined]
        assert port.send_burst([frame] * 3) == 3
        dropped = device.dropped
        up("tap0", THEIRS)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5)) as peer:
            peer.bind(("tap0", 0x88B5))
            peer.settimeout(30)
            port.send_burst([frame])
            after = int(peer.recv(2000) == frame)
        try:
            pyvirtnet.open("sim:tap/tap0")
            taken = ""
        except pyvirtnet.Error as error:
            taken = type(error).__name__
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    end = time.monotonic() + 30
    while has("tap0") and time.monotonic() < end:  # the child lives, and lets go of it
        time.sleep(0.01)
    gone = not has("tap0")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return {"dropped": dropped, "after": after, "taken": taken, "fork": gone}


if __name__ == "__main__":
    print(json.dumps({"ping": ping, "tcp": tcp, "trouble": trouble}[sys.argv[1]]()))
