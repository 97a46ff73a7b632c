"""VFIO and the virtio-pci transport on the kernel's own vfio-pci, with two cabled NICs."""

import ctypes
import os
import pwd
import select
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from pyvirtnet import dma, errors
from pyvirtnet.transport.base import QueueAddresses
from pyvirtnet.transport.vfio_pci import VfioPciTransport

MACHINE = {"ports": 2}

NIC, PEER, DISK = "0000:00:04.0", "0000:00:05.0", "0000:00:1e.0"
PCI = Path("/sys/bus/pci")
VERSION_1, ACCESS_PLATFORM, MAC = 1 << 32, 1 << 33, 1 << 5
SIZE = 8  # entries of the rings made here by hand


def rebind(bdf, driver):
    """Give a function to `driver`; an empty name is whatever the kernel would choose."""
    device = PCI / "devices" / bdf
    (device / "driver_override").write_text(driver + "\n")
    if (device / "driver").exists():
        (device / "driver/unbind").write_text(bdf)
    (PCI / "drivers_probe").write_text(bdf)


def node(bdf=NIC):
    return Path("/dev/vfio") / (PCI / "devices" / bdf / "iommu_group").resolve().name


@pytest.fixture(scope="module", autouse=True)
def _bound():
    subprocess.run(["modprobe", "vfio-pci"], check=True)
    for bdf in (NIC, PEER):
        rebind(bdf, "vfio-pci")
    subprocess.run(["udevadm", "settle"], check=True)
    yield
    for bdf in (NIC, PEER):
        rebind(bdf, "")


@pytest.fixture
def nic():
    transport = VfioPciTransport(NIC)
    yield transport
    transport.close()


def dma_enabled(bdf=NIC):
    """The bus master bit, as the kernel sees it."""
    return bool((PCI / "devices" / bdf / "config").read_bytes()[4] & 4)


def spawn(code, *prefix):
    """A Python process of its own that runs `code`; its standard output and input are pipes."""
    command = [*prefix, sys.executable, "-c", code]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


OPEN = f"""
from pyvirtnet import dma, errors
from pyvirtnet.transport.vfio_pci import VfioPciTransport
try:
    region = dma.memory.allocate(4 << 20)
    transport = VfioPciTransport({NIC!r})
    print("open", flush=True)
    input()
except (errors.Error, EOFError) as error:
    print(type(error).__name__, error)
"""


def outcome(*prefix):
    """What OPEN prints when it is started behind `prefix`."""
    out, err = spawn(OPEN, *prefix).communicate("\n", timeout=60)
    assert err == ""
    return out


def negotiate(transport, features):
    transport.reset()
    transport.add_status(1)
    transport.add_status(2)
    transport.accept_features(features)
    transport.add_status(8)
    assert transport.status() & 8


class Queue:
    """A split virtqueue written by hand: one page each for rings and buffer (VIRTIO 1.3, 2.7)."""

    def __init__(self, transport, index):
        self.region = dma.memory.allocate(8192)
        self.memory = self.region.buffer()
        base = self.region.iova
        places = QueueAddresses(SIZE, base, base + 0x400, base + 0x800)
        self.doorbell = transport.setup_queue(index, places)

    def post(self, length, flags, data=b""):
        """Offer the buffer as descriptor 0, and ring the doorbell."""
        self.memory[4096 : 4096 + len(data)] = data
        struct.pack_into("<QIHH", self.memory, 0, self.region.iova + 4096, length, flags, 0)
        struct.pack_into("<HHH", self.memory, 0x400, 0, 1, 0)
        assert self.doorbell.kind == "mmio16"
        ctypes.c_uint16.from_address(self.doorbell.target).value = self.doorbell.value

    def used(self):
        """(index, id, length) of the used ring."""
        return struct.unpack_from("<2xHII", self.memory, 0x800)


class TestRegisters:
    def test_features(self, nic):
        wanted = VERSION_1 | ACCESS_PLATFORM | MAC
        assert nic.offered_features() & wanted == wanted

    def test_mac(self, nic):
        assert nic.read_config(0, 6).hex(":") == "52:54:00:00:00:01"

    def test_queues(self, nic):
        assert nic.queue_max_size(0) == 256
        assert nic.queue_max_size(1) == 256
        assert nic.queue_max_size(999) == 0

    def test_reset_takes_the_status_and_the_queues_back(self, nic):
        negotiate(nic, VERSION_1 | ACCESS_PLATFORM)
        nic.setup_queue(0, QueueAddresses(64, 0, 0, 0))
        assert nic.queue_max_size(0) == 64
        nic.reset()
        assert nic.status() == 0
        assert nic.queue_max_size(0) == 256

    def test_dma_is_on_while_it_is_open_and_off_after(self, nic):
        assert dma_enabled()
        nic.close()
        assert not dma_enabled()

    def test_open_by_its_short_name(self):
        transport = VfioPciTransport("00:04.0")
        assert transport.name == NIC
        transport.close()

    def test_open_again_and_again(self):
        before = sorted(os.listdir("/proc/self/fd"))
        for _ in range(5):
            transport = VfioPciTransport(NIC)
            transport.setup_queue(0, QueueAddresses(64, 0, 0, 0))
            transport.close()
        assert sorted(os.listdir("/proc/self/fd")) == before


class TestTraffic:
    @pytest.mark.rule("RSV-004")
    def test_a_frame_crosses_the_cable_and_interrupts(self):
        sender, receiver = VfioPciTransport(NIC), VfioPciTransport(PEER)
        try:
            for transport in (sender, receiver):
                negotiate(transport, VERSION_1 | ACCESS_PLATFORM)
            inbox, outbox = Queue(receiver, 0), Queue(sender, 1)
            sender.add_status(4)
            receiver.add_status(4)
            inbox.post(2048, 2)
            frame = bytes(12) + b"\xff" * 6 + bytes.fromhex("525400000001 88b5") + bytes(range(46))
            outbox.post(len(frame), 0, frame)
            for fd in (receiver.interrupt_fd(0), sender.interrupt_fd(1)):
                assert select.select([fd], [], [], 10)[0]
                assert os.eventfd_read(fd) == 1
            assert inbox.used() == (1, 0, len(frame))
            assert inbox.memory[4096 + 12 : 4096 + len(frame)] == frame[12:]
            assert outbox.used()[0] == 1
        finally:
            sender.close()
            receiver.close()

    def test_memory_comes_and_goes_while_devices_do(self):
        early = dma.memory.allocate(1 << 20)
        first = VfioPciTransport(NIC)
        late = dma.memory.allocate(1 << 20)
        second = VfioPciTransport(PEER)
        assert locked() >= early.size + late.size
        first.close()
        assert locked() >= early.size + late.size
        del early
        second.close()
        assert locked() == 0
        assert bytes(late.buffer()[:4]) == bytes(4)


def locked():
    (line,) = (x for x in Path("/proc/self/status").read_text().splitlines() if "VmLck" in x)
    return int(line.split()[1]) << 10


class TestErrors:
    def test_no_such_device(self):
        with pytest.raises(errors.NoSuchDevice):
            VfioPciTransport("0000:00:1f.7")

    def test_not_a_network_device(self):
        with pytest.raises(errors.NotVirtioNet, match=r"1af4:10(01|42)"):
            VfioPciTransport(DISK)

    def test_not_bound_names_the_driver_and_the_command(self):
        rebind(PEER, "")
        try:
            with pytest.raises(errors.NotBound) as caught:
                VfioPciTransport(PEER)
            assert "virtio-pci" in caught.value.why
            assert caught.value.mend == f"pyvirtnet bind {PEER}"
            (interface,) = (PCI / "devices" / PEER).glob("virtio*/net/*")
            with pytest.raises(errors.NotBound, match=PEER):
                VfioPciTransport(interface.name)
        finally:
            rebind(PEER, "vfio-pci")

    def test_busy_here(self, nic):
        with pytest.raises(errors.DeviceBusy, match=str(os.getpid())):
            VfioPciTransport(NIC)
        assert nic.status() == 0

    def test_busy_in_another_process_names_its_pid(self):
        other = spawn(OPEN)
        try:
            assert other.stdout.readline() == "open\n"
            with pytest.raises(errors.DeviceBusy, match=f"pid {other.pid}"):
                VfioPciTransport(NIC)
        finally:
            other.communicate("\n", timeout=60)
        VfioPciTransport(NIC).close()

    def test_killed_and_opened_again(self):
        other = spawn(OPEN)
        assert other.stdout.readline() == "open\n"
        other.send_signal(signal.SIGKILL)
        other.communicate(timeout=60)
        transport = VfioPciTransport(NIC)
        assert transport.status() == 0
        transport.close()


class TestOrdinaryUser:
    USER = ("setpriv", "--reuid=user", "--regid=user", "--clear-groups", "--inh-caps=-all")

    @pytest.fixture
    def own(self):
        user = pwd.getpwnam("user")
        os.chown(node(), user.pw_uid, user.pw_gid)
        yield
        os.chown(node(), 0, 0)

    def test_no_permission_names_owner_and_command(self):
        text = outcome(*self.USER)
        assert text.startswith("NoPermission")
        assert f"{node()} belongs to root" in text
        assert f"pyvirtnet bind {NIC} --user user" in text

    def test_the_owner_of_the_node_may_open_it(self, own):
        assert outcome("prlimit", "--memlock=16777216", *self.USER).startswith("open")

    def test_memlock_tells_needed_and_allowed(self, own):
        text = outcome("prlimit", "--memlock=1048576", *self.USER)
        assert text.startswith("MemlockLimit")
        assert "allows 1024 KiB" in text
        assert "4096 KiB are needed" in text


class TestFork:
    def test_a_child_that_abandons_leaves_the_device_to_its_parent(self, nic):
        negotiate(nic, VERSION_1 | ACCESS_PLATFORM)
        region = dma.memory.allocate(1 << 20)
        done, start = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            try:
                nic.abandon()
                del region
                os.write(done[1], b"x")
                os.read(start[0], 1)
            finally:
                os._exit(0)
        try:
            assert os.read(done[0], 1) == b"x"
            assert nic.status() & 8
            assert locked() >= region.size
            nic.close()
            VfioPciTransport(NIC).close()  # the child holds nothing that keeps it busy
        finally:
            os.write(start[1], b"x")
            os.waitpid(child, 0)
            for fd in (*done, *start):
                os.close(fd)
