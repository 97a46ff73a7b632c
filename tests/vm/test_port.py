"""Ports on real vfio-pci NICs: what a frame holds, dying processes, the kernel as the peer."""

import os
import pwd
import random
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import pyvirtnet
from pyvirtnet import Port
from pyvirtnet.cli import bind

from .traffic import answered

MACHINE = {"ports": 2}

NIC, PEER = "0000:00:04.0", "0000:00:05.0"
OURS, KERNELS = "192.0.2.1", "192.0.2.2"
SECONDS = 20  # longer than anything here takes; what takes longer is stuck


@pytest.fixture(scope="module")
def bound() -> Iterator[None]:
    assert bind.main(["bind", NIC, PEER]) == 0
    yield
    assert bind.main(["restore", NIC, PEER]) == 0


@pytest.fixture
def ports(bound: None) -> Iterator[tuple[Port, Port]]:
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx:
        yield tx, rx
        rx.recv_burst(1)  # pages that nobody holds any more are posted again
        info = rx.info()
        assert info["free_pages"] + info["posted_pages"] == info["pages"]


def receive(port: Port, count: int) -> list[pyvirtnet.Frame]:
    """Frames until there are `count`, or too much time has passed."""
    frames: list[pyvirtnet.Frame] = []
    end = time.monotonic() + SECONDS
    while len(frames) < count and time.monotonic() < end:
        frames += port.recv_burst(64, timeout=1)
    return frames


def send(port: Port, frames: list[bytes]) -> None:
    end = time.monotonic() + SECONDS
    while frames and time.monotonic() < end:
        frames = frames[port.send_burst(frames) :]
    assert not frames


def test_a_65535_byte_frame_lies_in_17_pages_and_its_fragments_are_views(
    ports: tuple[Port, Port],
) -> None:
    tx, rx = ports
    content = np.random.default_rng(1).integers(0, 256, 65535, np.uint8).tobytes()
    send(tx, [content])
    (frame,) = receive(rx, 1)
    assert bytes(frame) == content
    assert rx.stats.rx_buffers == 17
    region = rx.queues[0].pool.region
    starts = [view.__array_interface__["data"][0] for view in frame.frags]
    ends = [start + len(view) for start, view in zip(starts, frame.frags, strict=True)]
    assert all(region.address <= at <= region.address + region.size for at in starts + ends)
    assert len(starts) == 17
    assert min(np.diff(sorted(starts))) > 3900  # each in a page of its own
    frame.frags[3][0] ^= 0xFF
    at = 128 + sum(len(view) for view in frame.frags[:3])
    assert bytes(frame)[at] == content[at] ^ 0xFF


def test_a_60_byte_frame_holds_no_page(ports: tuple[Port, Port]) -> None:
    tx, rx = ports
    send(tx, [bytes([i]) * 60 for i in range(100)])
    frames = receive(rx, 100)
    rx.recv_burst(1)
    info = rx.info()
    assert info["posted_pages"] == info["ring_sizes"][0]
    assert info["free_pages"] + info["posted_pages"] == info["pages"]
    assert [bytes(frame) for frame in frames] == [bytes([i]) * 60 for i in range(100)]


def test_256_entries_hold_256_small_frames_at_once(ports: tuple[Port, Port]) -> None:
    tx, rx = ports
    assert rx.info()["ring_sizes"][0] == 256
    send(tx, [i.to_bytes(2, "big") * 30 for i in range(256)])
    end = time.monotonic() + SECONDS
    while tx.tx_pending and time.monotonic() < end:  # the device has delivered what it took
        tx.reclaim()
    burst = rx.recv_burst(1024)
    assert len(burst) == 256
    assert [int(row[0]) << 8 | int(row[1]) for row in burst.heads] == list(range(256))


def test_an_oversized_frame_is_refused_and_nothing_is_sent(ports: tuple[Port, Port]) -> None:
    tx, rx = ports
    with pytest.raises(ValueError, match="frame 1 has 65536 bytes"):
        tx.send_burst([bytes(60), bytes(65536)])
    send(tx, [b"after" * 12])
    assert [bytes(frame) for frame in receive(rx, 1)] == [b"after" * 12]


def test_pages_that_views_hold_are_missed_and_come_back(ports: tuple[Port, Port]) -> None:
    """Every frame arrives, though QEMU's hub lets some overtake others while no buffer is free."""
    tx, rx = ports
    content = [i.to_bytes(2, "big") * 750 for i in range(1200)]
    pages = rx.info()["pages"]
    held: list[pyvirtnet.Frame] = []
    left = content
    end = time.monotonic() + SECONDS
    while len(held) < pages and time.monotonic() < end:
        left = left[tx.send_burst(left) :]
        held += rx.recv_burst(64)
    assert len(held) == pages
    assert len(rx.recv_burst(64)) == 0
    assert rx.stats.rx_no_pages > 0
    arrived = [bytes(frame) for frame in held]
    held.clear()
    while len(arrived) < len(content) and time.monotonic() < end:
        left = left[tx.send_burst(left) :]
        arrived += [bytes(frame) for frame in rx.recv_burst(64)]
    assert sorted(arrived) == content


def vectors(bdf: str) -> int:
    """Interrupts of a function, as the kernel counts them."""
    rows = Path("/proc/interrupts").read_text().splitlines()
    cpus = len(rows[0].split())
    return sum(sum(map(int, row.split()[1 : 1 + cpus])) for row in rows if f"({bdf})" in row)


def test_sending_fires_no_interrupt_and_starts_no_thread(ports: tuple[Port, Port]) -> None:
    """But for the first frame after a reset: with EVENT_IDX, QEMU's device always tells of it."""
    tx, rx = ports
    fds = [tx._transport.interrupt_fd(index) for index in (0, 1)]
    assert min(fds) >= 0
    assert os.get_blocking(fds[1]) is False
    burst = tx.alloc_burst(64, 60)

    def exchange(frames: int) -> None:
        sent = got = 0
        while sent < frames or got < sent:
            sent += tx.send_burst(burst) if sent < frames else 0
            got += len(rx.recv_burst(256))
        tx.reclaim()

    exchange(1)
    assert select.select([fds[1]], [], [], SECONDS)[0], "not even the first, and that may be late"
    os.eventfd_read(fds[1])
    threads, before = os.listdir("/proc/self/task"), vectors(NIC)
    exchange(150_000)  # ring indices come round twice
    for fd in fds:
        with pytest.raises(BlockingIOError):
            os.eventfd_read(fd)
    assert vectors(NIC) == before
    assert os.listdir("/proc/self/task") == threads


def test_a_waiting_receiver_is_woken_by_an_interrupt(ports: tuple[Port, Port]) -> None:
    tx, rx = ports
    before = vectors(PEER)
    timer = threading.Timer(0.5, lambda: tx.send_burst([b"wake" * 15]))
    timer.start()
    start = time.monotonic()
    (frame,) = rx.recv_burst(4, timeout=SECONDS)
    timer.join()
    assert bytes(frame) == b"wake" * 15
    assert time.monotonic() - start < SECONDS / 2
    assert vectors(PEER) > before


def test_close_leaves_views_readable_while_the_nic_works_on(bound: None) -> None:
    with pyvirtnet.open(NIC) as tx:
        rx = pyvirtnet.open(PEER)
        send(tx, [b"keep" * 1000])
        (frame,) = receive(rx, 1)
        view = frame.frags[0]
        rx.close()
        with pyvirtnet.open(PEER) as again:
            send(tx, [b"next" * 1000] * 300)
            assert len(receive(again, 300)) == 300
        assert bytes(frame) == b"keep" * 1000
        assert bytes(view[:4]) == b"keep"


def test_reset_starts_anew(ports: tuple[Port, Port]) -> None:
    tx, rx = ports
    for round_ in range(3):
        send(tx, [bytes([round_]) * 100])
        assert [bytes(frame) for frame in receive(rx, 1)] == [bytes([round_]) * 100]
        rx.reset()
        tx.reset()


def run_traffic(told: int) -> None:
    """In a process of its own: 1514-byte frames for ever; a byte once some have come through."""
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx:
        burst = tx.alloc_burst(64, 1514)
        received = 0
        while True:
            tx.send_burst(burst)
            before, received = received, received + len(rx.recv_burst(64))
            if before < 100 <= received:
                os.write(told, b"x")


def killed_in_mid_traffic(how: signal.Signals, after: float) -> None:
    reading, telling = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            run_traffic(telling)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    os.close(telling)
    try:
        assert os.read(reading, 1) == b"x", "no traffic in a process after the others"
        time.sleep(after)
    finally:
        os.kill(child, how)
        status = os.waitpid(child, 0)[1]
        os.close(reading)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == how


@pytest.mark.parametrize(("how", "times"), [(signal.SIGKILL, 50), (signal.SIGTERM, 3)])
def test_processes_that_are_killed_in_mid_traffic_leave_working_nics(
    bound: None, how: signal.Signals, times: int
) -> None:
    """Each one takes both NICs over from the one before, that had no chance to put them back."""
    chance = random.Random(times)
    for _ in range(times):
        killed_in_mid_traffic(how, 0.03 * chance.random())
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx:
        send(tx, [b"alive" * 20])
        assert bytes(receive(rx, 1)[-1]) == b"alive" * 20


def test_an_exception_and_exit_without_close_are_ways_out(bound: None) -> None:
    code = f"""
import pyvirtnet
tx, rx = pyvirtnet.open({NIC!r}), pyvirtnet.open({PEER!r})
tx.send_burst([b"x" * 3000] * 10)
burst = rx.recv_burst(10, timeout=5)
view = burst[0].frags[0]
raise SystemExit(7)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (7, "")
    with pyvirtnet.open(NIC) as tx, pyvirtnet.open(PEER) as rx:
        send(tx, [b"alive" * 20])
        assert bytes(receive(rx, 1)[-1]) == b"alive" * 20


def test_an_ordinary_user_passes_traffic_within_the_usual_memlock(bound: None) -> None:
    user = pwd.getpwnam("user")
    assert bind.main(["bind", NIC, PEER, "--user", "user"]) == 0
    code = f"""
import os, resource, pyvirtnet
assert os.getuid() == {user.pw_uid}
resource.setrlimit(resource.RLIMIT_MEMLOCK, (8 << 20, 8 << 20))
with pyvirtnet.open({NIC!r}) as tx, pyvirtnet.open({PEER!r}) as rx:
    burst = tx.alloc_burst(64, 60)
    burst.data[:] = 7
    assert tx.send_burst(burst) == 64
    got = 0
    while got < 64:
        got += len(rx.recv_burst(64, timeout=10))
print(got)
"""
    done = subprocess.run(
        [
            "setpriv",
            "--reuid",
            "user",
            "--regid",
            "user",
            "--clear-groups",
            sys.executable,
            "-c",
            code,
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("64\n", "")


def answer(frame: bytes, mac: bytes) -> bytes | None:
    """The answer to an ARP request or a ping for us; None to anything else."""
    ours = socket.inet_aton(OURS)
    if frame[12:14] == b"\x08\x06" and frame[20:22] == b"\0\1" and frame[38:42] == ours:
        arp = frame[14:20] + b"\0\2" + mac + ours + frame[22:28] + frame[28:32]
        return frame[6:12] + mac + b"\x08\x06" + arp + bytes(18)
    if frame[12:14] == b"\x08\x00" and frame[23] == 1 and frame[30:34] == ours and frame[34] == 8:
        total = int.from_bytes(frame[36:38], "big") + 0x0800  # the type goes from 8 to 0
        checksum = ((total & 0xFFFF) + (total >> 16)).to_bytes(2, "big")
        ip = frame[14:26] + frame[30:34] + frame[26:30]
        return frame[6:12] + mac + frame[12:14] + ip + b"\0\0" + checksum + frame[38:]
    return None


def test_the_kernel_at_the_other_end_pings_us() -> None:
    assert bind.main(["restore", NIC, PEER]) == 0
    assert bind.main(["bind", NIC]) == 0
    (path,) = Path(f"/sys/bus/pci/devices/{PEER}").glob("virtio*/net/*")
    ip = ["ip", "-n", "peer"]
    subprocess.run(["ip", "netns", "add", "peer"], check=True)
    subprocess.run(["ip", "link", "set", path.name, "netns", "peer"], check=True)
    try:
        subprocess.run([*ip, "addr", "add", f"{KERNELS}/24", "dev", path.name], check=True)
        subprocess.run([*ip, "link", "set", path.name, "up"], check=True)
        with pyvirtnet.open(NIC) as port:
            ping = [
                "ip",
                "netns",
                "exec",
                "peer",
                "ping",
                "-n",
                "-c",
                "5",
                "-i",
                "0.2",
                "-s",
                "1400",
            ]
            with subprocess.Popen(
                [*ping, "-w", "15", OURS], stdout=subprocess.PIPE, text=True
            ) as run:
                while run.poll() is None:
                    replies = [
                        answer(bytes(f), port.mac) for f in port.recv_burst(16, timeout=0.05)
                    ]
                    port.send_burst([reply for reply in replies if reply])
                assert run.stdout is not None
                report = run.stdout.read()
        assert answered(report, 5), report
    finally:
        subprocess.run([*ip, "link", "set", path.name, "netns", "1"], check=True)
        subprocess.run(["ip", "netns", "del", "peer"], check=True)
        assert bind.main(["restore", NIC]) == 0
